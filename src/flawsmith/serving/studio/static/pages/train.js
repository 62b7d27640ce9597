// Train: what to train, how far it is, and what came of it. The training is a process of the server: this page only looks on.
import { attempt, follow, get, line, ofLine, post, who } from "../api.js";
import { html, nothing, render, svg } from "../vendor/lit-html.js";
import { count, several, when } from "../words.js";

const page = document.querySelector("#page");
const WORKS = ["starting", "running"];
const ASK_AGAIN = 1000; // ms, while a training works
const STATES = { starting: "is starting", running: "goes on", done: "is done", failed: "failed", stopped: "was stopped", interrupted: "was interrupted" };

let told = null; // TrainChoices
let askedAt = 0;
let choice = "accurate";
let method = "pbas";
let samples = { state: "", items: [] }; // of which training, and of which of its looks
let log = null; // {number, text}
let isBusy = false;

const minutes = (seconds) => (seconds < 100 ? `about ${Math.max(1, Math.round(seconds / 10)) * 10} s` : `about ${count(seconds / 60)} min`);
function left(seconds) {
  if (seconds === null) return "";
  const rest = Math.max(0, seconds - (performance.now() - askedAt) / 1000);
  if (rest < 10) return "a few seconds left";
  return rest < 55 ? `about ${Math.round(rest / 10) * 10} s left` : `about ${count(Math.max(1, rest / 60))} min left`;
}
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const percent = (share) => `${Math.round(100 * share)} %`;

const latest = () => told?.trainings[0] ?? null;
const works = () => WORKS.includes(latest()?.state);

async function load() {
  const answer = await attempt(() => get(ofLine("/trainings")));
  if (answer) [told, askedAt] = [answer, performance.now()];
  await look();
  draw();
}

/** Ask how the latest training is, while it works or its model is being taken. */
async function ask() {
  const before = latest();
  const answer = await get(ofLine(`/trainings/${before.number}`)).catch(() => null); // it is asked again
  if (!answer || latest()?.number !== answer.number) return;
  told.trainings[0] = answer;
  askedAt = performance.now();
  if (answer.state !== before.state) return void load();
  await look();
  draw();
}

/** What the model sees: as it learns each time that it has looked, and once it is done as the report shows it. */
async function look() {
  const training = latest();
  if (!training) return;
  const state = `${training.number} ${training.state === "done"} ${training.caught.length}`;
  if (samples.state !== state && (training.caught.length || training.state === "done")) {
    samples = { state, items: samples.items };
    samples.items = (await attempt(() => get(ofLine(`/trainings/${training.number}/samples`)))) ?? [];
  }
  if (log) await readLog(training);
}

async function readLog(training) {
  const answer = await attempt(() => get(ofLine(`/trainings/${training.number}/log`), { as: "response" }));
  if (answer) log = { number: training.number, text: await answer.text() };
}

async function start(event) {
  event.preventDefault();
  await run(() => post(ofLine("/trainings"), choice === "method" ? { choice, method } : { choice }));
}
async function run(action) {
  isBusy = true;
  draw();
  await attempt(action);
  isBusy = false;
  samples = { state: "", items: [] };
  await load();
}
const act = (training, name) => () => run(() => post(ofLine(`/trainings/${training.number}/${name}`), {}));

async function setLimit(training) {
  if (!training.live && !(await attempt(() => post(ofLine(`/trainings/${training.number}/use`), {})))) return;
  location.assign(`/studio/lines/${encodeURIComponent(line)}/limit`);
}

const option = (value, title, time, words, extra = nothing) => html`
  <label class="choice"><b><input type="radio" name="choice" value=${value} .checked=${choice === value} @change=${() => { choice = value; draw(); }}>${title}</b><span class="time">${time}</span><span class="quiet small">${words}</span>${extra}</label>`;

function note() {
  if (told.good_images < told.least_images) return html`${several(told.good_images, "good image")}: at least ${told.least_images} are needed. <a href="/studio/lines/${line}/teach">Teach first</a>`;
  if (told.working && told.working !== line) return `Line ${told.working} is being trained; one at a time.`;
  return `It learns from ${several(told.good_images, "good image")} as they are now. You may close this page, or even the studio: the training goes on.`;
}

const choices = (title = "") => html`
  <form class="panel stack" @submit=${start}>
    ${title ? html`<h2>${title}</h2>` : nothing}
    <fieldset class="choices" data-testid="train.choice"><legend class="hidden">What to train</legend>
      ${option("accurate", "Accurate", minutes(told.about_seconds.accurate), "Fusion, which ranks best on real parts, with PatchCore beside it to compare.")}
      ${option("quick", "Quick check", minutes(told.about_seconds.quick), "PatchCore alone, to see whether the pictures will do.")}
      ${option("method", "Choose a method", minutes(told.about_seconds[method]), "What each is good at stands in the guide.", html`
        <select aria-label="Method" data-testid="train.method" .value=${method} @change=${(event) => { choice = "method"; method = event.target.value; draw(); }}>${told.methods.map((name) => html`<option value=${name} ?selected=${name === method}>${name}</option>`)}</select>`)}
    </fieldset>
    <div class="row"><button class="primary" data-testid="train.start" ?disabled=${!who.isEngineer || Boolean(told.working) || isBusy || told.good_images < told.least_images}>Start training</button>
      <span class="quiet small" data-testid="train.note">${note()}</span></div>
  </form>`;

