// Run: one verdict large enough for across the hall, the last parts, the shift, and whether all is well.
import { attempt, follow, get, line, notify, ofLine, post, Refusal } from "../api.js";
import { driftView, recordsOf } from "../drift-view.js";
import "../image-view.js";
import { heatOf, imageOf, placeOf } from "../part.js";
import "../rate-chart.js";
import { noModel } from "../no-model.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, inSigns, OUTCOMES, promise, score, several, shape, times, when } from "../words.js";

const page = document.querySelector("#page");
const STRIP = 24;
const HOURS = 8;
const MINUTES = 10;
const IMAGE_PAUSE = 400; // ms between images of a fast line
const HEALTH_PAUSE = 5000; // ms between looks at camera, outputs and drift

let facts = null;
let parts = []; // the latest first, {record, image}
let counts = null;
let pinned = null; // number of a part that somebody looks at; null: the latest
let connection = "lost";
let seen = null; // {id, picture, size, heat}
let camera = null; // null: the line has none
let outputs = [];
let drift = null;
let odd = []; // the first parts that stood out in a drift
let isDriftOpen = location.hash === "#drift";
let asked = null; // whether to pause, while somebody says why
let isLoading = false;

const shown = () => (pinned === null ? parts[0] : parts.find((part) => part.record.id === pinned)) ?? null;

async function load() {
  const [line_, page_, counts_] = await Promise.all([
    attempt(() => get(ofLine(""))),
    attempt(() => get(ofLine(`/inspections?limit=${STRIP}`))),
    attempt(() => get(ofLine(`/counts?since=${new Date(Date.now() - HOURS * 3.6e6).toISOString()}&minutes=${MINUTES}`))),
  ]);
  facts = line_ ?? facts;
  counts = counts_ ?? counts;
  if (page_) {
    const kept = parts.filter((part) => part.record.id === pinned);
    parts = page_.items.map((record) => ({ record, image: page_.images.includes(record.id) }));
    if (pinned !== null && !shown()) parts.push(...kept);
  }
  draw();
  picture();
  await look();
}

/** Look at camera, outputs and drift; what is not answered stays as it was. */
async function look() {
  if (!facts) return;
  const [camera_, outputs_, drift_] = await Promise.all([
    facts.camera ? attempt(() => get(ofLine("/camera"))) : null,
    attempt(() => get(ofLine("/outputs"))),
    facts.ready ? attempt(() => get(ofLine("/drift"))) : null,
  ]);
  [camera, outputs] = [camera_ === undefined ? camera : camera_, outputs_ ?? outputs];
  if (drift_ !== undefined) await learn(drift_);
  draw();
}

