// Accept: parts whose state is known are placed several times, and judged by the model and the limits in use. What comes
// of it is an attribute study that a buyer signs.
import { attempt, follow, get, line, notify, ofLine, post, Refusal, remove, who } from "../api.js";
import { filesOf } from "../files.js";
import { noModel } from "../no-model.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, promise, several, verdict, when } from "../words.js";

const page = document.querySelector("#page");
const SHOWN = 6; // latest placements
const FOLDERS = { good: /^(good|ok|io|normal)$/i, flawed: /^(bad|flawed|nok|nio|ng|defect.*|reject.*)$/i };

let facts = null; // LineFacts
let studies = []; // StudyFacts, the latest first
let chosen = null; // number of the study that is shown; null: the latest
let plan = { good: 50, flawed: 50, repeats: 3 };
let isBusy = false;
let upload = null; // {done, total}
let isOver = false;
let isEnding = false;

const study = () => studies.find((each) => each.number === chosen) ?? studies[0] ?? null;
const open = () => (studies[0] && !studies[0].signed ? studies[0] : null);

async function load() {
  const [line_, studies_] = await Promise.all([attempt(() => get(ofLine(""))), attempt(() => get(ofLine("/acceptance")))]);
  [facts, studies] = [line_ ?? facts, studies_ ?? studies];
  draw();
}

async function run(action) {
  isBusy = true;
  draw();
  const told = await attempt(action);
  isBusy = false;
  await load();
  return told;
}

async function begin(event) {
  event.preventDefault();
  chosen = null;
  await run(() => post(ofLine("/acceptance"), plan));
}

// Placing

const named = (truth, number) => `${truth === "good" ? "good" : "bad"}-${String(number).padStart(3, "0")}`;

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
function* draws(seed) {
  for (let state = seed >>> 0; ; ) {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    yield ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
}

/** All placements of a plan in the order in which parts are asked for: each round in a random order of its own. */
function order({ number, plan: { good, flawed, repeats } }) {
  const random = draws(number);
  const parts = [["good", good], ["flawed", flawed]].flatMap(([truth, size]) => Array.from({ length: size }, (_, place) => ({ part: named(truth, place + 1), truth })));
  return Array.from({ length: repeats }, (_, round) => {
    const shuffled = parts.map((part) => ({ ...part, round: round + 1 }));
    for (let last = shuffled.length - 1; last > 0; last--) {
      const other = Math.floor(random.next().value * (last + 1));
      [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
    }
    return shuffled;
  }).flat();
}

/** The placement that comes next; null: all are there. */
function nextOf(each) {
  const placed = new Map();
  for (const { part } of each.placements) placed.set(part, (placed.get(part) ?? 0) + 1);
  return order(each).find(({ part, round }) => (placed.get(part) ?? 0) < round) ?? null;
}

const address = ({ number }, what, { part, truth }) => ofLine(`/acceptance/${number}/${what}?${new URLSearchParams({ part, truth })}`);

async function placed(told) {
  if (told) page.querySelector("[data-testid='accept.camera'], [data-testid='accept.image']")?.focus();
}
const byCamera = (asked) => async () => placed(await run(() => post(address(open(), "camera", asked))));
const byImage = (asked) => async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) placed(await run(() => post(address(open(), "placements", asked), file)));
};

/** What a file of a folder shows: the state by its first folder that says one, the part by the folder below it, else by its name. */
function meant({ file, folder }) {
  const folders = folder.split("/").filter(Boolean);
  const place = folders.findIndex((name) => FOLDERS.good.test(name) || FOLDERS.flawed.test(name));
  if (place < 0) return null;
  const truth = FOLDERS.good.test(folders[place]) ? "good" : "flawed";
  return { truth, part: (folders[place + 1] ?? file.name.replace(/\.[^.]+$/, "")).slice(0, 100) };
}

