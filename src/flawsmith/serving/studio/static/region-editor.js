// Draws polygons on an image: where to look, and what to leave out. With the mouse: a click is a corner, a click on the
// first one closes. With keys: arrows move a cross (Shift: far), Enter sets a corner, C closes, Backspace takes one back.
import { html, nothing, render } from "./vendor/lit-html.js";
import { several } from "./words.js";

const NEAR = 11; // screen pixels from the first corner within which a click closes
const FAR = 20;

class RegionEditor extends HTMLElement {
  #image = new Image();
  #canvas = document.createElement("canvas");
  #shapes = []; // {kind, corners: [[x, y], ...]}
  #open = []; // corners of the polygon that is being drawn
  #kind = "include";
  #cross = null;
  #said = "";

  connectedCallback() {
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "application");
    this.#canvas.setAttribute("aria-label", "Image to draw on. Arrow keys move the cross, Shift moves it far, Enter sets a corner, C closes the shape, Backspace takes a corner back.");
    this.#canvas.dataset.testid = "teach.canvas";
    this.#canvas.addEventListener("pointerdown", (event) => this.#click(event));
    this.#canvas.addEventListener("pointermove", (event) => { this.#cross = this.#place(event); this.#paint(); });
    this.#canvas.addEventListener("pointerleave", () => { if (document.activeElement !== this.#canvas) { this.#cross = null; this.#paint(); } });
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("focus", () => { this.#cross ??= [this.#canvas.width / 2, this.#canvas.height / 2]; this.#paint(); });
    this.#draw();
  }

  /** Begin with an image and a drawing, or null for none. */
  async show(address, drawing) {
    this.#image = new Image();
    this.#image.src = address;
    await this.#image.decode();
    this.#canvas.width = this.#image.naturalWidth;
    this.#canvas.height = this.#image.naturalHeight;
    const [wide, high] = drawing ? [this.#canvas.width / drawing.width, this.#canvas.height / drawing.height] : [1, 1];
    const scaled = (kind) => (drawing?.[kind] ?? []).map((corners) => ({ kind, corners: corners.map(([x, y]) => [x * wide, y * high]) }));
    this.#shapes = [...scaled("include"), ...scaled("exclude")];
    this.#open = [];
    this.#cross = null;
    this.#draw();
  }

  /** The drawing in pixels of the image, or null where nothing is drawn. */
  get drawing() {
    if (!this.#shapes.length) return null;
    const of = (kind) => this.#shapes.filter((shape) => shape.kind === kind).map((shape) => shape.corners);
    return { width: this.#canvas.width, height: this.#canvas.height, include: of("include"), exclude: of("exclude") };
  }

  /** Whether corners are set that make no shape yet. */
  get isOpen() {
    return this.#open.length > 0;
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return this.#inside((event.clientX - box.left) * (this.#canvas.width / box.width), (event.clientY - box.top) * (this.#canvas.height / box.height));
  }

  #inside(x, y) {
    return [Math.min(Math.max(Math.round(x), 0), this.#canvas.width), Math.min(Math.max(Math.round(y), 0), this.#canvas.height)];
  }

  get #pixel() { // image pixels in a screen pixel
    return this.#canvas.width / (this.#canvas.getBoundingClientRect().width || 1);
  }

  #click(event) {
    if (event.button) return;
    const [x, y] = this.#place(event);
    const first = this.#open[0];
    const closes = this.#open.length > 2 && Math.hypot(first[0] - x, first[1] - y) < NEAR * this.#pixel;
    if (closes) this.#close();
    else this.#corner(x, y);
  }

  #corner(x, y) {
    this.#open.push([x, y]);
    this.#say(`Corner ${this.#open.length} at ${x}, ${y}.`);
  }

  #close() {
    if (this.#open.length < 3) return this.#say("A shape needs three corners.");
    this.#shapes.push({ kind: this.#kind, corners: this.#open });
    this.#open = [];
    return this.#say(`Shape closed: ${this.#kind === "include" ? "looked at" : "left out"}.`);
  }

  #back() {
    if (this.#open.length) this.#open.pop();
    else this.#shapes.pop();
    this.#say(this.#open.length ? `${several(this.#open.length, "corner")} left.` : "Taken back.");
  }

  #key(event) {
    const step = (event.shiftKey ? FAR : 1) * Math.max(1, Math.round(this.#pixel));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const [x, y] = this.#cross ?? [0, 0];
    if (moves[event.key]) {
      this.#cross = this.#inside(x + moves[event.key][0], y + moves[event.key][1]);
      this.#paint();
    } else if (event.key === "Enter" || event.key === " ") this.#corner(...this.#inside(x, y));
    else if (event.key === "c" || event.key === "C") this.#close();
    else if (event.key === "Backspace" || event.key === "Delete") this.#back();
    else return;
    event.preventDefault();
  }

  #say(words) {
    this.#said = words;
    this.#draw();
  }

  #draw() {
    const choose = (kind) => () => { this.#kind = kind; this.#draw(); };
    const name = { include: "look here", exclude: "leave out" };
    render(html`
      <div class="row" role="group" aria-label="What the next shape says">
        ${Object.keys(name).map((kind) => html`<button type="button" aria-pressed=${this.#kind === kind} data-testid="teach.${kind}" @click=${choose(kind)}>${kind === "include" ? "Look here" : "Leave out"}</button>`)}
        <button type="button" ?disabled=${this.#open.length < 3} data-testid="teach.close" @click=${() => this.#close()}>Close shape <kbd>C</kbd></button>
        <button type="button" ?disabled=${!this.#open.length && !this.#shapes.length} @click=${() => this.#back()}>Back <kbd>⌫</kbd></button>
        <span class="quiet small" role="status">${this.#said || "Click corners; click the first one again, or press C, to close."}</span>
      </div>
      <div class="stage">${this.#canvas}</div>
      <ul class="shapes">${this.#shapes.map((shape, number) => html`
        <li>${name[shape.kind]}, ${several(shape.corners.length, "corner")} <button type="button" aria-label="Remove shape ${number + 1}" @click=${() => { this.#shapes.splice(number, 1); this.#say("Shape removed."); }}>✕</button></li>`)}
        ${this.#shapes.length ? nothing : html`<li class="quiet">Nothing drawn: the whole image is looked at&nbsp;</li>`}
      </ul>`, this);
    this.#paint();
  }

  #paint() {
    const pen = this.#canvas.getContext("2d");
    const { width, height } = this.#canvas;
    const thin = Math.max(1, 1.6 * this.#pixel);
    pen.clearRect(0, 0, width, height);
    if (this.#image.complete && this.#image.naturalWidth) pen.drawImage(this.#image, 0, 0);
    const path = (corners) => {
      pen.beginPath();
      corners.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    };
    const edge = (colour, isDashed) => { // white under it, so that it is seen on any image
      pen.setLineDash(isDashed ? [6 * thin, 4 * thin] : []);
      pen.lineWidth = 3 * thin; pen.strokeStyle = "#fff"; pen.stroke();
      pen.lineWidth = 1.5 * thin; pen.strokeStyle = colour; pen.stroke();
      pen.setLineDash([]);
    };
    for (const { kind, corners } of this.#shapes) {
      path(corners);
      pen.closePath();
      pen.fillStyle = kind === "include" ? "#0072b233" : "#00000088";
      pen.fill();
      edge(kind === "include" ? "#0072b2" : "#b34700", kind === "exclude");
    }
    if (this.#open.length) {
      path([...this.#open, ...(this.#cross ? [this.#cross] : [])]);
      edge(this.#kind === "include" ? "#0072b2" : "#b34700", this.#kind === "exclude");
      for (const [x, y] of this.#open) { pen.fillStyle = "#fff"; pen.fillRect(x - 3 * thin, y - 3 * thin, 6 * thin, 6 * thin); pen.fillStyle = "#0072b2"; pen.fillRect(x - 2 * thin, y - 2 * thin, 4 * thin, 4 * thin); }
    }
    if (this.#cross && document.activeElement === this.#canvas) {
      const [x, y] = this.#cross;
      path([[x - 12 * thin, y], [x + 12 * thin, y]]);
      pen.moveTo(x, y - 12 * thin);
      pen.lineTo(x, y + 12 * thin);
      edge("#000", false);
    }
  }
}

customElements.define("region-editor", RegionEditor);
