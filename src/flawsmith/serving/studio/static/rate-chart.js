// <rate-chart>: rejects of 1,000 over time, with the limits of a p-chart: what chance alone hardly leaves.
import uPlot from "./vendor/uPlot.js";
import { of1000 } from "./words.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Rates of slots with the p-chart's centre and limits (three standard deviations of a binomial count). */
export function pChart(slots) {
  const sizes = slots.map(({ verdicts }) => Object.values(verdicts).reduce((sum, number) => sum + number, 0));
  const rejects = slots.map(({ verdicts }) => (verdicts.reject ?? 0) + (verdicts.error ?? 0));
  const all = sizes.reduce((sum, size) => sum + size, 0);
  const mean = all ? rejects.reduce((sum, number) => sum + number, 0) / all : 0;
  const spread = sizes.map((size) => 3 * Math.sqrt((mean * (1 - mean)) / size));
  return {
    times: slots.map((slot) => slot.begin),
    rates: rejects.map((number, place) => number / sizes[place]),
    mean,
    upper: spread.map((width) => Math.min(1, mean + width)),
    lower: spread.map((width) => Math.max(0, mean - width)),
  };
}

class RateChart extends HTMLElement {
  #plot = null;
  #slots = [];
  #range = [0, 1];

  connectedCallback() {
    this.setAttribute("role", "img");
    this.style.display = "block";
    new ResizeObserver(() => this.#plot?.setSize({ width: this.clientWidth, height: this.clientHeight })).observe(this);
    addEventListener("themechange", () => { this.#plot?.destroy(); this.#plot = null; this.show(this.#slots, this.#range); });
  }

  /** Slots of the service's counts, and [first, last] second of the time that is shown. */
  show(slots, range) {
    [this.#slots, this.#range] = [slots, range];
    const chart = pChart(slots);
    const per1000 = (values) => values.map((value) => 1000 * value);
    const data = [chart.times, per1000(chart.rates), chart.times.map(() => 1000 * chart.mean), per1000(chart.upper), per1000(chart.lower)];
    const outside = chart.rates.filter((rate, place) => rate > chart.upper[place] + 1e-12).length;
    this.setAttribute("aria-label", slots.length ? `Rejects over time: ${of1000(chart.mean)} of 1,000 on average, ${outside} of ${slots.length} slots above what chance leaves.` : "No parts in this time.");
    if (!this.#plot) this.#plot = this.#make(data);
    else this.#plot.setData(data, false);
    this.#plot.setScale("x", { min: range[0], max: range[1] });
  }

  #make(data) {
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const line = (name, extra) => ({ stroke: colour(name), width: 1.5, points: { show: false }, ...extra });
    const options = {
      width: this.clientWidth || 600,
      height: this.clientHeight || 180,
      legend: { show: false },
      cursor: { show: false },
      scales: { y: { range: (_, __, high) => [0, Math.max(10, high * 1.08 || 10)] } },
      axes: [{ ...axis, values: (_, times) => times.map((time) => clock.format(1000 * time)) }, { ...axis, size: 46 }],
      series: [{}, line("wrong", { width: 2, points: { show: true, size: 6, fill: colour("wrong") } }), line("muted"), line("edge", { dash: [5, 4], paths: uPlot.paths.stepped({ align: 1 }) }), line("edge", { dash: [5, 4], paths: uPlot.paths.stepped({ align: 1 }) })],
    };
    return new uPlot(options, data, this);
  }
}

customElements.define("rate-chart", RateChart);
