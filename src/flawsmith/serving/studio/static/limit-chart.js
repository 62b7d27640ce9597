// <limit-chart>: good images, known flaws and synthetic flaws over the number that decides, and two limits to be moved:
// by mouse, by touch, and by arrow keys one good image a step. Says `move` with {kind, rank}.
import { count } from "./words.js";

const LANE = 58;
const FOOT = 58;
const LEFT = 124;
const RIGHT = 30;
const HANDLE = 33; // width of a handle
const BINS = 110;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Where the axis begins and ends: around the limits and the good images; what lies beyond is gathered at the end. */
export function axisOf(good, limits, flawed) {
  const low = Math.min(good.at(-1) ?? limits[0], ...limits);
  const highest = Math.max(good[0] ?? limits[0], ...limits);
  const span = highest - low || Math.abs(highest) || 1;
  const beyond = flawed.length ? Math.min(Math.max(...flawed), highest + 0.9 * span) : highest + 0.25 * span;
  return [low - 0.04 * span, Math.max(highest + 0.12 * span, beyond)];
}

class LimitChart extends HTMLElement {
  #canvas = document.createElement("canvas");
  #handles = {};
  #data = null;
  #backdrop = null;
  #isDue = false;
  #grip = 0; // from the limit to where its handle was taken, pixels

