// Run: one verdict large enough for across the hall, the last parts, the shift, and whether all is well.
import { attempt, follow, get, line, ofLine, post, Refusal } from "../api.js";
import "../image-view.js";
import { heatOf, imageOf, placeOf } from "../part.js";
import "../rate-chart.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, of1000, OUTCOMES, score, shape, times, verdict, when } from "../words.js";

const page = document.querySelector("#page");
const STRIP = 24;
const HOURS = 8;
const MINUTES = 10;
const IMAGE_PAUSE = 400; // ms between images of a fast line

let facts = null;
let parts = []; // the latest first, {record, image}
let counts = null;
let pinned = null; // number of a part that somebody looks at; null: the latest
let connection = "lost";
let seen = null; // {id, picture, size, heat}
let drift = null;
let isLoading = false;

const shown = () => (pinned === null ? parts[0] : parts.find((part) => part.record.id === pinned)) ?? null;

async function load() {
  const [line_, page_, counts_] = await Promise.all([
    attempt(() => get(ofLine(""))),
    attempt(() => get(ofLine(`/inspections?limit=${STRIP}`))),
    attempt(() => get(ofLine(`/counts?since=${new Date(Date.now() - HOURS * 3.6e6).toISOString()}&minutes=${MINUTES}`))),
  ]);
  if (document.body.dataset.drift === "true" && line_?.ready) drift = (await attempt(() => get(ofLine("/drift")))) ?? drift;
  facts = line_ ?? facts;
  counts = counts_ ?? counts;
  if (page_) {
    const kept = parts.filter((part) => part.record.id === pinned);
    parts = page_.items.map((record) => ({ record, image: page_.images.includes(record.id) }));
    if (pinned !== null && !shown()) parts.push(...kept);
  }
  draw();
  picture();
}

async function pin(id) {
  pinned = id;
  if (id !== null && !shown()) {
    const record = await attempt(() => get(ofLine(`/inspections/${id}`)));
    const around = record && (await attempt(() => get(ofLine(`/inspections?cursor=${id + 1}&limit=1`))));
    if (record) parts.push({ record, image: around?.images.includes(id) ?? false });
    else pinned = null;
  }
  draw();
  picture();
}

function arrived(told) {
  if (told.line !== line) return;
  const { image, ...record } = told;
  if (parts.some((part) => part.record.id === record.id)) return;
  parts = [{ record, image }, ...parts.filter((part, place) => place < STRIP - 1 || part.record.id === pinned)];
  if (counts) {
    counts.verdicts[record.verdict]++;
    counts.latest = record.received;
    const begin = Math.floor(Date.parse(record.received) / 1000 / (60 * MINUTES)) * 60 * MINUTES;
    let slot = counts.slots.at(-1);
    if (slot?.begin !== begin) counts.slots.push((slot = { begin, verdicts: {} }));
    slot.verdicts[record.verdict] = (slot.verdicts[record.verdict] ?? 0) + 1;
  }
  later();
}

let due = false;
/** A fast line's page is drawn once a frame. */
function later() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
    picture();
  });
}

/** Load the image of the part that is shown; while one is on its way, the next one is whatever is shown then. */
async function picture() {
  if (isLoading) return;
  isLoading = true;
  for (let part; (part = shown()) && seen?.id !== part.record.id; ) {
    const { id } = part.record;
    const image = part.image ? await imageOf(id).catch(() => null) : null;
    seen = { id, heat: null, ...image };
    paint();
    draw();
    if (pinned === null) await new Promise((wake) => setTimeout(wake, IMAGE_PAUSE));
  }
  isLoading = false;
}

function paint() {
  const part = shown();
  const view = page.querySelector("image-view");
  if (!view || !part) return;
  if (!seen?.picture || seen.id !== part.record.id) return void view.show(null);
  const { record } = part;
  view.show({ ...seen, limit: record.limit, regions: record.regions, label: `part ${name(record)}: ${record.verdict}` });
}

async function map() {
  if (!seen?.picture) return;
  try {
    seen.heat = seen.heat ? null : await heatOf(seen.id);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    await attempt(() => { throw error; });
  }
  paint();
  draw();
}

const name = (record) => record.part_id ?? record.name ?? `number ${record.id}`;

function bigVerdict(part) {
  if (!part) return html`<div class="verdict-big quiet" data-testid="run.verdict"><span class="word">No part yet</span><p>${facts?.ready === false ? "The line has no model." : html`Parts come over HTTP (<code>POST /v1/lines/${line}/inspections</code>), or from a watched folder.`}</p></div>`;
  const { record } = part;
  const region = record.regions?.[0];
  const look = region && seen?.id === record.id && seen.size ? `look: ${placeOf(region, seen.size)}${region.zone ? ` (${region.zone})` : ""}` : "";
  return html`<div class="verdict-big ${record.verdict}" data-testid="run.verdict" data-verdict=${record.verdict} aria-live="polite">
    <span class="mark">${shape(record.verdict)}</span><span class="word">${record.verdict}</span>
    <p>${record.verdict === "error" ? html`${record.error}<br><strong>Treat it as a reject.</strong>` : look}</p></div>`;
}

function alarm() {
  const words = [
    connection === "lost" ? "No connection to the service. Verdicts shown here are not the latest." : "",
    drift?.alarm ? `Parts are not as they were since ${when(drift.alarm.since)}${drift.alarm.moved.length ? ` (${drift.alarm.moved.join(", ")})` : ""}: look at camera, light and parts.` : "",
    facts && !facts.ready ? "The line has no model and takes no parts." : "",
  ].filter(Boolean);
  return words.length ? html`<div class="alarm" role="alert" data-testid="run.alarm">${words.map((text) => html`<p>■ ${text}</p>`)}
    ${drift?.alarm ? html`<form class="row" @submit=${known}><label class="grow"><span class="hidden">What it was</span><input type="text" required minlength="3" maxlength="1000" placeholder="What it was, for the audit" data-testid="run.reason"></label><button data-testid="run.known">Begin anew</button></form>` : nothing}</div>` : nothing;
}

