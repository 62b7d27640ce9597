// <rate-chart>: rejects of 1,000 over time, with the limits of a p-chart: what chance alone hardly leaves.
import { axis, Chart, colour, stroke } from "./chart.js";
import uPlot from "./vendor/uPlot.js";
import { of1000 } from "./words.js";

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

class RateChart extends Chart {
  /** Slots of the service's counts, and [first, last] second of the time that is shown. */
  show(slots, range) {
    const chart = pChart(slots);
    const per1000 = (values) => values.map((value) => 1000 * value);
    const outside = chart.rates.filter((rate, place) => rate > chart.upper[place] + 1e-12).length;
    this.setAttribute("aria-label", slots.length ? `Rejects over time: ${of1000(chart.mean)} of 1,000 on average, ${outside} of ${slots.length} slots above what chance leaves.` : "No parts in this time.");
    this.draw([chart.times, per1000(chart.rates), chart.times.map(() => 1000 * chart.mean), per1000(chart.upper), per1000(chart.lower)], options, range);
  }
}

function options() {
  const bound = stroke("edge", { dash: [5, 4], paths: uPlot.paths.stepped({ align: 1 }) });
  return {
    scales: { y: { range: (_, __, high) => [0, Math.max(10, high * 1.08 || 10)] } },
    axes: [{ ...axis(), values: (_, times) => times.map((time) => clock.format(1000 * time)) }, { ...axis(), size: 46 }],
    series: [{}, stroke("wrong", { width: 2, points: { show: true, size: 6, fill: colour("wrong") } }), stroke("muted"), bound, { ...bound }],
  };
}

customElements.define("rate-chart", RateChart);