async function add(files) {
  const known = files.map((each) => ({ ...each, meant: meant(each) })).filter((each) => each.meant);
  if (known.length < files.length) notify(`${several(files.length - known.length, "file")} left out: put images into folders called good and bad, and drop the folder that holds both.`, { isBad: !known.length });
  const into = open();
  if (!known.length || upload || !into) return;
  upload = { done: 0, total: known.length };
  const refused = [];
  for (const each of known) {
    draw();
    try {
      await post(address(into, "placements", each.meant), each.file);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      refused.push(`${each.meant.part}: ${error.message}`);
    }
    upload.done += 1;
  }
  upload = null;
  if (refused.length) notify(`${several(refused.length, "image")} not taken: ${refused.slice(0, 3).join("; ")}${refused.length > 3 ? " …" : ""}`, { isBad: true });
  await load();
}

const pickFolder = () => {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true, webkitdirectory: true });
  input.addEventListener("change", () => add([...input.files].map((file) => ({ file, folder: (file.webkitRelativePath || "").split("/").slice(0, -1).join("/") }))));
  input.click();
};

async function end(event) {
  event.preventDefault();
  const signed = event.target.elements.signed.value.trim();
  page.querySelector("dialog").close();
  await run(() => post(ofLine(`/acceptance/${open().number}/end`), { signed }));
}

// The page

const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")} %`;
/** The share of wrong ones that is not exceeded, 95 % sure, where none of so many is wrong. */
const provenBy = (parts) => 1 - 0.05 ** (1 / parts);
const NEEDED = Math.ceil(Math.log(0.05) / Math.log(0.98));

function planForm() {
  const field = (name, words, most) => html`<label>${words} <input class="narrow" type="number" min="1" max=${most} required .value=${String(plan[name])} @input=${(event) => { plan = { ...plan, [name]: Math.max(1, Math.min(most, Math.round(Number(event.target.value)) || 1)) }; draw(); }} data-testid="accept.${name}"></label>`;
  return html`<form class="panel stack" @submit=${begin} data-testid="accept.plan">
    <h2>${studies.length ? "Another study" : "Plan a study"}</h2>
    <div class="row">${field("good", "good parts", 1000)}${field("flawed", "flawed parts", 1000)}${field("repeats", "times each", 20)}</div>
    <p>${several((plan.good + plan.flawed) * plan.repeats, "placement")}. If nothing is wrong, it proves with 95 % certainty: fewer than <strong class="n">${percent(provenBy(plan.flawed))}</strong> of flawed parts pass, fewer than <strong class="n">${percent(provenBy(plan.good))}</strong> of good ones are stopped. To prove 2 % takes ${NEEDED} parts.</p>
    <p class="quiet small">Take parts that the model has never seen, of several days, with flaws as they happen, weak ones among them. Repeats of a part show how much its score scatters; they prove nothing of other parts.</p>
    <div class="row"><button class="primary" ?disabled=${!who.isEngineer || isBusy || !facts.ready} data-testid="accept.begin">Begin</button>
      <span class="quiet small">${facts.ready ? "It is bound to the model and the limits in use." : "The line has no model yet."}</span></div></form>`;
}

const times = (number) => ["", "the 1st time", "the 2nd time", "the 3rd time"][number] ?? `the ${number}th time`;

