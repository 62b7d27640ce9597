// Review: a person says what parts are: all between the limits, and a random draw of passes and rejects, so that what
// is said proves something of all parts.
import { attempt, follow, get, line, notify, ofLine, post, remove, who } from "../api.js";
import "../image-view.js";
import { heatOf, imageAt, imageOf } from "../part.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, nameOf, score, several, times, today, verdict, when } from "../words.js";

const page = document.querySelector("#page");
const DRAWS = { band: "between the limits", passes: "audit of passes", rejects: "audit of rejects" };
const REASONS = ["scratch", "dent", "missing", "stain", "dirt, no flaw", "image bad"];
const blindKey = "flawsmith blind";

let queue = []; // records that wait, the oldest first
let images = new Set();
let next = null;
let waiting = null;
let draw_ = ""; // of the queue; empty: all
let isBlind = localStorage.getItem(blindKey) !== "no";
let reasons = new Set();
let words = "";
let role = "calibrate";
let done = []; // {record, hasImage, label}: the latest last
let evidence = null;
let seen = null; // {id, picture, size, heat}
let compared = null; // the good image most like the part's: {of, alike, picture, size}; picture null: there is none
let isBusy = false;

const current = () => queue[0] ?? null;

async function load() {
  const told = await attempt(() => get(ofLine(`/reviews?limit=50${draw_ ? `&draw=${draw_}` : ""}`)));
  if (!told) return;
  queue = told.items;
  images = new Set(told.images);
  ({ next, waiting } = told);
  draw();
  picture();
}

async function more() {
  if (queue.length > 10 || next === null) return;
  const told = await attempt(() => get(ofLine(`/reviews?limit=50&cursor=${next}${draw_ ? `&draw=${draw_}` : ""}`)));
  if (!told) return;
  queue.push(...told.items);
  for (const id of told.images) images.add(id);
  next = told.next;
}

async function prove() {
  evidence = (await attempt(() => get(ofLine(`/reviews/evidence?since=${today()}`)))) ?? evidence;
  draw();
}

async function picture() {
  const record = current();
  if (!record || seen?.id === record.id) return paint();
  const { id } = record;
  const image = images.has(id) ? await attempt(() => imageOf(id)) : null;
  if (current()?.id !== id) return undefined;
  seen = { id, heat: null, ...image };
  paint();
  return compare(record);
}

function paint() {
  const view = page.querySelector("image-view[data-main]");
  const record = current();
  if (!view) return;
  if (!record || !seen?.picture || seen.id !== record.id) return void view.show(null);
  view.show({ ...seen, heat: isBlind ? null : seen.heat, limit: record.limit, regions: isBlind ? [] : record.regions, label: isBlind ? `part ${nameOf(record)}` : `part ${nameOf(record)}: ${record.verdict}` });
}

/** The good image that looks most like this part's, beside it. */
async function compare(record) {
  if (compared?.of !== record.id) {
    const alike = await attempt(() => get(ofLine(`/reviews/${record.id}/alike`)));
    const path = alike && (alike.taught ? `/teach/images/${alike.taught}` : `/inspections/${alike.record}/image`);
    const image = path ? await attempt(() => imageAt(`${path}?width=1200`)) : null;
    if (current()?.id !== record.id) return;
    compared = { of: record.id, alike, picture: null, ...image };
    draw();
  }
  const view = page.querySelector("image-view[data-beside]");
  if (view && compared.picture) view.show({ ...compared, heat: null, regions: [], limit: 0, label: `${compared.alike.name}, a good one` });
}

async function map() {
  if (isBlind || !seen?.picture) return;
  const { id } = seen;
  if (!seen.heat) {
    const heat = await attempt(() => heatOf(id));
    if (seen.id !== id || !heat) return;
    seen.heat = heat;
    page.querySelector("image-view[data-main]").hasMap = true;
    paint();
  } else page.querySelector("image-view[data-main]").blink();
}

