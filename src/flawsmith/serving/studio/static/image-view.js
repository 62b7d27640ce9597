// <image-view>: an image at its own pixels with heat and outlines over it. Wheel, pinch and + - zoom, dragging and
// arrows move, 0 fits, 1 is one to one; the value under the cursor stands beneath. What is shown is set by `show`.

/** Colours of the heat as in reports (runtime/overlay.py): dark red, red, orange, yellow, white. */
const ANCHORS = [[96, 0, 24], [190, 24, 24], [240, 110, 20], [252, 205, 60], [255, 255, 235]];
const [FAINTEST, DENSEST] = [0.25, 0.55];
const OUTLINE = "#00e5ff";
const MOST_ZOOM = 40;

/** A HeatMap of the service with its levels as numbers. */
export function decoded(heat) {
  const bytes = Uint8Array.from(atob(heat.levels), (letter) => letter.charCodeAt(0));
  return { ...heat, levels: new Uint16Array(bytes.buffer) };
}

/** Value of a heat map at a pixel of the image. */
function valueAt(heat, x, y) {
  const column = Math.min(heat.width - 1, Math.floor(x / heat.cell));
  const row = Math.min(heat.height - 1, Math.floor(y / heat.cell));
  return heat.low + (heat.levels[row * heat.width + column] / 65535) * (heat.high - heat.low);
}

