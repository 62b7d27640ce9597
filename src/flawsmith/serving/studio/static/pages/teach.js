// Teach: images of good parts, what they support, and which of them to look at.
import { attempt, follow, get, line, notify, ofLine, patch, post, who } from "../api.js";
import { filesOf } from "../files.js";
import "../region-editor.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, several } from "../words.js";

const page = document.querySelector("#page");
const UPLOADS = 3; // at a time
const SHOWN = 60;
const MOST_LISTED = 500; // images at a time
const MOST_NAMED = 100; // images of a finding or a remark that are shown
const ROLES = { learn: "learn", calibrate: "calibrate", flawed: "flawed", "left-out": "left out", "not-good": "not good" };
const SORTS = { oddest: "oddest first", name: "by name", newest: "newest first" };
const GROUPINGS = { auto: "as it comes", day: "day", folder: "folder", name: "file name", none: "nothing" };

let facts = null; // TeachFacts
let shown = { items: [], total: 0, next: null };
let filter = { role: "good", group: null, sort: "oddest", only: null };
let upload = null; // {done, total, added, known, flawed, refused: [...]}
let isOver = false;
let isTaking = false;
let looked = null; // the image in the dialog
let listing = 0; // of the latest question for images

const thumbnail = (id) => ofLine(`/teach/images/${id}/thumbnail`);
const scaled = (id, width) => ofLine(`/teach/images/${id}?width=${width}`); // whatever the file is, a browser shows it

// What is known

async function load() {
  const told = await attempt(() => get(ofLine("/teach")));
  if (told) facts = told;
  await list();
}

async function list(more = false) {
  const asked = ++listing;
  const limit = filter.only ? MOST_NAMED : more ? SHOWN : Math.min(MOST_LISTED, Math.max(SHOWN, shown.items.length)); // what was unfolded stays
  const query = new URLSearchParams({ sort: filter.sort, limit, cursor: more ? shown.next : 0 });
  const roles = filter.only ? [] : filter.role === "good" ? ["learn", "calibrate"] : filter.role === "all" ? [] : [filter.role];
  roles.forEach((role) => query.append("role", role));
  filter.only?.ids.slice(0, MOST_NAMED).forEach((id) => query.append("image", id));
  if (filter.group !== null && !filter.only) query.set("group", filter.group);
  const told = await attempt(() => get(ofLine(`/teach/images?${query}`)));
  if (!told || asked !== listing) return;
  shown = { ...told, items: more ? [...shown.items, ...told.items] : told.items };
  draw();
}

// While the server works on something, it is asked again; events tell of what other people do.
let asking = null;
function ask() {
  clearTimeout(asking);
  const isBusy = facts && (!facts.checked || (facts.adding && !facts.adding.is_over) || shown.items.some((image) => !image.look && !image.unreadable));
  if (isBusy && !document.hidden) asking = setTimeout(refresh, 1000);
}
async function refresh() {
  if (!upload) await load();
  else ask();
}
let soon = null;
const changed = (told) => {
  if (told.line !== line || upload) return;
  clearTimeout(soon);
  soon = setTimeout(load, 150);
};

// Adding images

async function add(files, role = "learn") {
  if (!files.length || upload) return;
  upload = { done: 0, total: files.length, added: 0, known: 0, flawed: 0, refused: [] };
  draw();
  const waiting = [...files];
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { file, folder } = next;
      const isArchive = /\.zip$/i.test(file.name);
      const query = new URLSearchParams(isArchive ? { name: file.name, role } : { name: file.name, folder, role, modified: (file.lastModified || Date.now()) / 1000 });
      try {
        const told = await post(ofLine(`/teach/${isArchive ? "archives" : "images"}?${query}`), file);
        if (isArchive) upload.archives = (upload.archives ?? 0) + 1;
        else upload[told.outcome] += 1;
        if (told.outcome === "added" && told.role === "flawed" && role !== "flawed") upload.flawed += 1;
      } catch (error) {
        upload.refused.push(isArchive ? `${file.name}: ${error.message}` : error.message);
      }
      upload.done += 1;
      draw();
    }
  };
  await Promise.all(Array.from({ length: UPLOADS }, work));
  const { added, known, flawed, refused, archives } = upload;
  upload = null;
  const parts = [added ? `${several(added, "image")} added` : "", flawed ? `${count(flawed)} of them as flawed, as their folders are called` : "", known ? `${count(known)} known already` : "", archives ? "the archive is being unpacked" : ""].filter(Boolean);
  if (parts.length) notify(`${parts.join(", ")}.`);
  if (refused.length) notify(`${several(refused.length, "file")} not taken: ${refused.slice(0, 3).join("; ")}${refused.length > 3 ? " …" : ""}`, { isBad: true });
  await load();
}

