// What charts share: they fill their element, and are drawn anew where it changes its size or the page its colours.
import uPlot from "./vendor/uPlot.js";

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** An element that holds a plot. */
export class Chart extends HTMLElement {
  #plot = null;
  #drawn = null;

  connectedCallback() {
    this.setAttribute("role", "img");
    this.style.display = "block";
    new ResizeObserver(() => { if (this.clientWidth) this.#plot?.setSize({ width: this.clientWidth, height: this.clientHeight }); }).observe(this);
    addEventListener("themechange", () => {
      this.#plot?.destroy();
      this.#plot = null;
      if (this.#drawn) this.draw(...this.#drawn);
    });
  }

  /** Draw uPlot's data; `options` gives its options in the colours of now. `range` [first, last] of x; null: that of the data. */
  draw(data, options, range = null) {
    this.#drawn = [data, options, range];
    const frame = { width: this.clientWidth || 600, height: this.clientHeight || 180, legend: { show: false }, cursor: { show: false } };
    if (!this.#plot) this.#plot = new uPlot({ ...frame, ...options() }, data, this);
    else this.#plot.setData(data, range === null);
    if (range) this.#plot.setScale("x", { min: range[0], max: range[1] });
  }
}

/** What an axis looks like. */
export const axis = () => ({ stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui, sans-serif" });
/** What a line looks like, in a colour of the page. */
export const stroke = (name, extra) => ({ stroke: colour(name), width: 1.5, points: { show: false }, ...extra });
