// Models: versions of the line's model, how one would have judged beside the live one, and who changed what.
import { attempt, follow, get, line, notify, ofLine, post, remove, who } from "../api.js";
import { inWords } from "../audit.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, promise, rates, score, several, shape, times, verdict, when } from "../words.js";

const page = document.querySelector("#page");
const KINDS = { "limit,model,line,drift,camera,output,training,accept": "changes", "": "everything", limit: "limits", model: "models", review: "reviews", picked: "images kept", "teach,training": "teaching", "accept,placed": "acceptance" };
const SHOWN_FLIPS = 60;
const ASK_AGAIN = 5000; // ms, while a shadow judges

let facts = null;
let versions = [];
let studies = []; // StudyFacts, the latest first
let audit = [];
let next = null;
let kind = Object.keys(KINDS)[0];
let flips = null; // {version, shadow: ShadowFacts, images: Set}
let asking = null; // {run, title, text, reason}: what is to be confirmed with a reason
let shadowParts = 500;
let isUploading = false;
let labels = new Map(); // by record, said here
let recalibration = null; // Recalibration
let isPreviewed = false;

const name = (version) => `#${version.number}`;
const live = () => versions.find((version) => version.state === "live") ?? null;
const ofVersion = (version, path = "") => ofLine(`/models/${version.sha256}${path}`);

async function load() {
  const [line_, versions_, studies_] = await Promise.all([attempt(() => get(ofLine(""))), attempt(() => get(ofLine("/models"))), attempt(() => get(ofLine("/acceptance")))]);
  [facts, versions, studies] = [line_ ?? facts, versions_ ?? versions, studies_ ?? studies];
  if (flips) await look(versions.find((version) => version.sha256 === flips.version.sha256), false);
  draw();
  await learnOfAudit();
}

/** What the parts of the random audit say of the limits; nothing where the line has no model. */
async function learnOfAudit() {
  recalibration = live() && facts?.ready ? ((await attempt(() => get(ofLine("/recalibration")))) ?? recalibration) : null;
  draw();
}

async function reload() {
  await load();
  await first();
}

const first = () => older(null);

/** Entries of the audit before a cursor, null: the latest; what was asked before the list became another one is passed over. */
async function older(from = next) {
  const of = kind;
  const query = new URLSearchParams([["line", line], ["limit", 30], ...of.split(",").filter(Boolean).map((each) => ["kind", each]), ...(from === null ? [] : [["cursor", from]])]);
  const told = await attempt(() => get(`/v1/audit?${query}`));
  if (!told || of !== kind || (from !== null && from !== next)) return;
  audit = [...(from === null ? [] : audit), ...told.items];
  next = told.next;
  draw();
}

/** Look at the parts of which a shadow said something else. */
async function look(version, isNew = true) {
  if (!version?.shadow) return;
  const shadow = await attempt(() => get(ofVersion(version, `/shadow?limit=${SHOWN_FLIPS}`)));
  if (!shadow) return;
  const before = isNew ? null : flips;
  const images = new Set(before?.images);
  const seen = new Set(before?.shadow.flipped.map((flip) => flip.record));
  const unknown = shadow.flipped.filter((flip) => !seen.has(flip.record));
  await Promise.all(unknown.map(async ({ record }) => {
    const told = await attempt(() => get(ofLine(`/inspections?cursor=${record + 1}&limit=1`)));
    if (told?.images.includes(record)) images.add(record);
  }));
  if (!isNew && flips !== before) return; // closed, or another one was opened
  flips = { version, shadow, images };
  draw();
  if (isNew) page.querySelector("[data-testid='models.flips']")?.scrollIntoView({ block: "nearest" });
}

async function upload(files) {
  const file = [...files].find((each) => each.name.endsWith(".flaw"));
  if (!file) return notify("That is no model file: choose a .flaw file.", { isBad: true });
  isUploading = true;
  draw();
  const added = await attempt(() => post(ofLine("/models"), file, { headers: { "Content-Type": "application/octet-stream" } }), "The model was not taken: ");
  isUploading = false;
  await load();
  if (added) notify(`Model ${name(added)} is here, and judges nothing yet.`);
  return undefined;
}

async function shadow(version) {
  if (await attempt(() => post(ofVersion(version, "/shadow"), { parts: shadowParts }))) {
    await load();
    await look(versions.find((each) => each.sha256 === version.sha256));
  }
}

async function stop(version) {
  await attempt(() => remove(ofVersion(version, "/shadow")));
  await load();
}

/** Ask for a reason before something that changes the line. */
function ask(question) {
  asking = { reason: "", ...question };
  draw();
  page.querySelector("dialog").showModal();
}

