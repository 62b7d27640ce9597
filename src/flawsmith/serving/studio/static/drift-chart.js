// <drift-chart>: what a stake of 1 against stable parts has become, part by part, on a logarithmic scale.
import { axis, Chart, colour, stroke } from "./chart.js";
import { count, when } from "./words.js";

const LINES = [0.1, 10, 1000, 1e5];
const LOWEST = LINES[0];
const HIGHEST = LINES.at(-1); // far beyond the alarm it matters no more by how much

const inside = (evidence) => Math.min(HIGHEST, Math.max(LOWEST, evidence));

class DriftChart extends Chart {
  #drift = null;

  /** Drift as the service tells it. */
  show(drift) {
    if (drift === this.#drift) return;
    this.#drift = drift;
    const { alarm, alarm_at: limit, curve } = drift;
    this.setAttribute("aria-label", curve.length ? `Evidence of drift over ${count(drift.parts)} parts: now ${inside(drift.evidence).toPrecision(2)}, an alarm at ${count(limit)}.${alarm ? ` It began about ${when(alarm.since)}.` : ""}` : "No parts yet.");
    this.draw([curve.map((point) => point.record), curve.map((point) => inside(point.evidence)), curve.map(() => limit)], () => options(alarm));
  }
}

function options(alarm) {
  return {
    scales: { x: { time: false }, y: { distr: 3, log: 10, range: () => [LOWEST, 2 * HIGHEST] } },
    axes: [{ ...axis(), values: (_, numbers) => numbers.map((number) => (Number.isInteger(number) ? count(number) : "")) }, { ...axis(), size: 66, splits: () => LINES, filter: (_, lines) => lines, values: (_, lines) => lines.map((line) => (line < 1 ? String(line) : count(line))) }],
    series: [{}, stroke(alarm ? "wrong" : "accent", { width: 2 }), stroke("edge", { dash: [5, 4] })],
    hooks: { draw: [(plot) => { if (alarm) mark(plot, alarm.since_record); }] },
  };
}

/** An upright line where it began. */
function mark(plot, record) {
  const { ctx, bbox } = plot;
  const x = Math.round(plot.valToPos(record, "x", true));
  if (x < bbox.left || x > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = colour("muted");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

customElements.define("drift-chart", DriftChart);