const progress = (training) => html`
  <section class="panel working" data-testid="train.progress">
    <div class="line"><strong aria-live="polite">${training.stopping ? "Stopping" : "Training"} ${training.method}</strong><span>${training.words}</span><span class="n">${percent(training.share)}</span><span class="quiet n">${clock(training.seconds + (training.state === "running" ? (performance.now() - askedAt) / 1000 : 0))} so far</span><strong class="n push">${left(training.left)}</strong></div>
    <progress max="1" value=${training.share} aria-label="Share that is done"></progress>
    <div class="row"><button type="button" data-testid="train.stop" ?disabled=${!who.isEngineer || isBusy} @click=${act(training, "stop")}>Stop</button><span class="quiet small">${training.stopping ? "Stopping, once the step that it is at is over. If that takes longer than half a minute, Stop again ends it at once." : "It can be continued later."} Images: ${counts(training)}.</span></div>
  </section>`;

const USES = { learn: "to learn from", calibrate: "to set the limit", flawed: "flawed" };
const used = ({ images }) => (images.calibrate ? Object.entries(images) : [["good", images.learn], ...Object.entries(images).filter(([role]) => role !== "learn")]);
const counts = (training) => used(training).map(([role, number]) => `${count(number)} ${USES[role] ?? role}`).join(", ") + (training.groups ? ` of ${several(training.groups, training.grouped_by === "day" ? "day" : "group")}` : "");

const ended = (training) => html`
  <section class="panel working" data-testid="train.ended">
    <div class="line"><strong>Training ${count(training.number)} ${STATES[training.state]}</strong><span class="quiet">${training.method}, begun ${when(training.at)}</span></div>
    ${training.error ? html`<p class="remark bad">${training.error}</p>` : nothing}
    ${training.share > 0 ? html`<progress max="1" value=${training.share} aria-label="Share that is done"></progress>` : nothing}
    <div class="row"><button type="button" class="primary" data-testid="train.resume" ?disabled=${!who.isEngineer || Boolean(told.working) || isBusy} @click=${act(training, "resume")}>${training.state === "failed" ? "Try again" : "Continue"}</button></div>
  </section>`;

const done = (training) => html`
  <section class="panel working" data-testid="train.done">
    <div class="line"><strong><span class="pass">●</span> ${training.method} is trained</strong><span class="quiet">${counts(training)}; ${clock(training.seconds)}</span>
      <button type="button" class="primary push" data-testid="train.next" ?disabled=${!who.isEngineer || !training.model_sha256} @click=${() => setLimit(training)}>${training.model_sha256 ? "Set the limit →" : "Taking the model …"}</button></div>
    <p class="quiet small">${training.live ? "The line judges by this model." : "The line judges by this model once you set the limit."} <a href=${ofLine(`/trainings/${training.number}/report`)} target="_blank" rel="noopener" data-testid="train.report">Report</a></p>
  </section>`;

const versus = (training) => {
  const { model, baseline } = training.comparison;
  if (model === undefined) return html`<p class="quiet">${WORKS.includes(training.state) ? `Known when the limit is set.${needsNoLoop(training) ? "" : " PatchCore, which is not trained, is built last, to compare with."}` : training.state === "done" ? "Not measured, as the map decides for this model, not the score." : "Not measured yet."}</p>`;
  return html`<p class="small quiet">Flaws drawn on held-out good images, each model at its own limit. Synthetic flaws are not real ones.</p>
    <div class="versus"><span>this model</span><meter min="0" max="1" value=${model} aria-label="Synthetic flaws caught by this model"></meter><strong class="n">${percent(model)}</strong>
    ${baseline === undefined ? nothing : html`<span>PatchCore, not trained</span><meter min="0" max="1" value=${baseline} aria-label="Synthetic flaws caught by PatchCore"></meter><strong class="n">${percent(baseline)}</strong>`}</div>`;
};

/** A line of values from [x, y], each 0 to 1. */
const curve = (points, label) => html`<svg class="curve" viewBox="0 0 300 90" preserveAspectRatio="none" role="img" aria-label=${label}>${svg`<path class="floor" d="M0 85H300"/><path d="M${points.map(([x, y]) => `${300 * x} ${85 - 80 * y}`).join("L")}"/>`}</svg>`;

function separation({ caught }) {
  const { words, caught: now, count: of } = caught.at(-1);
  const first = `${caught[0].caught} of ${of} (${caught[0].words.split(" of ")[0]})`;
  return html`${caught.length > 1 ? curve(caught.map((look) => [look.share, look.caught / look.count]), `Synthetic flaws told apart, from ${first} to ${now} of ${of}`) : nothing}
    <p><strong class="n">${now} of ${of}</strong> synthetic flaws score above all of ${several(of, "good image")}, ${words}${caught.length > 1 ? html`; at first ${first}` : nothing}.</p>
    <p class="small quiet">None of these images is learned from. It is a glance at few images; what counts is measured when the limit is set.</p>`;
}

