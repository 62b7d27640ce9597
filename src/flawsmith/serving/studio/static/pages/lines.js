// All lines: what runs, what it rejects, what waits.
import { attempt, follow, get, ofLine } from "../api.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, inSigns, of1000, rates, today, when } from "../words.js";

const cards = document.querySelector("#cards");
const search = document.querySelector("#search");
let lines = null;
let figures = new Map(); // Counts by line
let drifts = new Map();
let taught = new Map(); // TrainChoices of lines without a model, in a studio
let due = null;

const page = (line, name) => `/studio/lines/${encodeURIComponent(line.line)}/${name}`;

/** A word and a shape for what the line does. */
function state(line) {
  const drift = drifts.get(line.line);
  if (line.camera === "failing") return html`<span class="state reject">■ camera failing</span>`;
  if (drift?.alarm) return html`<a class="state reject" href="${page(line, "run")}#drift">■ drift since ${when(drift.alarm.since)}${drift.alarm.moved.length ? `: ${inSigns(drift.alarm.moved[0])}` : ""}</a>`;
  if (line.camera === "paused") return html`<span class="state review">▲ paused</span>`;
  if (line.ready) return html`<span class="state pass">● running</span>`;
  return html`<span class="state quiet">○ no model yet</span>`;
}

function today1000(counts) {
  const { pass, review, reject, error } = counts.verdicts;
  const all = pass + review + reject + error;
  if (!all) return html`<dd>–<small> no parts yet</small></dd>`;
  return html`<dd>${of1000((reject + error) / all)} <small>of ${count(all)} parts</small></dd>`;
}

const card = (line) => {
  const drift = drifts.get(line.line);
  const counts = figures.get(line.line);
  const waiting = counts ? Object.values(counts.waiting).reduce((sum, number) => sum + number, 0) : 0;
  return html`
  <article class="card" data-testid="lines.card" data-line=${line.line}>
    <div>
      <h2><a href=${page(line, line.ready ? "run" : "models")}>${line.line}</a></h2>
      ${state(line)}
      ${line.place && line.place !== line.line ? html`<div class="quiet small">${line.place}</div>` : nothing}
    </div>
    <dl class="facts">
      ${!line.ready && taught.has(line.line) ? html`<div><dt>good images</dt><dd>${count(taught.get(line.line).good_images)}${taught.get(line.line).working === line.line ? html` <small>is being trained</small>` : nothing}</dd></div>` : nothing}
      ${counts && (line.ready || counts.latest) ? html`
        <div><dt>rejected of 1,000 today</dt>${today1000(counts)}</div>
        <div><dt>reviews waiting</dt><dd>${waiting ? html`<a href=${page(line, "review")}>${count(waiting)}</a>` : 0}</dd></div>` : nothing}
      ${drift && !drift.alarm && drift.state === "calm" ? html`<div><dt>drift</dt><dd class="model">calm</dd></div>` : nothing}
      ${line.limit ? html`
        <div><dt>limit, of 1,000 good parts</dt><dd>${rates(line.limit)[0]} <small>at worst ${rates(line.limit)[1]}</small></dd></div>
        <div><dt>model</dt><dd class="model">${line.method} <small>${line.product}</small></dd></div>` : nothing}
    </dl>
    <div class="links">${line.ready
      ? html`<a class="button" href=${page(line, "limit")}>Limit</a><a class="button primary" href=${page(line, "run")}>Open</a>`
      : html`<a class="button primary" href=${page(line, document.body.dataset.first || "models")}>${document.body.dataset.first === "teach" ? "Teach" : "Models"}</a>`}</div>
  </article>`;
};

function draw() {
  if (!lines) return;
  const words = search.value.trim().toLowerCase();
  const shown = lines.filter((line) => `${line.line} ${line.place} ${line.product ?? ""}`.toLowerCase().includes(words));
  const makes = document.querySelector("#new-line") ? " Give the first one a name above: that of the part, or of the place where it is inspected." : "";
  const nobody = words ? `No line is called “${search.value.trim()}”.` : `There is no line yet.${makes}`;
  render(shown.length ? shown.map(card) : html`<div class="empty"><p>${nobody}</p></div>`, cards);
}

async function load() {
  lines = (await attempt(() => get("/v1/lines"))) ?? lines;
  draw();
  await Promise.all((lines ?? []).map(async (line) => {
    const counts = await attempt(() => get(ofLine(`/counts?since=${today()}&minutes=1440`, line.line)));
    if (counts) figures.set(line.line, counts);
    if (!line.ready && document.body.dataset.first === "teach") {
      const told = await attempt(() => get(ofLine("/trainings", line.line)));
      if (told) taught.set(line.line, told);
    }
    if (line.ready) {
      const told = await attempt(() => get(ofLine("/drift", line.line)));
      if (told) drifts.set(line.line, told);
    }
  }));
  draw();
}

/** Parts come often; a card needs no more than a look every few seconds. */
function soon() {
  due ??= setTimeout(async () => {
    due = null;
    await load();
  }, 4000);
}

search.addEventListener("input", draw);
follow({ inspection: soon, review: soon, teach: soon, training: load, drift: load, camera: load, limit: load, model: load, line: load }, undefined, load);
load();