async function say(label) {
  const record = current();
  if (!record || isBusy) return;
  isBusy = true;
  const comment = [...reasons, words.trim()].filter(Boolean).join("; ");
  const said = await attempt(() => post(ofLine(`/reviews/${record.id}`), { label, comment, role, blind: isBlind }));
  isBusy = false;
  if (!said) return;
  done.push({ record, hasImage: images.has(record.id), label });
  gone(record);
  advance();
}

function gone(record) {
  const draw = said(record);
  if (waiting && waiting[draw] > 0) waiting[draw]--;
}
const said = (record) => ({ review: "band", pass: "passes", reject: "rejects" })[record.verdict];

function advance() {
  queue.shift();
  reasons = new Set();
  words = "";
  draw();
  picture();
  more().then(draw);
  prove();
}

function skip() {
  if (queue.length < 2) return;
  queue.push(queue.shift());
  draw();
  picture();
}

async function undo() {
  const last = done.at(-1);
  if (!last || isBusy) return;
  isBusy = true;
  const withdrawn = await attempt(() => remove(ofLine(`/reviews/${last.record.id}`)));
  isBusy = false;
  if (!withdrawn) return;
  done.pop();
  queue.unshift(last.record);
  if (last.hasImage) images.add(last.record.id);
  if (waiting) waiting[said(last.record)]++;
  draw();
  picture();
  prove();
}

function toggleReason(reason) {
  if (!reasons.delete(reason)) reasons.add(reason);
  draw();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea, summary")) return;
  const isButton = Boolean(event.target.closest("button, a, input"));
  const keys = { g: () => say("good"), b: () => say("flawed"), u: () => say("unclear"), s: skip, z: undo, " ": isButton ? null : map };
  const reason = REASONS[Number(event.key) - 1];
  const run = keys[event.key.toLowerCase()] ?? (reason && !event.target.closest("image-view") ? () => toggleReason(reason) : null);
  if (!run) return;
  event.preventDefault();
  run();
});

function head() {
  const total = waiting ? Object.values(waiting).reduce((sum, number) => sum + number, 0) : 0;
  return html`<div class="head"><h1>Review</h1>
    <span data-testid="review.queue"><strong class="n">${count(total)}</strong> waiting</span>
    <span class="row" role="group" aria-label="Which parts" data-testid="review.filter">
      <button aria-pressed=${draw_ === ""} @click=${() => filter("")}>all</button>
      ${Object.entries(DRAWS).map(([draw, text]) => html`<button aria-pressed=${draw_ === draw} @click=${() => filter(draw)}>${text} <span class="n">${count(waiting?.[draw] ?? 0)}</span></button>`)}</span>
    <label class="check push" title="Verdict, score and map stay hidden, so that they do not sway you"><input type="checkbox" .checked=${isBlind} @change=${(event) => { isBlind = event.target.checked; localStorage.setItem(blindKey, isBlind ? "yes" : "no"); draw(); paint(); }} data-testid="review.blind">blind</label></div>`;
}

function filter(draw) {
  draw_ = draw;
  load();
}

function proof() {
  if (!evidence) return nothing;
  const day = Object.entries(evidence.today).map(([label, number]) => `${number} ${label}`).join(", ");
  return html`<section class="panel" data-testid="review.says"><h2>What this proves so far</h2>
    <p>${evidence.misses.words}</p><p>${evidence.overkill.words}</p>
    <p class="quiet small" data-testid="review.progress">Today: ${day || "none looked at yet"}${evidence.twice ? ` · ${several(evidence.twice, "part")} seen by two people, ${Math.round((100 * evidence.agreed) / evidence.twice)} % agree` : ""}. Only parts drawn at random and judged by the limits in use count.</p></section>`;
}