async function confirmed(event) {
  event.preventDefault();
  const { run, reason, done } = asking;
  page.querySelector("dialog").close();
  const told = await attempt(() => run(reason.trim()));
  if (told) notify(done);
  await load();
}

const activate = (version) => ask({
  title: `Make ${name(version)} live?`,
  text: `Parts that are taken from then on are judged by ${name(version)}: good parts rejected: about ${promise(version.limit)}.${version.shadow?.parts ? ` As a shadow it judged ${several(version.shadow.parts, "part")}, ${count(sum(version.shadow.flips))} of them differently.` : " It has not judged beside the line yet; a shadow run would show what changes."}`,
  done: `${name(version)} is live.`,
  run: (reason) => post(ofVersion(version, "/activate"), { reason, expected: live()?.sha256 ?? null }),
});

const rollBack = () => ask({
  title: "Back to the version before?",
  text: "The version that was live before judges again, with the limits that it had.",
  done: "The version before is live again.",
  run: (reason) => post(ofLine("/models/rollback"), { reason, expected: live()?.sha256 ?? null }),
});

const recalibrate = () => ask({
  title: "Set the limits by audited parts?",
  text: `Good parts rejected: ${recalibration.preview.after.promise}. They rest on ${several(recalibration.parts, "part")} of this line instead of images of the model file. Back to the limits before leads back, on the Limit page.`,
  done: "The limits rest on audited parts now.",
  run: (reason) => post(ofLine("/recalibration"), { reason, expected: recalibration.preview.after.limits }),
});

async function say(record, label) {
  if (await attempt(() => post(ofLine(`/reviews/${record}`), { label, role: "test", comment: "seen as a flip of a shadow" }))) labels.set(record, label);
  draw();
}

const GRADES = { acceptable: "pass", marginal: "review", "not acceptable": "reject" };

/** What the latest study of a version that was signed has shown. */
function accepted(version) {
  const study = studies.find((each) => each.signed && each.model_sha256 === version.sha256);
  if (!study) return html`<span class="quiet">–</span>`;
  const { grade } = study.result;
  return html`<a href="/studio/lines/${line}/accept">${grade ? html`<span class="verdict ${GRADES[grade]}">${shape(GRADES[grade])}${grade}</span>` : "not complete"}</a><br><span class="quiet small">${when(study.ended)}</span>`;
}

const sum = (counts) => Object.values(counts).reduce((total, number) => total + number, 0);
const change = (text) => text.split(" -> ");

function summary({ shadow: run }) {
  if (!run) return html`<span class="quiet">–</span>`;
  const flipped = sum(run.flips);
  return html`<span class="n">${count(run.parts)}</span> parts${run.ended ? "" : html` of ${count(run.asked)}`}, <strong class="n">${several(flipped, "flip")}</strong>${run.ended && run.ended !== "complete" ? html`<br><span class="quiet small">${run.ended}</span>` : nothing}`;
}

const STATES = { live: html`<span class="state pass">● live</span>`, shadow: html`<span class="state review">▲ shadow</span>`, kept: html`<span class="quiet">kept</span>` };

function row(version) {
  const isLive = version.state === "live";
  return html`<tr data-testid="models.row" data-number=${version.number} data-state=${version.state}>
    <th scope="row"><strong>${name(version)}</strong><br><span class="quiet small n">${when(version.came)}</span></th>
    <td>${version.method} <span class="quiet">${version.preset}</span><br><span class="quiet small">${version.product} · ${several(version.learned_from, "image")}</span></td>
    <td class="n-left">${rates(version.limit)[0]} <span class="quiet">(${rates(version.limit)[1]})</span></td>
    <td>${summary(version)}</td><td>${accepted(version)}</td><td>${STATES[version.state] ?? version.state}</td>
    <td><div class="row actions">
      ${version.shadow ? html`<button @click=${() => look(version)} data-testid="models.compare">Flips</button>` : nothing}
      ${isLive ? nothing : version.state === "shadow"
        ? html`<button ?disabled=${!who.isEngineer} @click=${() => stop(version)} data-testid="models.stop">Stop</button>`
        : html`<button ?disabled=${!who.isEngineer || !live()} @click=${() => shadow(version)} data-testid="models.shadow" title="judge the next ${count(shadowParts)} parts beside the line">Shadow</button>`}
      ${isLive ? nothing : html`<button class="primary" ?disabled=${!who.isEngineer} @click=${() => activate(version)} data-testid="models.activate">Activate</button>`}
      ${who.isEngineer ? html`<a class="button" href=${ofVersion(version, "/file")} download data-testid="models.export">Download</a>` : nothing}</div></td></tr>`;
}