async function addFolder(event) {
  event.preventDefault();
  const path = event.target.elements.path.value.trim();
  if (path && (await attempt(() => post(ofLine("/teach/folders"), { path, role: "learn" })))) await load();
}

async function takePicture() {
  isTaking = true;
  draw();
  const told = await attempt(() => post(ofLine("/teach/camera")));
  isTaking = false;
  if (told?.outcome === "known") notify("The camera gave the same picture as before; it is there already.");
  await load();
  page.querySelector("[data-testid='teach.camera']")?.focus(); // for the next part
}

const pick = (role, isFolder = false) => () => {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true });
  if (isFolder) input.webkitdirectory = true;
  else input.accept = "image/*,.zip,.tif,.tiff,.bmp,.pgm,.ppm,.jp2";
  input.addEventListener("change", () => add([...input.files].map((file) => ({ file, folder: (file.webkitRelativePath || "").split("/").slice(0, -1).join("/") })), role));
  input.click();
};

// Roles

async function assign(images, role) {
  const before = new Map(images.map((id) => [id, [...shown.items, ...facts.oddest].find((image) => image.id === id)?.role ?? "learn"]));
  const told = await attempt(() => post(ofLine("/teach/roles"), { images, role }));
  if (!told) return;
  await load();
  if (!told.moved.length) return;
  const undo = async () => {
    for (const old of new Set(before.values())) await attempt(() => post(ofLine("/teach/roles"), { images: images.filter((id) => before.get(id) === old), role: old }));
    await load();
  };
  notify(`${several(told.moved.length, "image")}: ${ROLES[role]}${role === "not-good" ? ". Kept, and never learned from" : ""}.`, { action: ["Undo", undo] });
}

async function confirmGood(image) {
  if (await attempt(() => post(ofLine("/teach/confirmed"), { images: [image.id] }))) await load();
}

async function change(body) {
  const told = await attempt(() => patch(ofLine("/teach"), body));
  if (told) await load();
  return told;
}

// Dialogs

async function openRegion() {
  const images = await attempt(() => get(ofLine("/teach/images?sort=name&limit=1&role=learn&role=calibrate")));
  if (!images?.items.length) return notify("Add an image first, to draw on.");
  const dialog = document.querySelector("#region");
  const editor = dialog.querySelector("region-editor");
  dialog.showModal();
  const isShown = await editor.show(scaled(images.items[0].id, 2400), facts.region).then(() => true, () => false);
  if (isShown) return editor.querySelector("canvas").focus();
  dialog.close();
  return notify("This image cannot be shown to draw on.", { isBad: true });
}

async function keepRegion() {
  const editor = document.querySelector("region-editor");
  if (editor.isOpen) return notify("Close the shape that you have begun, or take its corners back.");
  if (await change({ region: editor.drawing ?? "everywhere" })) document.querySelector("#region").close();
  return undefined;
}

function look(image) {
  looked = image;
  draw();
  document.querySelector("#look").showModal();
}

// The page

const icons = {
  error: html`<svg viewBox="0 0 16 16" role="img" aria-label="error"><rect x="1" y="1" width="14" height="14"/></svg>`,
  warning: html`<svg viewBox="0 0 16 16" role="img" aria-label="warning"><path d="M8 1 15.5 15H.5z"/></svg>`,
  note: html`<svg viewBox="0 0 16 16" role="img" aria-label="note"><circle cx="8" cy="8" r="7"/></svg>`,
};