function loss({ losses }) {
  const [least, most] = [Math.min(...losses), Math.max(...losses)];
  const words = `Loss by epoch, from ${losses[0].toPrecision(3)} to ${losses.at(-1).toPrecision(3)}`;
  return html`${curve(losses.map((value, place) => [place / (losses.length - 1), (value - least) / (most - least || 1)]), words)}
    <p class="small quiet">${words}: it says that the model learns, not how well it inspects.</p>`;
}

const needsNoLoop = (training) => ["patchcore", "padim"].includes(training.method);

function learning(training) {
  const isSeen = training.caught.length > 0;
  const hasLoss = training.losses.length > 1;
  if (!isSeen && !hasLoss) return html`<p class="quiet">${needsNoLoop(training) ? "This method learns in one pass." : WORKS.includes(training.state) ? "The first epochs are on their way." : "It ended before the first epoch."}</p>`;
  if (!isSeen) return loss(training);
  return html`${separation(training)}${hasLoss ? html`<details class="small"><summary>Loss</summary>${loss(training)}</details>` : nothing}`;
}

const figures = (training) => html`
  <div class="two">
    <section class="panel" data-testid="train.baseline"><h2>Synthetic flaws caught</h2>${versus(training)}</section>
    <section class="panel" data-testid="train.curve"><h2>Learning</h2>${learning(training)}</section>
  </div>
  ${samples.state.startsWith(`${training.number} `) && samples.items.length ? html`
  <section class="panel" data-testid="train.samples"><h2>What the model sees${training.state === "done" ? "" : " so far"}</h2>
    <p class="small quiet">Good images that it does not learn from, and flaws drawn on them.${training.state === "done" ? "" : " Colours begin where none of the good images reaches. What comes after the epochs, such as a memory of good images, is not in it yet."}</p>
    <ul class="samples">${samples.items.map((sample) => html`<li><div>${sample.pictures.map((source, place) => html`<img src=${source} alt="${place ? "map of " : ""}${sample.name}${sample.is_forged ? " with a synthetic flaw" : ""}">`)}</div><span class="small quiet">${sample.words || html`${sample.is_forged ? "synthetic flaw" : "good"} · ${sample.name}`}</span></li>`)}</ul></section>` : nothing}`;

const details = (training) => html`
  <details class="panel" data-testid="train.log" @toggle=${async (event) => { log = event.target.open ? { number: 0, text: "" } : null; if (log) { await readLog(training); draw(); } }}><summary>Details</summary><pre class="log" tabindex="0">${log?.text ?? ""}</pre></details>`;

const earlier = (trainings) => (trainings.length ? html`
  <section class="panel"><h2>Earlier trainings</h2><div class="scroll"><table><thead><tr><th scope="col" class="n">#</th><th scope="col">Begun</th><th scope="col">Method</th><th scope="col">Images</th><th scope="col">State</th><th scope="col"></th></tr></thead><tbody>
  ${trainings.map((training) => html`<tr><td class="n">${training.number}</td><td>${when(training.at)}</td><td>${training.method}</td><td>${counts(training)}</td><td>${training.live ? "live" : STATES[training.state]}</td><td>${training.state === "done" ? html`<a href=${ofLine(`/trainings/${training.number}/report`)} target="_blank" rel="noopener">Report</a>` : nothing}</td></tr>`)}
  </tbody></table></div></section>` : nothing);

function draw() {
  if (!told) return;
  const [training, ...rest] = told.trainings;
  render(html`
    <div class="head"><h1>Train</h1><a class="button push" href="/studio/lines/${encodeURIComponent(line)}/teach">← Teach</a></div>
    <div class="stack">
      ${told.installed ? nothing : html`<p class="remark" data-testid="train.install">Training needs further packages on the machine of the studio. Install them with <code>${told.to_install}</code> and start the studio again. Limits, inspection and review work without.</p>`}
      ${!training ? nothing : works() ? progress(training) : training.state === "done" ? done(training) : ended(training)}
      ${works() || !told.installed || training?.state === "done" ? nothing : choices()}
      ${training ? html`${figures(training)}${details(training)}` : nothing}
      ${told.installed && training?.state === "done" ? choices("Train again") : nothing}
      ${earlier(rest)}
    </div>`, page);
}

const waits = () => works() || (latest()?.state === "done" && !latest().model_sha256);
let isAsking = false;
setInterval(async () => {
  if (!waits() || document.hidden || isAsking) return;
  isAsking = true;
  await ask();
  isAsking = false;
}, ASK_AGAIN);
document.addEventListener("visibilitychange", () => { if (!document.hidden) load(); });
follow({ training: (content) => { if (content.line === line) load(); } });
load();