  connectedCallback() {
    if (this.#canvas.isConnected) return;
    this.#canvas.setAttribute("role", "img");
    this.append(this.#canvas);
    for (const [kind, shape, name] of [["review", "▲", "Review limit"], ["reject", "■", "Reject limit"]]) {
      const handle = document.createElement("div");
      handle.className = `handle ${kind}`;
      handle.tabIndex = 0;
      handle.setAttribute("role", "slider");
      handle.setAttribute("aria-label", name);
      handle.dataset.testid = `limit.${kind}`;
      handle.append(Object.assign(document.createElement("span"), { textContent: shape }));
      handle.addEventListener("pointerdown", (event) => this.#press(event, kind));
      handle.addEventListener("pointermove", (event) => this.#drag(event, kind));
      handle.addEventListener("keydown", (event) => this.#key(event, kind));
      this.append(handle);
      this.#handles[kind] = handle;
    }
    new ResizeObserver(() => this.#draw(true)).observe(this);
    addEventListener("themechange", () => this.#draw(true));
  }

  /**
   * What to show. `good`, `forged`: scores, largest first; `known`: [{deciding, label}]; `steps`: limits by rank;
   * `reject`, `review`: {limit, rank, text}, `review` may be null; `canMove`.
   */
  show(data) {
    const isNew = !this.#data || ["good", "forged", "known"].some((name) => this.#data[name] !== data[name]) || this.#data.axis?.join() !== data.axis.join();
    this.#data = data;
    this.#draw(isNew);
  }

  get #plot() { return this.clientWidth - LEFT - RIGHT; }
  #x(value) {
    const [low, high] = this.#data.axis;
    return LEFT + this.#plot * Math.min(1, Math.max(0, (value - low) / (high - low)));
  }
  #lanes() {
    const { good, known, forged } = this.#data;
    const audited = known.filter((item) => item.label === "good");
    const flawed = known.filter((item) => item.label === "flawed");
    return [
      { name: "good, held out", count: good.length, bars: good, colour: "good" },
      ...(audited.length ? [{ name: "good, by people", count: audited.length, marks: audited, mark: "○", colour: "good" }] : []),
      ...(flawed.length ? [{ name: "known flaws", count: flawed.length, marks: flawed, mark: "×", colour: "wrong" }] : []),
      ...(forged.length ? [{ name: "synthetic flaws", count: forged.length, bars: forged, colour: "synthetic" }] : []),
    ];
  }

  #draw(isNew) {
    if (isNew) this.#backdrop = null;
    if (this.#isDue || !this.#data) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    if (!this.clientWidth) return;
    const ratio = devicePixelRatio;
    const lanes = this.#lanes();
    const height = lanes.length * LANE + FOOT;
    this.#canvas.style.height = `${height}px`;
    const [wide, high] = [Math.round(this.clientWidth * ratio), Math.round(height * ratio)];
    if (this.#canvas.width !== wide || this.#canvas.height !== high) {
      [this.#canvas.width, this.#canvas.height] = [wide, high];
      this.#backdrop = null;
    }
    this.#backdrop ??= this.#paint(lanes, wide, high, ratio);
    const context = this.#canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, wide, high);
    context.drawImage(this.#backdrop, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#limits(context, height);
    this.#canvas.setAttribute("aria-label", `${lanes.map((lane) => `${count(lane.count)} ${lane.name}`).join(", ")}; from left to right the number that decides.`);
  }

  #paint(lanes, wide, high, ratio) {
    const canvas = new OffscreenCanvas(wide, high);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const [low, top] = this.#data.axis;
    const bottom = lanes.length * LANE;
    context.font = "13px system-ui, sans-serif";
    lanes.forEach((lane, place) => {
      const base = (place + 1) * LANE - 8;
      context.fillStyle = colour("ink");
      context.textAlign = "right";
      context.fillText(lane.name, LEFT - 12, base - 18);
      context.fillStyle = colour("muted");
      context.fillText(count(lane.count), LEFT - 12, base - 2);
      context.fillStyle = colour("line");
      context.fillRect(LEFT, base, this.#plot, 1);
      context.fillStyle = colour(lane.colour);
      if (lane.bars) this.#bars(context, lane.bars, base, low, top);
      else this.#marks(context, lane, base);
    });
    context.fillStyle = colour("muted");
    context.textAlign = "center";
    for (const tick of ticks(low, top)) {
      const x = this.#x(tick);
      context.fillRect(x, bottom, 1, 4);
      context.fillText(String(Number(tick.toPrecision(6))), x, bottom + 17);
    }
    return canvas;
  }

  #bars(context, scores, base, low, top) {
    const heights = new Float64Array(BINS);
    for (const score of scores) {
      const bin = Math.floor(((score - low) / (top - low)) * BINS);
      if (bin >= 0 && bin < BINS) heights[bin]++;
    }
    const most = Math.max(1, ...heights);
    const width = this.#plot / BINS;
    heights.forEach((height, bin) => {
      if (!height) return;
      const tall = Math.max(2.5, ((LANE - 24) * height) / most); // a single image stays visible
      context.fillRect(LEFT + bin * width + 0.5, base - tall, Math.max(1, width - 1), tall);
    });
    this.#outside(context, scores, base, low, top);
  }

  #marks(context, lane, base) {
    const [low, top] = this.#data.axis;
    const taken = new Map();
    context.font = "16px system-ui, sans-serif";
    context.textAlign = "center";
    for (const { deciding } of lane.marks) {
      if (deciding < low || deciding > top) continue;
      const x = Math.round(this.#x(deciding) / 5) * 5;
      const level = taken.get(x) ?? 0;
      taken.set(x, level + 1);
      if (level < 3) context.fillText(lane.mark, x, base - 3 - level * 9);
    }
    context.font = "13px system-ui, sans-serif";
    this.#outside(context, lane.marks.map((item) => item.deciding), base, low, top);
  }

  /** How many lie beyond either end of the axis. */
  #outside(context, scores, base, low, top) {
    const [below, beyond] = [scores.filter((score) => score < low).length, scores.filter((score) => score > top).length];
    context.textAlign = "left";
    if (below) context.fillText(`‹ ${count(below)} below`, LEFT + 2, base - LANE + 18);
    context.textAlign = "right";
    if (beyond) context.fillText(`${count(beyond)} beyond ›`, LEFT + this.#plot, base - LANE + 18);
  }

  #limits(context, height) {
    const { reject, review, canMove } = this.#data;
    const floor = height - FOOT;
    for (const [kind, limit] of [["review", review], ["reject", reject]]) {
      const handle = this.#handles[kind];
      handle.hidden = !limit;
      if (!limit) continue;
      const x = this.#x(limit.limit);
      context.fillStyle = colour(kind === "reject" ? "wrong" : "between");
      context.globalAlpha = 0.07;
      const end = kind === "review" ? this.#x(reject.limit) : LEFT + this.#plot;
      context.fillRect(x, 0, end - x, floor);
      context.globalAlpha = 1;
      context.setLineDash?.(kind === "review" ? [5, 4] : []);
      context.strokeStyle = context.fillStyle;
      context.lineWidth = 2;
      context.beginPath();
      context.moveTo(x, 2);
      context.lineTo(x, floor + 6);
      context.stroke();
      context.setLineDash([]);
      // Where both limits are close, the handles stand beside each other.
      handle.style.left = `${kind === "review" ? Math.min(x, this.#x(reject.limit) - HANDLE) : x}px`;
      handle.style.top = `${floor + 20}px`;
      handle.setAttribute("aria-disabled", String(!canMove));
      handle.setAttribute("aria-valuemin", "1");
      handle.setAttribute("aria-valuemax", String(Math.max(1, this.#data.steps.length)));
      handle.setAttribute("aria-valuenow", String(limit.rank));
      handle.setAttribute("aria-valuetext", limit.text);
    }
  }

  #say(kind, rank) {
    if (!this.#data.canMove) return;
    const bounded = Math.max(1, Math.min(this.#data.steps.length, rank));
    this.dispatchEvent(new CustomEvent("move", { detail: { kind, rank: bounded, isBeyond: rank < 1 } }));
  }

  #press(event, kind) {
    event.preventDefault();
    this.#grip = event.clientX - this.getBoundingClientRect().left - this.#x(this.#data[kind].limit);
    this.#handles[kind].focus();
    this.#handles[kind].setPointerCapture(event.pointerId);
  }

  #drag(event, kind) {
    const handle = this.#handles[kind];
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const [low, high] = this.#data.axis;
    const share = (event.clientX - this.getBoundingClientRect().left - this.#grip - LEFT) / this.#plot;
    this.#say(kind, nearest(this.#data.steps, low + share * (high - low)));
  }

  #key(event, kind) {
    const rank = this.#data[kind].rank;
    const steps = { ArrowLeft: 1, ArrowDown: 1, ArrowRight: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (steps[event.key]) this.#say(kind, rank + steps[event.key]);
    else if (event.key === "Home") this.#say(kind, this.#data.steps.length);
    else if (event.key === "End") this.#say(kind, 1);
    else return;
    event.preventDefault();
  }
}

/** The rank whose limit lies nearest to a number; 0 well beyond the largest. */
export function nearest(steps, value) {
  const limits = steps.map((step) => step.limit);
  if (value > limits[0] + 0.5 * Math.abs(limits[0] - (limits[1] ?? 0))) return 0;
  let best = 0;
  for (let place = 1; place < limits.length; place++) if (Math.abs(limits[place] - value) < Math.abs(limits[best] - value)) best = place;
  return best + 1;
}

/** Round numbers along an axis. */
function ticks(low, high) {
  const raw = (high - low) / 7;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= raw);
  const first = Math.ceil(low / step) * step;
  return Array.from({ length: Math.floor((high - first) / step) + 1 }, (_, place) => first + place * step);
}

customElements.define("limit-chart", LimitChart);