function painted(heat, limit) {
  // Colours begin at the limit; where nothing exceeds it, half-way to the peak, so that there is something to see.
  const isCalm = heat.high <= limit;
  const begin = isCalm ? (heat.low + heat.high) / 2 : limit;
  const span = Math.max(heat.high - begin, isCalm ? 0 : 0.1 * Math.abs(limit)) || 1;
  const canvas = new OffscreenCanvas(heat.width, heat.height);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(heat.width, heat.height);
  for (let index = 0; index < heat.levels.length; index++) {
    const value = heat.low + (heat.levels[index] / 65535) * (heat.high - heat.low);
    if (value <= begin) continue;
    const share = Math.min(1, (value - begin) / span);
    const place = share * (ANCHORS.length - 1);
    const [from, to] = [ANCHORS[Math.floor(place)], ANCHORS[Math.ceil(place)]];
    for (let band = 0; band < 3; band++) pixels.data[4 * index + band] = from[band] + (to[band] - from[band]) * (place % 1);
    pixels.data[4 * index + 3] = 255 * (FAINTEST + (DENSEST - FAINTEST) * share) * (isCalm ? 0.6 : 1);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

class ImageView extends HTMLElement {
  #canvas = document.createElement("canvas");
  #words = document.createElement("output");
  #shown = null;
  #paint = null;
  #scale = 1;
  #left = 0;
  #top = 0;
  #isFitted = true;
  #pointers = new Map();
  #isDue = false;
  hasMap = true;
  hasRegions = true;

  connectedCallback() {
    if (this.#canvas.isConnected) return;
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "img");
    this.#canvas.setAttribute("aria-label", "no image");
    this.#words.className = "value";
    this.#words.setAttribute("aria-live", "off");
    this.append(this.#canvas, this.#words);
    new ResizeObserver(() => (this.#isFitted ? this.fit() : this.#draw())).observe(this);
    this.#canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.#canvas.addEventListener("pointerdown", (event) => this.#press(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    this.#canvas.addEventListener("pointerleave", () => this.#tell(null));
    this.#canvas.addEventListener("dblclick", (event) => (this.#isFitted ? this.zoom(1 / devicePixelRatio, this.#place(event)) : this.fit()));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /**
   * Show an image, or nothing (null).
   * `picture`: something a canvas draws, of any size; `size`: [width, height] of the image; `heat`: decoded, or null;
   * `limit`: of the map; `regions`: of the inspection; `label`: for who does not see it.
   */
  show(shown) {
    const isSame = this.#shown && shown && this.#shown.size.join() === shown.size.join();
    this.#shown = shown;
    this.#paint = shown?.heat ? painted(shown.heat, shown.limit) : null;
    this.#canvas.setAttribute("aria-label", shown?.label ?? "no image");
    this.#tell(null);
    if (isSame && !this.#isFitted) this.#draw();
    else this.fit();
  }

  /** Show or hide the map; gives whether it is shown now. */
  blink() {
    this.hasMap = !this.hasMap;
    this.#draw();
    return this.hasMap;
  }

  redraw() { this.#draw(); }

  fit() {
    if (!this.#shown) return this.#draw();
    const [width, height] = this.#shown.size;
    this.#scale = Math.min(this.#width / width, this.#height / height);
    this.#left = (this.#width - width * this.#scale) / 2;
    this.#top = (this.#height - height * this.#scale) / 2;
    this.#isFitted = true;
    return this.#draw();
  }

  /** Zoom to a scale (screen pixels by image pixels) around a place of the view. */
  zoom(scale, place = [this.#width / 2, this.#height / 2]) {
    if (!this.#shown) return;
    const [x, y] = [(place[0] - this.#left) / this.#scale, (place[1] - this.#top) / this.#scale];
    const fitted = Math.min(this.#width / this.#shown.size[0], this.#height / this.#shown.size[1]);
    this.#scale = Math.min(MOST_ZOOM, Math.max(fitted, scale));
    this.#isFitted = this.#scale === fitted;
    if (this.#isFitted) return void this.fit();
    this.#left = place[0] - x * this.#scale;
    this.#top = place[1] - y * this.#scale;
    this.#draw();
  }

  get #width() { return this.#canvas.clientWidth; }
  get #height() { return this.#canvas.clientHeight; }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(this.#scale * 1.0016 ** -event.deltaY, this.#place(event));
    this.#tell(this.#place(event));
  }

  #press(event) {
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#place(event));
  }

  #move(event) {
    const place = this.#place(event);
    const before = this.#pointers.get(event.pointerId);
    this.#tell(place);
    if (!before) return;
    const others = [...this.#pointers.entries()].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    this.#pointers.set(event.pointerId, place);
    if (others.length === 1) {
      const distance = (point) => Math.hypot(point[0] - others[0][0], point[1] - others[0][1]) || 1;
      this.zoom((this.#scale * distance(place)) / distance(before), others[0]);
    } else if (others.length === 0) this.#shift(place[0] - before[0], place[1] - before[1]);
  }

  #shift(x, y) {
    if (!this.#shown || this.#isFitted) return;
    this.#left += x;
    this.#top += y;
    this.#draw();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key === "+" || event.key === "=") this.zoom(this.#scale * 1.3);
    else if (event.key === "-") this.zoom(this.#scale / 1.3);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.zoom(1 / devicePixelRatio);
    else if (moves[event.key] && !this.#isFitted) this.#shift(...moves[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #tell(place) {
    const shown = this.#shown;
    if (!shown) return void (this.#words.textContent = "");
    const zoom = `${Math.round(100 * this.#scale * devicePixelRatio)} %`;
    if (!place) return void (this.#words.textContent = `${shown.size[0]} × ${shown.size[1]} · ${zoom}`);
    const [x, y] = [Math.floor((place[0] - this.#left) / this.#scale), Math.floor((place[1] - this.#top) / this.#scale)];
    if (x < 0 || y < 0 || x >= shown.size[0] || y >= shown.size[1]) return void (this.#words.textContent = zoom);
    const value = shown.heat ? valueAt(shown.heat, x, y) : null;
    const times = value !== null && shown.limit > 0 ? ` = ${(value / shown.limit).toFixed(2)} × limit` : "";
    this.#words.textContent = `${zoom} · x ${x}, y ${y}${value === null ? "" : ` · map ${value.toPrecision(3)}${times}`}`;
  }

  #draw() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    const ratio = devicePixelRatio;
    const [width, height] = [Math.round(this.#width * ratio), Math.round(this.#height * ratio)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) [this.#canvas.width, this.#canvas.height] = [width, height];
    const context = this.#canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.#shown) return;
    const { picture, size, heat, regions } = this.#shown;
    const scale = this.#scale * ratio;
    context.setTransform(scale, 0, 0, scale, this.#left * ratio, this.#top * ratio);
    context.imageSmoothingEnabled = scale < 3;
    context.drawImage(picture, 0, 0, ...size);
    if (this.#paint && this.hasMap) {
      context.imageSmoothingEnabled = true;
      context.save();
      context.beginPath();
      context.rect(0, 0, ...size);
      context.clip();
      context.drawImage(this.#paint, 0, 0, heat.width * heat.cell, heat.height * heat.cell);
      context.restore();
    }
    if (!this.hasRegions) return;
    context.lineJoin = "round";
    for (const [width, colour] of [[4, "#000b"], [2, OUTLINE]]) {
      context.lineWidth = (width * ratio) / scale;
      context.strokeStyle = colour;
      for (const region of regions ?? []) {
        const [x0, y0, x1, y1] = region.box;
        context.setLineDash(region.strangest_place ? [(8 * ratio) / scale, (6 * ratio) / scale] : []);
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
  }
}

customElements.define("image-view", ImageView);

/** The picture of a blob, or null where the browser cannot show it. */
export async function pictureOf(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return null;
  }
}