const dropZone = () => {
  const job = facts.adding && !facts.adding.is_over ? facts.adding : null;
  const done = upload ? [upload.done, upload.total] : job ? [job.done, job.total] : null;
  return html`
  <section class="drop ${isOver ? "over" : ""}" data-testid="teach.drop" aria-label="Add images">
    <svg class="sign" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 15V4m0 0L7.5 8.5M12 4l4.5 4.5M4 15v4a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-4"/></svg>
    <div class="row"><strong>Drop images of <em>good</em> parts, folders or a zip</strong>
      <button type="button" ?disabled=${!who.isEngineer || upload} data-testid="teach.files" @click=${pick("learn")}>Choose images</button>
      <button type="button" ?disabled=${!who.isEngineer || upload} @click=${pick("learn", true)}>Choose a folder</button>
      ${facts.camera && facts.camera !== "ended" ? html`<button type="button" ?disabled=${!who.isEngineer || upload || isTaking} data-testid="teach.camera" @click=${takePicture}>${isTaking ? "Taking a picture …" : "Take a picture"}</button>` : nothing}</div>
    ${done ? html`<div><progress max=${done[1]} value=${done[0]} aria-label="Images added"></progress><span class="small n">${count(done[0])} of ${count(done[1])}${job ? ` from ${job.source}` : ""}</span></div>` : html`
    <form class="row" @submit=${addFolder}><label class="quiet small" for="path">or a folder on the machine of the studio</label><input type="text" id="path" name="path" placeholder="/data/${line}/good" data-testid="teach.path" autocomplete="off"><button data-testid="teach.add" ?disabled=${!who.isEngineer}>Add</button></form>`}
  </section>
  ${facts.adding?.is_over && (facts.adding.error || facts.adding.refused_count || facts.adding.flawed) ? html`<p class="remark" data-testid="teach.refused">From ${facts.adding.source}: ${several(facts.adding.added, "image")} added${facts.adding.flawed ? `, ${count(facts.adding.flawed)} of them as flawed, as their folders are called` : ""}${facts.adding.refused_count ? `, ${count(facts.adding.refused_count)} not taken (${facts.adding.refused.slice(0, 3).join("; ")})` : ""}${facts.adding.error ? `. It ended early: ${facts.adding.error}` : ""}</p>` : nothing}`;
};

const groupName = (name) => name || (facts.grouped_by === "none" ? "all images" : "without a group");
const only = (words, ids) => { filter = { ...filter, only: { words, ids } }; list(); document.querySelector("#images").scrollIntoView({ block: "start" }); };

const groupsPanel = () => html`
  <section class="panel" data-testid="teach.groups">
    <div class="row"><h2>Groups</h2><label class="filters row small">by <select data-testid="teach.groupby" .value=${facts.grouping.split(":")[0]} ?disabled=${!who.isEngineer} @change=${(event) => regroup(event.target.value)}>
      ${Object.entries(GROUPINGS).map(([value, words]) => html`<option value=${value} ?selected=${facts.grouping.split(":")[0] === value}>${words}</option>`)}</select></label></div>
    ${facts.grouping.startsWith("name:") || isNaming ? html`<form class="row" @submit=${rename}><label class="small" for="pattern">What in the name says the group, as a regular expression with one group</label><input type="text" id="pattern" name="pattern" .value=${facts.grouping.startsWith("name:") ? facts.grouping.slice(5) : "lot([0-9]+)"}><button>Group</button></form>` : nothing}
    <div class="scroll"><table><thead><tr><th scope="col">${facts.grouped_by === "none" ? "Group" : facts.grouped_by}</th><th scope="col" class="n">Good</th><th scope="col" class="n">Others</th><th scope="col">What stands out</th></tr></thead><tbody>
      ${facts.groups.map((group) => {
        const good = (group.counts.learn ?? 0) + (group.counts.calibrate ?? 0);
        const others = Object.values(group.counts).reduce((sum, number) => sum + number, 0) - good;
        return html`<tr><th scope="row">${groupName(group.name)}</th><td class="n">${count(good)}</td><td class="n">${others ? count(others) : "–"}</td><td>${group.remarks.length ? group.remarks.map((remark) => html`<button type="button" class="plain" @click=${() => only(remark.words, remark.images)}>${remark.words}</button> `) : html`<span class="quiet">${good ? "nothing" : "–"}</span>`}</td></tr>`;
      })}
    </tbody></table></div>
  </section>`;