function table() {
  return html`<section class="panel" data-testid="models.table">
    ${versions.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Versions"><table>
      <thead><tr><th scope="col">model</th><th scope="col">learned</th><th scope="col">good parts rejected,<br>of 1,000 (at worst)</th><th scope="col">beside the line</th><th scope="col">accepted</th><th scope="col">state</th><th scope="col"><span class="hidden">actions</span></th></tr></thead>
      <tbody>${versions.map(row)}</tbody></table></div>
      ${versions.length > 1 && who.isEngineer ? html`<p class="row small"><label>A shadow judges the next <input class="narrow" type="number" min="1" max="1000000" .value=${String(shadowParts)} @change=${(event) => { shadowParts = Math.max(1, Math.min(1e6, Math.round(Number(event.target.value)) || 500)); draw(); }} data-testid="models.parts"> parts</label> <span class="quiet">beside the line; it delays nothing, and its verdicts go nowhere.</span></p>` : nothing}`
    : html`<div class="empty"><p class="lead">The line has no model yet</p><p>Bring a model file here${document.body.dataset.first === "teach" ? html`, or <a href="/studio/lines/${line}/teach">teach the line</a>` : ""}.</p></div>`}</section>`;
}

function others() {
  const { flawed, unclear, kept, later } = recalibration;
  return [
    flawed ? `${count(flawed)} flawed` : "", unclear ? `${count(unclear)} unsure` : "", kept ? `${count(kept)} kept to measure with` : "",
    later ? `${count(later)} wait for parts before them in Review` : "",
  ].filter(Boolean).join(", ");
}

/** Limits from parts of the random audit, beside those in use. */
function recalibrationPanel() {
  if (!recalibration || (!recalibration.parts && !recalibration.later)) return nothing;
  const { parts, days, fewest, in_use: isInUse, preview, why_not: whyNot, flaws, flaws_caught: caught } = recalibration;
  const changes = preview ? Object.entries(preview.changes) : [];
  return html`<section class="panel" data-testid="models.hint">
    <div class="row"><span><strong>${several(parts, "good part")} of the random audit</strong>${parts ? ` from ${several(days, "day")}` : ""} ${parts === 1 ? "was" : "were"} looked at${isInUse ? "; the limits rest on them." : preview ? "; the limits could rest on them." : `; from ${count(fewest)} on limits can rest on them.`}</span>
      ${preview && !isInUse ? html`<button class="push" aria-expanded=${isPreviewed} @click=${() => { isPreviewed = !isPreviewed; draw(); }} data-testid="recal.preview">${isPreviewed ? "Hide" : "Preview"}</button>` : nothing}</div>
    ${isPreviewed && preview && !isInUse ? html`
      <div class="scroll" data-testid="recal.before_after"><table class="figures"><thead><tr><td></td><th scope="col">in use</th><th scope="col">from audited parts</th></tr></thead><tbody>
        <tr><th scope="row">good parts rejected, of 1,000</th><td>${rates(preview.before)[0]} <span class="quiet">(at worst ${rates(preview.before)[1]})</span></td><td>${rates(preview.after)[0]} <span class="quiet">(at worst ${rates(preview.after)[1]})</span></td></tr>
        <tr><th scope="row">limit</th><td class="n-left">${score(preview.before.limit)}</td><td class="n-left">${score(preview.after.limit)}</td></tr>
        <tr><th scope="row">good images behind it</th><td>${count(preview.before.good_images)}</td><td>${count(preview.after.good_images)}</td></tr>
        ${flaws ? html`<tr><th scope="row">known flaws rejected</th><td>${caught[0]} of ${flaws}</td><td>${caught[1]} of ${flaws}</td></tr>` : nothing}
        <tr><th scope="row">latest ${several(preview.recent, "part")}</th><td></td><td>${changes.length ? changes.map(([text, number]) => html`<span class="change">${verdict(change(text)[0])} → ${verdict(change(text)[1])} <strong class="n">${count(number)}</strong></span>`) : "no verdict changes"}</td></tr>
      </tbody></table></div>
      <div class="row"><button class="primary" ?disabled=${!who.isEngineer} @click=${recalibrate} data-testid="recal.apply">Use these limits …</button></div>` : nothing}
    <p class="quiet small">Parts drawn at random alone count, whatever the line said of them; what waits in Review because of its score never does.${others() ? ` Of the same draw: ${others()}.` : ""}${!preview && whyNot.includes("zones") ? ` ${whyNot}.` : ""}</p></section>`;
}

function flip(each) {
  const said = labels.get(each.record);
  const [live_, number] = [live()?.sha256 === flips.version.sha256 ? "before" : name(live() ?? flips.version), name(flips.version)];
  return html`<li class="flip" data-record=${each.record}>
    <a href="/studio/lines/${line}/run?part=${each.record}">${flips.images.has(each.record) ? html`<img loading="lazy" src=${ofLine(`/inspections/${each.record}/image?width=320`)} alt="part ${each.record}" width="160" height="120">` : html`<span class="no-image">image not kept</span>`}</a>
    <div class="small">${live_} ${verdict(each.before)} <span class="quiet">→</span> ${number} ${verdict(each.after)} <span class="quiet n">${times(each.times_limit)} × limit</span></div>
    <div class="row"><button aria-pressed=${said === "good"} @click=${() => say(each.record, "good")} aria-label="part ${each.record} is good">Good</button><button aria-pressed=${said === "flawed"} @click=${() => say(each.record, "flawed")} aria-label="part ${each.record} is bad">Bad</button></div></li>`;
}

function flipsPanel() {
  if (!flips) return nothing;
  const { shadow: run, version } = flips;
  return html`<section class="panel" data-testid="models.flips"><div class="row"><h2>What ${name(version)} said differently</h2><button class="push plain" @click=${() => { flips = null; draw(); }}>Close</button></div>
    <p>${several(run.parts, "part")} judged by both${run.missed ? html`, ${count(run.missed)} missed` : nothing}: ${Object.keys(run.flips).length ? Object.entries(run.flips).map(([text, number]) => html`<span class="change">${verdict(change(text)[0])} → ${verdict(change(text)[1])} <strong class="n">${count(number)}</strong></span>`) : html`<strong>every verdict was the same</strong>.`}
      ${run.milliseconds.p95 === undefined ? nothing : html`<span class="quiet small">95 of 100 within ${Math.round(run.milliseconds.p95)} ms, on one thread.</span>`}</p>
    <ul class="flips">${run.flipped.map(flip)}</ul></section>`;
}

function dialog() {
  return html`<dialog @close=${() => { asking = null; draw(); }} aria-labelledby="asked">${asking ? html`<form class="stack" @submit=${confirmed}>
    <h2 id="asked">${asking.title}</h2><p>${asking.text}</p>
    <label>Reason, for the audit<input class="wide" type="text" required minlength="3" maxlength="1000" .value=${asking.reason} @input=${(event) => { asking.reason = event.target.value; }} data-testid="models.reason"></label>
    <div class="row"><button type="button" class="push" @click=${() => page.querySelector("dialog").close()}>Cancel</button><button class="primary" data-testid="models.confirm">Confirm</button></div></form>` : nothing}</dialog>`;
}

function draw() {
  render(html`<div class="head"><h1>Models</h1>
      ${facts?.ready === false && versions.length ? html`<span class="state reject">■ the line has no model and takes no parts</span>` : nothing}
      <span class="push row">${who.isEngineer ? html`
        <button ?disabled=${versions.length < 2} @click=${rollBack} data-testid="models.rollback">Roll back</button>
        <label class="button ${isUploading ? "busy" : ""}">${isUploading ? "Checking the model …" : "Add a model file"}<input type="file" accept=".flaw" class="hidden" ?disabled=${isUploading} @change=${(event) => { const files = [...event.target.files]; event.target.value = ""; upload(files); }} data-testid="models.upload"></label>` : nothing}</span></div>
    <div class="stack">${recalibrationPanel()}${table()}${flipsPanel()}
    <section class="panel" data-testid="models.audit"><div class="row"><h2>Who did what</h2>
      <label class="push">Show <select @change=${(event) => { kind = event.target.value; first(); }}>${Object.entries(KINDS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></label></div>
      <div class="scroll" tabindex="0" role="region" aria-label="Audit"><table><thead><tr><th scope="col">when</th><th scope="col">who</th><th scope="col">what</th></tr></thead>
      <tbody>${audit.map((entry) => html`<tr><td class="when">${when(entry.at)}</td><td>${entry.who}</td><td>${inWords(entry)}</td></tr>`)}</tbody></table></div>
      ${audit.length ? nothing : html`<p class="quiet">Nothing yet.</p>`}
      ${next === null ? nothing : html`<button @click=${() => older()} data-testid="models.older">Older</button>`}
      <p class="quiet small">Entries are never changed or removed; <code>flawsmith audit verify</code> checks that.</p></section></div>${dialog()}`, page);
}

follow({ limit: reload, model: reload, line: reload }, undefined, reload);
setInterval(() => { if (!document.hidden && versions.some((version) => version.state === "shadow")) load(); }, ASK_AGAIN);
reload();