async function learn(told) {
  const numbers = isDriftOpen ? (told?.alarm?.first_odd ?? []) : [];
  if (numbers.join() !== odd.map((part) => part.record.id).join()) odd = (await attempt(() => recordsOf(numbers))) ?? [];
  drift = told;
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

function alarms() {
  const stopped = (output) => (output.state === "stopped" ? "takes no more records" : `has failed since ${when(output.failing_since)}`);
  return [
    connection === "lost" ? "No connection to the service. Verdicts shown here are not the latest." : null,
    facts && !facts.ready ? "The line has no model and takes no parts." : null,
    camera?.state === "failing" ? `The camera has failed since ${when(camera.since)}: ${camera.says}. Triggers end in errors: nothing passes.` : null,
    drift?.alarm ? html`Parts are not as they were since ${when(drift.alarm.since)}${drift.alarm.moved.length ? ` (${inSigns(drift.alarm.moved.join(", "))})` : ""}: look at camera, light and parts. <a href="#drift" @click=${openDrift} data-testid="run.why">What is known</a>` : null,
    ...outputs.filter(isFailing).map((output) => `Output ${output.output} ${stopped(output)}${output.last_error ? `: ${output.last_error}` : ""}. Records wait; parts are judged all the same.`),
  ].filter((words) => words !== null);
}

const isFailing = (output) => output.state === "failing" || output.state === "stopped";

function alarm() {
  const words = alarms();
  return words.length ? html`<div class="alarm" role="alert" data-testid="run.alarm">${words.map((text) => html`<p><span aria-hidden="true">■</span> ${text}</p>`)}
    ${drift?.alarm ? html`<form class="row" @submit=${acknowledge}>
      <label class="grow"><span class="hidden">What made parts different</span><input type="text" required minlength="3" maxlength="1000" placeholder="What made parts different, for the audit" data-testid="run.reason"></label>
      <label><span class="hidden">From now on</span><select data-testid="run.reference"><option value="line">parts stay as they are now</option><option value="calibration">it was put right: parts are as they were taught</option></select></label>
      <button data-testid="run.acknowledge">Acknowledge</button></form>` : nothing}</div>` : nothing;
}

/** Somebody knows what made parts different: the test begins anew. */
async function acknowledge(event) {
  event.preventDefault();
  const [reason, reference] = event.target.querySelectorAll("input, select");
  const told = await attempt(() => post(ofLine("/drift/acknowledge"), { reason: reason.value.trim(), reference: reference.value }));
  if (told) {
    notify("Acknowledged: the test of drift begins anew.");
    await learn(told);
  }
  draw();
}

function openDrift(event) {
  event.preventDefault();
  isDriftOpen = true;
  draw(); // it can be scrolled to once it has its height
  toDrift();
  page.querySelector("#drift summary").focus({ preventScroll: true });
}

/** Bring the panel below what stays at the top. */
function toDrift() {
  const [bar, above, panel] = [".bar", ".alarm", "#drift"].map((name) => document.querySelector(name));
  if (!panel) return;
  panel.style.scrollMarginTop = `${bar.offsetHeight + (above?.offsetHeight ?? 0) + 8}px`;
  panel.scrollIntoView({ block: "start" });
}

function driftPanel() {
  if (!drift || drift.state === "no model") return nothing;
  const toggled = (event) => {
    isDriftOpen = event.target.open;
    draw();
    if (isDriftOpen) look();
  };
  return html`<details class="panel below" id="drift" ?open=${isDriftOpen} @toggle=${toggled} data-testid="run.drift">
    <summary><h2>Drift: ${drift.alarm ? html`<span class="reject">■ since ${when(drift.alarm.since)}</span>` : html`<span class="pass">● calm</span>`}</h2></summary>
    ${isDriftOpen ? driftView(drift, odd, show) : nothing}</details>`;
}

/** Look at a part that is named further down. */
function show(id) {
  pin(id);
  scrollTo({ top: 0 });
}

const isPaused = () => camera?.state === "paused";

function pauseBar() {
  return isPaused() ? html`<p class="remark row" data-testid="run.paused"><strong><span aria-hidden="true">▲</span> Paused</strong> <span>since ${when(camera.since)}: ${camera.says.replace(/^paused: /, "")}. The camera takes no pictures. Line told: offline.</span></p>` : nothing;
}

function ask() {
  asked = !isPaused();
  draw();
  page.querySelector("dialog").showModal();
}

async function pause(event) {
  event.preventDefault();
  const order = { paused: asked, reason: event.target.querySelector("input").value.trim() };
  page.querySelector("dialog").close();
  camera = (await attempt(() => post(ofLine("/camera/pause"), order))) ?? camera;
  draw();
}

function dialog() {
  return html`<dialog @close=${() => { asked = null; draw(); }} aria-labelledby="asked">${asked === null ? nothing : html`<form class="stack" @submit=${pause}>
    <h2 id="asked">${asked ? "Pause the camera?" : "Go on?"}</h2>
    <p>${asked ? "It takes no pictures until somebody resumes, also when the service is started anew. Triggers end in errors: nothing passes. The line is told: offline." : "The camera takes pictures again. The line is told: online."}</p>
    <label>Reason, for the audit<input class="wide" type="text" required minlength="3" maxlength="1000" data-testid="run.pause_reason"></label>
    <div class="row"><button type="button" class="push" @click=${() => page.querySelector("dialog").close()}>Cancel</button><button class="primary" data-testid="run.confirm">${asked ? "Pause" : "Resume"}</button></div></form>`}</dialog>`;
}

const MARKS = { pass: "●", review: "▲", reject: "■", quiet: "○" };
const lamp = (kind, words, { id = nothing, isWhole = false } = {}) => html`<li class=${isWhole ? "whole" : ""} data-testid=${id}><span class=${kind} aria-hidden="true">${MARKS[kind]}</span> ${words}</li>`;

const CAMERA = { starting: ["quiet", "is being opened"], running: ["pass", "running"], paused: ["review", "paused"], failing: ["reject", "failing"], ended: ["quiet", "ended"] };

function cameraHealth() {
  const [kind, word] = CAMERA[camera.state];
  const counted = [
    camera.trigger === "free" ? `${camera.rate} pictures a second` : "takes a picture when asked",
    camera.failed ? `${several(camera.failed, "trigger")} without a picture` : "",
    camera.dropped ? `${several(camera.dropped, "picture")} dropped, as parts came too fast` : "",
  ].filter(Boolean);
  return lamp(kind, html`camera <strong>${word}</strong> since ${when(camera.since)}<span class="quiet"> · ${counted.join(" · ")}</span>
    ${camera.state === "failing" ? html`<br><span class="reject">${camera.says}</span>` : camera.diagnosis ? html`<br><span class="quiet small">${camera.diagnosis}</span>` : nothing}`, { id: "health.camera", isWhole: true });
}

function outputHealth(output) {
  const isBad = isFailing(output);
  const counted = [
    `${count(output.delivered)} delivered`,
    output.behind ? `${count(output.behind)} behind` : "",
    output.skipped ? `${count(output.skipped)} left out` : "",
    output.last_delivered_at ? `latest ${when(output.last_delivered_at)}` : "",
  ].filter(Boolean);
  const word = output.state === "failing" ? `failing since ${when(output.failing_since)}` : output.state === "stopped" ? "stopped" : output.behind ? "delivering" : "up to date";
  return lamp(isBad ? "reject" : output.skipped ? "review" : "pass", html`${output.output} <strong>${word}</strong><span class="quiet"> · ${counted.join(" · ")}</span>
    ${output.last_error ? html`<br><span class="small ${isBad ? "reject" : "quiet"}">${isBad ? "" : "last error "}${when(output.last_error_at)}: ${output.last_error}</span>` : nothing}`, { id: "health.output", isWhole: true });
}

function health() {
  if (!counts) return nothing;
  const ok = (isFine, words) => lamp(isFine ? "pass" : "reject", words);
  const free = counts.free_bytes / 2 ** 30;
  return html`<ul class="health" data-testid="run.health">
    ${ok(connection === "live", connection === "live" ? "service live" : "service lost")}
    ${ok(free > 1, html`<span class="n">${free >= 10 ? Math.round(free) : free.toFixed(1)} GB</span> free`)}
    ${counts.milliseconds === null ? nothing : ok(true, html`95 of 100 within <span class="n">${Math.round(counts.milliseconds)} ms</span>`)}
    ${ok(counts.in_work < (facts?.capacity ?? 16), html`<span class="n">${counts.in_work}</span> in work`)}
    ${ok(!counts.dropped, html`<span class="n">${count(counts.dropped)}</span> refused`)}
    ${drift && drift.state !== "no model" ? ok(!drift.alarm, html`<a href="#drift" @click=${openDrift}>drift: ${drift.alarm ? `since ${when(drift.alarm.since)}` : "calm"}</a>`) : nothing}
    ${counts.latest ? html`<li class="quiet">latest part ${when(counts.latest)}</li>` : nothing}
    ${camera ? cameraHealth() : nothing}
    ${outputs.map(outputHealth)}</ul>`;
}

function totals() {
  if (!counts) return nothing;
  const all = OUTCOMES.reduce((sum, each) => sum + counts.verdicts[each], 0);
  return html`<dl class="facts" data-testid="run.counts"><div><dt>inspected, ${HOURS} h</dt><dd>${count(all)}</dd></div>
    ${OUTCOMES.map((each) => html`<div><dt class=${each}>${shape(each)} ${each}</dt><dd data-count=${each}>${count(counts.verdicts[each])}</dd></div>`)}
    <div><dt>refused</dt><dd>${count(counts.dropped)}</dd></div></dl>`;
}

function draw() {
  if (facts && !facts.ready && !parts.length) return render(html`<div class="head"><h1>Run</h1></div>${noModel("Verdicts come here as parts are judged.")}`, page);
  const part = shown();
  const record = part?.record;
  const strip = parts.slice(0, STRIP);
  render(html`
    ${alarm()}
    ${pauseBar()}
    <div class="head"><h1>Run</h1>
      <span class="quiet" data-testid="run.product">${facts?.ready ? html`${facts.product} · ${facts.method} · good parts rejected: about <span class="n">${promise(facts.limit)}</span>` : nothing}</span>
      <span class="push row">${pinned === null ? nothing : html`<button class="primary" @click=${() => pin(null)} data-testid="run.live">Back to the latest</button>`}
      ${camera && camera.state !== "ended" ? html`<button class=${isPaused() ? "primary" : ""} @click=${ask} data-testid="run.pause">${isPaused() ? "Resume" : "Pause"}</button>` : nothing}</span></div>
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
      <div>
        <section class="panel"><div class="row">${totals()}</div></section>
        <section class="panel below"><h2>Rejected of 1,000 parts, by ${MINUTES} minutes</h2>
          <rate-chart class="rate" data-testid="run.rate"></rate-chart>
          <p class="quiet small">Solid grey: the mean. Dashed: what chance leaves (p-chart, three standard deviations). Errors count as rejects.</p></section>
      </div>
      <section class="panel"><h2 class="hidden">Health</h2>${health()}</section>
    </div>
    ${driftPanel()}${dialog()}`, page);
  if (counts) {
    const end = Date.now() / 1000;
    page.querySelector("rate-chart").show(counts.slots, [end - HOURS * 3600, end]);
  }
  if (drift) page.querySelector("drift-chart")?.show(drift);
  return undefined;
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pinned !== null && asked === null) pin(null);
});
/** For an event of this line. */
const mine = (run) => (told) => { if (told.line === line) run(told); };
const cameraTold = mine((told) => {
  camera = told;
  later();
});
follow({ inspection: arrived, limit: load, model: load, drift: mine(look), camera: cameraTold, output: mine(look) }, (state) => {
  const isBack = state === "live" && connection === "lost" && facts;
  connection = state;
  if (isBack) load();
  else if (facts) draw();
}, load);
setInterval(() => { if (!document.hidden) load(); }, 30000);
setInterval(() => { if (!document.hidden && connection === "live") look(); }, HEALTH_PAUSE);
const part = Number(new URLSearchParams(location.search).get("part"));
load().then(() => {
  if (part) pin(part);
  if (isDriftOpen) toDrift();
});