let isNaming = false;
async function regroup(value) {
  isNaming = value === "name";
  if (isNaming) draw();
  else await change({ grouping: value });
}
async function rename(event) {
  event.preventDefault();
  if (await change({ grouping: `name:${event.target.elements.pattern.value}` })) isNaming = false;
}

const findingsPanel = () => html`
  <section class="panel" data-testid="teach.findings"><h2>What the doctor says</h2>
    ${!facts.checked ? html`<p class="quiet" aria-live="polite"><span class="looking">●</span> looking at the images …</p>` : facts.findings.length ? html`<ul class="findings">${facts.findings.map((finding) => html`
      <li class=${{ error: "reject", warning: "review", note: "quiet" }[finding.severity]}>${icons[finding.severity]}<span>${finding.what}${finding.images.length ? html` <button type="button" class="plain" @click=${() => only(finding.what, finding.images)}>look</button>` : nothing}</span>${finding.fix ? html`<span class="fix">${finding.fix}</span>` : nothing}</li>`)}</ul>` : html`<p class="pass">● No problems found.</p>`}
  </section>`;

const tile = (image, extra) => html`
  <li class="tile ${["left-out", "not-good"].includes(image.role) ? "aside" : ""}">
    <button type="button" class="image" aria-label="Look at ${image.name}" @click=${() => look(image)}><img src=${thumbnail(image.id)} alt="" loading="lazy" width="224" height="168"></button>
    <span class="name" title=${image.name}>${image.name}</span>
    ${extra}
  </li>`;

const oddest = () => (facts.oddest.length ? html`
  <section class="panel ask" data-testid="teach.oddest"><h2>${facts.oddest.length === 1 ? "This image looks" : `These ${facts.oddest.length} look`} least like the others. ${facts.oddest.length === 1 ? "Is it" : "Are they"} good?</h2>
    <ul class="tiles">${facts.oddest.map((image) => tile(image, html`<div class="row">
      <button type="button" aria-label="${image.name} is good" ?disabled=${!who.isEngineer} data-testid="teach.good" @click=${() => confirmGood(image)}>Good</button>
      <button type="button" aria-label="${image.name} is not good" ?disabled=${!who.isEngineer} data-testid="teach.notgood" @click=${() => assign([image.id], "not-good")}>Not good</button></div>`))}</ul>
  </section>` : nothing);

const grid = () => html`
  <section class="panel" id="images" data-testid="teach.grid">
    <div class="row"><h2>${filter.only ? filter.only.words : "Images"} <span class="quiet n">${filter.only && filter.only.ids.length > MOST_NAMED ? `the first ${MOST_NAMED}` : count(shown.total)}</span></h2>
    ${filter.only ? html`<button type="button" class="push" @click=${() => { filter.only = null; list(); }}>Show all</button>` : html`
      <div class="row filters small">
        <label><span class="hidden">Which images</span><select data-testid="teach.role" @change=${(event) => { filter.role = event.target.value; list(); }}>${[["good", "good"], ["all", "all"], ...Object.entries(ROLES)].map(([value, words]) => html`<option value=${value} ?selected=${filter.role === value}>${words}</option>`)}</select></label>
        ${facts.groups.length > 1 ? html`<label><span class="hidden">Group</span><select @change=${(event) => { filter.group = event.target.value === "*" ? null : event.target.value; list(); }}><option value="*">all groups</option>${facts.groups.map((group) => html`<option value=${group.name} ?selected=${filter.group === group.name}>${groupName(group.name)}</option>`)}</select></label>` : nothing}
        <label><span class="hidden">Order</span><select data-testid="teach.sort" @change=${(event) => { filter.sort = event.target.value; list(); }}>${Object.entries(SORTS).map(([value, words]) => html`<option value=${value} ?selected=${filter.sort === value}>${words}</option>`)}</select></label>
      </div>`}</div>
    ${shown.items.length ? html`<ul class="tiles">${shown.items.map((image) => tile(image, html`<div class="row">
      <select aria-label="Role of ${image.name}" .value=${image.role} ?disabled=${!who.isEngineer} @change=${(event) => assign([image.id], event.target.value)}>${Object.entries(ROLES).map(([value, words]) => html`<option value=${value} ?selected=${image.role === value}>${words}</option>`)}</select>
      ${["learn", "calibrate"].includes(image.role) ? html`<button type="button" title="Not good" aria-label="${image.name} is not good" ?disabled=${!who.isEngineer} @click=${() => assign([image.id], "not-good")}>✕</button>` : nothing}</div>`))}</ul>
      ${shown.next === null ? nothing : html`<p><button type="button" @click=${() => list(true)}>Show more (${count(shown.total - shown.items.length)} left)</button></p>`}` : html`<p class="quiet">None.</p>`}
  </section>`;