function placing(each) {
  const asked = nextOf(each);
  const { good, flawed, repeats } = each.plan;
  const total = (good + flawed) * repeats;
  return html`<section class="panel stack ${isOver ? "over" : ""}" data-testid="accept.run">
    ${each.in_use ? nothing : html`<p class="remark">The line has another model or other limits than when this study began. End it, and begin another one.</p>`}
    <div class="row"><h2>${asked ? html`Now place <strong class="place">${asked.part}</strong> ${repeats > 1 ? html`<span class="quiet">${times(asked.round)}</span>` : nothing}` : "All parts were placed"}</h2><span class="push n">${count(each.placements.length)} of ${count(total)}</span></div>
    <progress class="wide" max=${total} value=${Math.min(total, each.placements.length)} aria-label="Placements"></progress>
    ${upload ? html`<p aria-live="polite">${count(upload.done)} of ${several(upload.total, "image")} judged …</p>` : html`<div class="row">
      ${asked && facts.camera && facts.camera !== "ended" ? html`<button class="primary" ?disabled=${isBusy || !each.in_use} @click=${byCamera(asked)} data-testid="accept.camera">Take a picture</button>` : nothing}
      ${asked ? html`<label class="button ${facts.camera ? "" : "primary"}">Choose its image<input type="file" accept="image/*,.tif,.tiff,.bmp" class="hidden" ?disabled=${isBusy || !each.in_use} @change=${byImage(asked)} data-testid="accept.image"></label>
      <button ?disabled=${isBusy || !each.in_use} @click=${pickFolder} data-testid="accept.folder">Choose a folder</button>` : nothing}
      <button class="push ${asked ? "" : "primary"}" ?disabled=${!who.isEngineer || isBusy || !each.placements.length} @click=${() => { isEnding = true; draw(); page.querySelector("dialog").showModal(); }} data-testid="accept.end">End and sign …</button></div>
    <p class="quiet small">Or drop a folder that holds <code>good</code> and <code>bad</code>: an image a part, or a folder a part with its repeats.</p>`}
    ${each.placements.length ? html`<div class="scroll"><table><thead><tr><th scope="col">latest</th><th scope="col">is</th><th scope="col">verdict</th><th scope="col"></th></tr></thead><tbody>
      ${[...each.placements].reverse().slice(0, SHOWN).map((one, place) => html`<tr><th scope="row">${one.part}</th><td>${one.truth}</td><td>${verdict(one.verdict)}${isRight(one) ? nothing : html` <strong class="wrong">wrong</strong>`}</td>
        <td class="n">${place === 0 ? html`<button class="plain" ?disabled=${isBusy} @click=${() => run(() => remove(ofLine(`/acceptance/${each.number}/placements/${one.id}`)))} data-testid="accept.undo" title="another part lay there">Take back</button>` : nothing}</td></tr>`)}</tbody></table></div>` : nothing}
  </section>`;
}

const isRight = ({ truth, verdict: said }) => (said === "pass") === (truth === "good");
const GRADES = { acceptable: html`<span class="state pass">● acceptable</span>`, marginal: html`<span class="state review">▲ marginal</span>`, "not acceptable": html`<span class="state reject">■ not acceptable</span>` };
const list = (parts) => `${parts.slice(0, 12).join(", ")}${parts.length > 12 ? ` and ${parts.length - 12} more` : ""}`;

function figure(words, value, bound, extra = nothing) {
  return html`<tr><th scope="row">${words}</th><td><strong class="n">${value}</strong> ${extra}</td><td class="quiet">${bound}</td></tr>`;
}

function resultPanel(each) {
  const { result, placements } = each;
  if (!placements.length) return nothing;
  const parts = result.good_parts + result.flawed_parts;
  const few = (share, words) => (share === null ? nothing : html`<span class="quiet bound">95 % sure: no more than ${percent(Math.ceil(1000 * share) / 1000)} of ${words}</span>`);
  return html`<section class="panel stack result" data-testid="accept.result">
    <div class="row"><h2>${each.signed ? "Result" : "So far"}</h2>${result.grade ? GRADES[result.grade] : html`<span class="quiet">both good and flawed parts are needed</span>`}
      <span class="push row print-hidden">${each.signed ? html`<button @click=${() => print()} data-testid="accept.print">Print</button>` : nothing}<a class="button" href=${ofLine(`/acceptance/${each.number}/table`)} download>Table (CSV)</a></span></div>
    <div class="scroll"><table class="figures"><thead><tr><td></td><td></td><th scope="col">acceptable, AIAG</th></tr></thead><tbody>
      ${figure("Effectiveness: parts judged rightly every time", percent(result.effective / parts), "≥ 90 %", html`<span class="quiet">${count(result.effective)} of ${count(parts)}</span>`)}
      ${result.flawed_placements ? figure("Misses: flawed parts that passed", `${count(result.misses)} of ${count(result.flawed_placements)}`, "≤ 2 %", few(result.misses_at_most, "flawed parts")) : nothing}
      ${result.good_placements ? figure("False alarms: good parts that were stopped", `${count(result.false_alarms)} of ${count(result.good_placements)}`, "≤ 5 %", few(result.false_alarms_at_most, "good parts")) : nothing}
      ${result.kappa === null ? nothing : figure("Agreement with the truth (kappa)", result.kappa.toFixed(2), "")}
      ${result.repeat_deviation === null ? nothing : figure("Scatter of a part's score when it is placed again", percent(result.repeat_deviation), "", html`<span class="quiet">of the limit, one standard deviation</span>`)}
    </tbody></table></div>
    ${result.missed_parts.length ? html`<p><strong>Passed though flawed:</strong> ${list(result.missed_parts)}</p>` : nothing}
    ${result.alarmed_parts.length ? html`<p><strong>Stopped though good:</strong> ${list(result.alarmed_parts)}</p>` : nothing}
    ${result.changing.length ? html`<p><strong>Not the same verdict every time:</strong> ${list(result.changing)}</p>` : nothing}
    <p class="quiet small">A part between the limits counts as stopped. What is proven goes by parts, not by placements, and holds for parts like these. Model ${each.model_sha256.slice(0, 12)}, limits ${each.limits}, study ${each.number}, begun ${when(each.at)} by ${each.who}${each.withdrawn ? `, ${several(each.withdrawn, "placement")} taken back` : ""}.</p>
    ${each.signed ? html`<p class="signature">Ended ${when(each.ended)}, signed by <strong>${each.signed}</strong></p>` : nothing}
  </section>`;
}