/** Somebody knows what made parts different: the test begins anew. */
async function known(event) {
  event.preventDefault();
  const input = event.target.querySelector("input");
  drift = (await attempt(() => post(ofLine("/drift/acknowledge"), { reason: input.value }))) ?? drift;
  draw();
}

function health() {
  const ok = (isFine, text) => html`<li><span class=${isFine ? "pass" : "reject"}>${isFine ? "●" : "■"}</span> ${text}</li>`;
  if (!counts) return nothing;
  const free = counts.free_bytes / 2 ** 30;
  return html`<ul class="health" data-testid="run.health">
    ${ok(connection === "live", connection === "live" ? "service live" : "service lost")}
    ${ok(free > 1, html`<span class="n">${free >= 10 ? Math.round(free) : free.toFixed(1)} GB</span> free`)}
    ${counts.milliseconds === null ? nothing : ok(true, html`95 of 100 within <span class="n">${Math.round(counts.milliseconds)} ms</span>`)}
    ${ok(counts.in_work < (facts?.capacity ?? 16), html`<span class="n">${counts.in_work}</span> in work`)}
    ${ok(!counts.dropped, html`<span class="n">${count(counts.dropped)}</span> refused`)}
    ${drift ? ok(!drift.alarm, drift.alarm ? "drift" : "drift: calm") : nothing}
    ${counts.latest ? html`<li class="quiet">latest part ${when(counts.latest)}</li>` : nothing}</ul>`;
}

function totals() {
  if (!counts) return nothing;
  const all = OUTCOMES.reduce((sum, each) => sum + counts.verdicts[each], 0);
  return html`<dl class="facts" data-testid="run.counts"><div><dt>inspected, ${HOURS} h</dt><dd>${count(all)}</dd></div>
    ${OUTCOMES.map((each) => html`<div><dt class=${each}>${shape(each)} ${each}</dt><dd data-count=${each}>${count(counts.verdicts[each])}</dd></div>`)}
    <div><dt>refused</dt><dd>${count(counts.dropped)}</dd></div></dl>`;
}

function draw() {
  const part = shown();
  const record = part?.record;
  const strip = parts.slice(0, STRIP);
  render(html`
    ${alarm()}
    <div class="head"><h1>Run</h1>
      <span class="quiet" data-testid="run.product">${facts?.ready ? html`${facts.product} · ${facts.method} · rejects about <strong class="n">${of1000(facts.limit.rejected_of_1000 / 1000)}</strong> of 1,000 good parts, at worst ${of1000(facts.limit.rejected_of_1000_at_worst / 1000, { up: true })}` : nothing}</span>
      <span class="push row">${pinned === null ? nothing : html`<button class="primary" @click=${() => pin(null)} data-testid="run.live">Back to the latest</button>`}</span></div>
    <div class="run">
      <section class="panel">${bigVerdict(part)}</section>
      <section class="panel viewer" data-testid="run.image">
        <image-view ?hidden=${!part?.image}></image-view>
        ${part && !part.image ? html`<div class="empty"><p>${record.verdict === "error" ? "There is no image that could be shown." : "The image of this part was not kept. Of passes a share is kept (Settings)."}</p></div>` : nothing}
        <div class="row small">${record ? html`<span>part <strong>${name(record)}</strong></span><span class="quiet">${when(record.received)}</span><span class="n">${record.times_limit === null || record.times_limit === undefined ? `score ${score(record.score)}` : `${times(record.times_limit)} × limit`}</span>
          <span class="push"></span>${part.image ? html`<button @click=${map} aria-pressed=${Boolean(seen?.heat)} data-testid="run.map">Map</button>` : nothing}` : nothing}</div>
      </section>
    </div>
    <ol class="strip" data-testid="run.strip" aria-label="The last ${STRIP} parts, the latest first">
      ${strip.map(({ record: each }) => html`<li><button class="plain ${each.verdict}" aria-pressed=${each.id === pinned} @click=${() => pin(each.id === pinned ? null : each.id)} title="${name(each)}, ${when(each.received)}" aria-label="${each.verdict}, part ${name(each)}">${shape(each.verdict)}</button></li>`)}</ol>
    <div class="columns wide-left">
      <section class="panel"><div class="row">${totals()}</div></section>
      <section class="panel"><h2 class="hidden">Health</h2>${health()}</section>
    </div>
    <section class="panel below"><h2>Rejected of 1,000 parts, by ${MINUTES} minutes</h2>
      <rate-chart class="rate" data-testid="run.rate"></rate-chart>
      <p class="quiet small">Solid grey: the mean. Dashed: what chance leaves (p-chart, three standard deviations). Errors count as rejects.</p></section>`, page);
  if (counts) {
    const end = Date.now() / 1000;
    page.querySelector("rate-chart").show(counts.slots, [end - HOURS * 3600, end]);
  }
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pinned !== null) pin(null);
});
follow({ inspection: arrived, limit: load, model: load, drift: load }, (state) => {
  const isBack = state === "live" && connection === "lost" && facts;
  connection = state;
  if (isBack) load();
  else if (facts) draw();
}, load);
setInterval(() => { if (!document.hidden) load(); }, 30000);
const asked = Number(new URLSearchParams(location.search).get("part"));
load().then(() => { if (asked) pin(asked); });