const settingsPanel = () => html`
  <div class="two">
    <section class="panel" data-testid="teach.flawed"><h2>Flawed images <span class="quiet">optional</span></h2>
      <p class="quiet small">They are never learned from, and never set the limit. ${facts.counts.flawed ? `${several(facts.counts.flawed, "image")} so far.` : ""}</p>
      <button type="button" ?disabled=${!who.isEngineer || upload} @click=${pick("flawed")}>Add flawed images</button></section>
    <section class="panel"><h2>Where to look</h2>
      <div class="row"><button type="button" data-testid="teach.roi" ?disabled=${!who.isEngineer || facts.region?.zones.length} @click=${openRegion}>${facts.region ? "Change region" : "Draw region"}</button>
        <span class="quiet small">${regionWords()}</span></div>
      <form class="row" @submit=${scale}><label for="scale" class="small">Scale</label><input type="number" id="scale" name="scale" step="any" min="0.00001" max="1000" .value=${facts.scale ?? ""} placeholder="unknown" data-testid="teach.scale" ?disabled=${!who.isEngineer}><span class="small">mm per pixel</span><button ?disabled=${!who.isEngineer}>Set</button></form></section>
  </div>`;

function regionWords() {
  if (!facts.region) return "the whole image";
  const { include, exclude, zones } = facts.region;
  if (zones.length) return html`${several(zones.length, "zone")} in <code>region.json</code>; change them there`;
  return `${include.length ? `${several(include.length, "shape")} to look at` : "everything"}, ${exclude.length ? count(exclude.length) : "nothing"} left out`;
}

async function scale(event) {
  event.preventDefault();
  const text = event.target.elements.scale.value;
  if (await change({ scale: text ? Number(text) : "unknown" })) notify(text ? `A pixel is ${text} mm wide.` : "The scale is unknown.");
}

function draw() {
  if (!facts) return;
  const good = facts.counts.learn + facts.counts.calibrate;
  const isEmpty = !Object.values(facts.counts).some(Boolean);
  render(html`
    <div class="head"><h1>Teach</h1><a class="button push ${good >= 5 ? "primary" : ""}" href="/studio/lines/${encodeURIComponent(line)}/train" data-testid="teach.next">Train →</a></div>
    <div class="stack">
      ${dropZone()}
      <ul class="advice panel" data-testid="teach.advice" aria-live="polite">${facts.advice.map((sentence) => html`<li>${sentence}</li>`)}</ul>
      ${isEmpty ? nothing : html`${oddest()}<div class="two">${groupsPanel()}${findingsPanel()}</div>${grid()}${settingsPanel()}`}
      <p class="quiet small">The images lie in <code>${facts.folder}</code>; what you put there by hand counts too.</p>
    </div>
    <dialog id="look" aria-label="Image">${looked ? html`<form method="dialog" class="row"><strong>${looked.name}</strong><span class="quiet small n">${looked.look ? `${looked.look.width} × ${looked.look.height}` : ""} ${looked.group}</span><button class="push" autofocus>Close</button></form><img class="big" src=${scaled(looked.id, 1800)} alt=${looked.name}>` : nothing}</dialog>
    <dialog id="region" aria-label="Where to look"><div class="row"><h2>Where to look</h2><button type="button" class="push" @click=${() => document.querySelector("#region").close()}>Cancel</button><button type="button" class="primary" data-testid="teach.keep" @click=${keepRegion}>Keep</button></div><region-editor></region-editor></dialog>`, page);
  ask();
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  if (!isOver) { isOver = true; draw(); }
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) { isOver = false; draw(); } });
addEventListener("drop", async (event) => {
  event.preventDefault();
  isOver = false;
  if (!who.isEngineer) return notify("An engineer teaches.");
  return add(await filesOf(event.dataTransfer));
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
follow({ teach: changed });
load();