function draw() {
  const record = current();
  const last = done.at(-1);
  const buttons = html`<div class="row verdicts">
    ${[["good", "Good", "G", "review.good"], ["flawed", "Bad", "B", "review.bad"], ["unclear", "Unsure", "U", "review.unsure"]].map(([label, text, key, id]) => html`<button class="big" ?disabled=${!record} @click=${() => say(label)} data-testid=${id}>${text} <kbd>${key}</kbd></button>`)}
    <button ?disabled=${queue.length < 2} @click=${skip} data-testid="review.skip">Skip <kbd>S</kbd></button>
    <button ?disabled=${!last} @click=${undo} data-testid="review.undo">Undo <kbd>Z</kbd>${last ? html` <span class="quiet">${last.label}</span>` : nothing}</button></div>`;
  render(html`${head()}
    <div class="split review-split">
      <section class="panel viewer">
        ${record ? html`
          <div class="row">${isBlind ? html`<span class="quiet">verdict hidden</span>` : html`${verdict(record.verdict)}<span class="n">${times(record.times_limit)} × limit</span>`}
            <span>part <strong>${nameOf(record)}</strong></span><span class="quiet small">${when(record.received)}${isBlind ? "" : ` · ${DRAWS[said(record)]}, 1 in ${(1 / record.inclusion).toPrecision(3).replace(/\.?0+$/, "")}`}</span>
            ${isBlind ? nothing : html`<span class="push"><button @click=${map} ?disabled=${!images.has(record.id)} data-testid="review.map">Map <kbd>Space</kbd></button></span>`}</div>` : html`<div class="row"></div>`}
        ${record && images.has(record.id) ? nothing : html`<div class="empty"><p class="lead">${record ? "The image was not kept" : waiting ? "Nothing waits" : "…"}</p><p>${record ? `Look at the part itself: ${nameOf(record)}.` : "Parts between the limits come here, and those drawn from passes and rejects (audit_share in the settings)."}</p></div>`}
        <image-view data-main data-testid="review.image" ?hidden=${!(record && images.has(record.id))}></image-view>
        ${buttons}
      </section>
      <div class="stack side">
        <section class="panel" data-testid="review.reason"><h2 class="row"><span>Why <span class="quiet small">optional</span></span> <select aria-label="What labels may be used for" @change=${(event) => { role = event.target.value; }} data-testid="review.role"><option value="calibrate">label may set limits</option><option value="test">label only measures</option></select></h2>
          <div class="row">${REASONS.map((reason, place) => html`<button ?disabled=${!record} aria-pressed=${reasons.has(reason)} @click=${() => toggleReason(reason)}>${reason} <kbd>${place + 1}</kbd></button>`)}</div>
          <input class="wide" type="text" maxlength="500" aria-label="In your words" placeholder="in your words" .value=${words} @input=${(event) => { words = event.target.value; }} ?disabled=${!record}></section>
        <section class="panel compare" data-testid="review.compare"><h2>${compared?.alike?.record ? "For comparison: a part that passed" : "For comparison: a good part"}</h2>
          <image-view data-beside ?hidden=${!compared?.picture}></image-view>
          <p class="quiet small">${!record ? "" : compared?.picture ? `${compared.alike.name}: by colours and detail the most alike of ${compared.alike.record ? `the latest ${several(compared.alike.among, "part")} that passed` : `${several(compared.alike.among, "good image")} taught`}.` : compared ? "There is no good image yet." : "…"}</p></section>
        ${proof()}
      </div>
    </div>`, page);
}

follow({
  inspection: (told) => { if (told.line === line && told.inclusion !== undefined && waiting) { waiting[said(told)]++; if (queue.length < 50 && next === null && (!draw_ || said(told) === draw_)) { queue.push(told); if (told.image) images.add(told.id); if (queue.length === 1) picture(); } draw(); } },
  review: (told) => {
    if (told.line !== line || told.label === null || done.some(({ record }) => record.id === told.record)) return;
    const place = queue.findIndex((record) => record.id === told.record);
    if (place < 0) return;
    gone(queue[place]);
    if (place === 0) {
      if (isBusy) return;
      if (told.who !== who.name || who.name === "local") notify(`Part ${nameOf(queue[0])} was labelled elsewhere: ${told.label}.`);
      advance();
    } else {
      queue.splice(place, 1);
      draw();
    }
  },
  limit: prove,
}, undefined, () => { load(); prove(); });
load();
prove();