const earlier = () => (studies.length > 1 ? html`<section class="panel print-hidden"><h2>All studies</h2><div class="scroll"><table><thead><tr><th scope="col">begun</th><th scope="col">parts</th><th scope="col">result</th><th scope="col">signed by</th><th scope="col"></th></tr></thead><tbody>
  ${studies.map((each) => html`<tr><td class="when">${when(each.at)}</td><td>${count(each.result.good_parts)} good, ${count(each.result.flawed_parts)} flawed</td><td>${each.result.grade ? GRADES[each.result.grade] : "–"}</td><td>${each.signed || "goes on"}</td><td class="n">${each === study() ? "shown" : html`<button class="plain" @click=${() => { chosen = each.number; draw(); scrollTo({ top: 0 }); }}>Show</button>`}</td></tr>`)}
  </tbody></table></div></section>` : nothing);

const dialog = () => html`<dialog @close=${() => { isEnding = false; draw(); }} aria-labelledby="ending">${isEnding ? html`<form class="stack" @submit=${end}>
  <h2 id="ending">End the study?</h2><p>Its figures stand in the audit from then on, and no part can be added.</p>
  <label>Signed by<input class="wide" type="text" name="signed" required minlength="2" maxlength="200" autocomplete="name" data-testid="accept.signed"></label>
  <div class="row"><button type="button" class="push" @click=${() => page.querySelector("dialog").close()}>Cancel</button><button class="primary" data-testid="accept.confirm">End and sign</button></div></form>` : nothing}</dialog>`;

function draw() {
  if (!facts) return undefined;
  const shown = study();
  if (!facts.ready && !shown) return render(html`<div class="head"><h1>Accept</h1></div>${noModel("Parts whose state is known are placed and judged here, until the figures can be signed.")}`, page);
  render(html`<div class="head"><h1>Accept</h1><span class="quiet">${facts.ready ? html`${facts.product} · ${facts.method} · good parts rejected: about ${promise(facts.limit)}` : nothing}</span></div>
    <div class="stack">${shown && !shown.signed ? placing(shown) : nothing}${shown ? resultPanel(shown) : nothing}${open() ? nothing : html`<div class="print-hidden">${planForm()}</div>`}${earlier()}</div>${dialog()}`, page);
  return undefined;
}

addEventListener("dragover", (event) => { event.preventDefault(); if (!isOver) { isOver = true; draw(); } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) { isOver = false; draw(); } });
addEventListener("drop", async (event) => {
  event.preventDefault();
  isOver = false;
  if (!open()) return notify("Begin a study first.");
  return add(await filesOf(event.dataTransfer));
});
follow({ accept: (told) => { if (told.line === line && !isBusy && !upload) load(); }, limit: load, model: load }, undefined, load);
load();
