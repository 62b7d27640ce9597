// The limit: how many good parts it rejects, in the mean and at worst, and what else moves with it. The scores come
// once; every figure then follows in the browser.
import { attempt, follow, get, line, notify, ofLine, put, Refusal, who } from "../api.js";
import { axisOf } from "../limit-chart.js";
import { noModel } from "../no-model.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, of1000, promise, score, several, shape, verdict } from "../words.js";

const page = document.querySelector("#page");
const RATES = [1, 2, 5, 10, 20, 50];
const NEAR = 5;
const partsKey = `flawsmith parts a day ${line}`;

let data = null; // LimitScores
let chosen = null; // {reject, review}: ranks, null where the limits in use stand; review null: none
let isBeyond = false;
let reason = "";
let partsADay = Number(localStorage.getItem(partsKey)) || 1000;

/** How many numbers lie above a limit, in a list with the largest first. */
function above(sorted, limit) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

const outcome = (deciding, limits) => (deciding > limits.reject ? "reject" : limits.review !== null && deciding > limits.review ? "review" : "pass");
const inUse = () => ({ reject: data.now.limit, review: data.now.review_limit });
const rankOf = (limit) => Math.max(1, Math.min(data.steps.length, above(data.good, limit) + 1));

/** Limits as they are set on the page, with what they promise. */
function now() {
  const { steps, good } = data;
  if (!chosen) {
    const { limit, review_limit, rejected_of_1000, rejected_of_1000_at_worst } = data.now;
    const review = review_limit === null ? null : { limit: review_limit, rank: rankOf(review_limit) };
    const more = review === null ? 0 : (above(good, review_limit) - above(good, limit)) / (good.length || 1);
    return { reject: { limit, rank: rankOf(limit) }, review, mean: rejected_of_1000 / 1000, worst: rejected_of_1000_at_worst / 1000, more };
  }
  const step = steps[chosen.reject - 1];
  const review = chosen.review === null ? null : { limit: steps[chosen.review - 1].limit, rank: chosen.review };
  const more = review === null ? 0 : (chosen.review - chosen.reject) / (good.length + 1);
  return { reject: { limit: step.limit, rank: chosen.reject }, review, mean: step.rejected_of_1000 / 1000, worst: step.rejected_of_1000_at_worst / 1000, more };
}

/** Shares rejected of the groups of good images: [least, most], or null. */
function byGroup(limit) {
  if (!data.groups || new Set(data.groups).size < 2) return null;
  const [all, rejected] = [new Map(), new Map()];
  data.groups.forEach((group, place) => {
    all.set(group, (all.get(group) ?? 0) + 1);
    if (data.good[place] > limit) rejected.set(group, (rejected.get(group) ?? 0) + 1);
  });
  const shares = [...all].map(([group, size]) => (rejected.get(group) ?? 0) / size);
  return { groups: all.size, least: Math.min(...shares), most: Math.max(...shares) };
}

/** Counts of known flaws by verdict. */
function flaws(limits) {
  const counts = { pass: 0, review: 0, reject: 0 };
  for (const item of data.reviewed) if (item.label === "flawed") counts[outcome(item.deciding, limits)]++;
  return counts;
}

/** What the latest parts become: changes by kind, and the parts. */
function changes(limits) {
  const before = inUse();
  const kinds = new Map();
  const parts = [];
  data.recent.deciding.forEach((deciding, place) => {
    const [old, after] = [outcome(deciding, before), outcome(deciding, limits)];
    if (old === after) return;
    kinds.set(`${old} ${after}`, (kinds.get(`${old} ${after}`) ?? 0) + 1);
    parts.push({ place, old, after });
  });
  return { kinds, parts };
}

/** Parts with an image nearest to the limit: below and above it. */
function edge(limit) {
  const places = data.recent.deciding.map((_, place) => place).filter((place) => data.recent.image[place]);
  const value = (place) => data.recent.deciding[place];
  const below = places.filter((place) => value(place) <= limit).sort((a, b) => value(b) - value(a)).slice(0, NEAR);
  const over = places.filter((place) => value(place) > limit).sort((a, b) => value(a) - value(b)).slice(0, NEAR);
  return { below: below.reverse(), over };
}

const picture = (place, limits) => {
  const [id, deciding] = [data.recent.id[place], data.recent.deciding[place]];
  const name = outcome(deciding, limits);
  return html`<a class="thumb" href="/studio/lines/${line}/run?part=${id}" title="part ${id}: ${score(deciding)}">
    <img loading="lazy" src=${ofLine(`/inspections/${id}/image?width=240`)} alt="part ${id}, ${name}, ${score(deciding)}" width="96" height="72">
    <span class="verdict ${name}">${shape(name)}<span class="n">${score(deciding)}</span></span></a>`;
};

function move({ kind, rank, isBeyond: beyond }) {
  const { reject, review } = now();
  const ranks = { reject: reject.rank, review: review?.rank ?? null, [kind]: rank };
  // A limit pushes the other one before it.
  const last = data.steps.length;
  if (ranks.review !== null && ranks.review <= ranks.reject) {
    if (kind === "reject") ranks.review = Math.min(last, ranks.reject + 1);
    else ranks.reject = Math.max(1, ranks.review - 1);
    if (ranks.review === ranks.reject) ranks[kind] += kind === "reject" ? -1 : 1;
  }
  if (ranks.reject < 1 || (ranks.review ?? 1) > last) return;
  chosen = ranks;
  isBeyond = beyond;
  draw();
}

const toRate = (rate) => move({ kind: "reject", rank: Math.floor((rate / 1000) * (data.good.length + 1) + 1e-9) });
const supports = (rate) => Math.floor((rate / 1000) * (data.good.length + 1) + 1e-9) >= 1;

const strictest = () => 1000 / (data.good.length + 1);
/** Rates to choose from; the strictest that the images support stands for all that they do not. */
const rates = () => (data.can_move && !RATES.some(supports) ? [...RATES, strictest()] : RATES);

function toggleReview() {
  const { reject, review } = now();
  chosen = { reject: reject.rank, review: review ? null : Math.min(data.steps.length, Math.max(reject.rank + 1, Math.round(reject.rank * 3))) };
  if (chosen.review === chosen.reject) chosen = null;
  draw();
}

async function apply(event) {
  event.preventDefault();
  const { reject, review } = now();
  const n = data.good.length;
  const order = { max_false_rejects: reject.rank / (n + 1), review_rate: review ? review.rank / (n + 1) : "none", reason, expected: data.now.limits };
  await set(order, "Applied. ");
}

const undo = () => set({ use: data.earlier[0], reason: reason || "back to the limits before", expected: data.now.limits }, "Back. ");

async function set(order, before) {
  try {
    const preview = await put(ofLine("/limit"), order);
    chosen = null;
    reason = "";
    await load();
    notify(`${before}Good parts rejected: ${preview.after.promise}.`, before.startsWith("Applied") && data.earlier.length ? { action: ["Undo", undo] } : {});
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 409) await load();
    notify(error.status === 409 ? "Somebody else has changed the limits meanwhile; these are the new ones." : error.message, { isBad: true });
  }
}

async function load() {
  const facts = await attempt(() => get(ofLine("")));
  if (facts && !facts.ready) {
    data = null;
    return render(html`<div class="head"><h1>Limit</h1></div>${noModel("How many good parts it rejects is set here, in steps of a good image each.")}`, page);
  }
  const told = facts && (await attempt(() => get(ofLine("/limit/scores"))));
  if (!told) return undefined;
  if (told.now.limits !== data?.now.limits) chosen = null; // it was a step of other images, or of limits that are no more
  data = told;
  const flawed = data.reviewed.filter((item) => item.label === "flawed").map((item) => item.deciding);
  data.axis = axisOf(data.good, [data.now.limit, data.now.review_limit ?? data.now.limit], [...data.forged, ...flawed]);
  isBeyond = false;
  return draw();
}

function sentence({ mean, worst, reject }) {
  if (!data.held_out) return html`<strong>Unknown how many good parts are rejected</strong>: the model learned from the images behind its limit. Calibrate with others.`;
  const groups = byGroup(reject.limit);
  return html`About <strong class="n">${of1000(mean)} of 1,000</strong> good parts will be rejected; 95 % sure: no more than <strong class="n">${of1000(worst, { up: true })}</strong>${groups && groups.groups > 1 ? " in a new group" : nothing}.
    <span class="quiet">Rests on ${several(data.now.good_images, data.audited ? "part of the random audit" : "good image", data.audited ? "parts of the random audit" : "good images")}${groups ? html` of ${several(groups.groups, "group")}${data.groups_by ? ` (${data.groups_by})` : ""}: of the best ${of1000(groups.least)}, of the worst ${of1000(groups.most)} of 1,000 lie above the limit` : nothing}.</span>`;
}

function needed({ mean, worst }) {
  const [, proven] = data.needed;
  if (data.now.good_images >= proven) return nothing;
  if (worst <= 0.01 && mean <= 0.01) return nothing;
  return html`<p class="quiet small" data-testid="limit.needed">For a proven 10 of 1,000: ${several(proven, "good image")}; ${count(proven - data.now.good_images)} more to go. Other days count more than more images.</p>`;
}

function draw() {
  const state = now();
  const limits = { reject: state.reject.limit, review: state.review?.limit ?? null };
  const known = flaws(limits);
  const knownCount = known.pass + known.review + known.reject;
  const forgedCaught = above(data.forged, limits.reject);
  const { kinds, parts } = changes(limits);
  const near = edge(limits.reject);
  const text = (mean, worst) => `${of1000(mean)} of 1,000 good parts rejected, at worst ${of1000(worst, { up: true })}`;
  const chart = {
    good: data.good, forged: data.forged, known: data.reviewed, steps: data.steps, axis: data.axis, canMove: data.can_move,
    reject: { ...state.reject, text: text(state.mean, state.worst) },
    review: state.review && { ...state.review, text: `${of1000(state.more)} of 1,000 good parts more go to review` },
  };
  const mayApply = who.isEngineer && chosen && reason.trim().length >= 3;
  render(html`
    <div class="head">
      <h1>Limit</h1>
      <span class="quiet" data-testid="limit.now">in use: ${promise(data.now)}</span>
      <span class="push row">
        ${chosen ? html`<button @click=${() => { chosen = null; isBeyond = false; draw(); }} data-testid="limit.reset">Discard</button>` : nothing}
        ${data.earlier.length ? html`<button ?disabled=${!who.isEngineer} @click=${undo} data-testid="limit.undo" title="the limits ${data.earlier[0]}">Back to the limits before</button>` : nothing}
      </span>
    </div>
    ${data.can_move ? nothing : html`<p class="remark" role="note">The limit of this model cannot be moved here: ${data.why_not}.</p>`}
    ${data.zones ? html`<p class="remark" role="note">This model has zones with limits of their own: figures here are close, those after Apply are exact.</p>` : nothing}
    <section class="panel">
      <div class="row" role="group" aria-label="Rate" data-testid="limit.rate">
        <span>Of 1,000 <strong>good</strong> parts, reject about</span>
        ${rates().map((rate) => html`<button ?disabled=${!data.can_move || !supports(rate)} aria-pressed=${of1000(state.mean) === of1000(rate / 1000)}
          title=${supports(rate) ? "" : `no image supports this: it takes ${count(Math.ceil(1000 / rate) - 1)} good images`} @click=${() => toRate(rate)}>${of1000(rate / 1000)}</button>`)}
        ${!data.can_move || rates().every(supports) ? nothing : html`<span class="quiet small">${several(data.good.length, "good image")} ${data.good.length === 1 ? "supports" : "support"} ${of1000(strictest() / 1000)} at best</span>`}
        <span class="push"><button ?disabled=${!data.can_move} aria-pressed=${Boolean(state.review)} @click=${toggleReview} data-testid="limit.band">Review band</button></span>
      </div>
      <limit-chart data-testid="limit.histogram" @move=${(event) => move(event.detail)}></limit-chart>
      <p class="sentence" aria-live="polite" data-testid="limit.sentence">${sentence(state)}</p>
      ${isBeyond ? html`<p class="remark" role="note" data-testid="limit.beyond">No image supports a limit beyond the largest good score. Fewer rejects take more good images.</p>` : nothing}
      ${needed(state)}
    </section>
    <div class="columns">
      <section class="panel stack">
        <h2>What follows</h2>
        <table class="figures"><tbody>
          <tr data-testid="limit.money"><th scope="row">At <label><span class="hidden">Parts a day</span><input type="number" min="1" max="10000000" .value=${String(partsADay)} @input=${(event) => { partsADay = Math.max(1, Number(event.target.value) || 1); localStorage.setItem(partsKey, partsADay); draw(); }} data-testid="limit.parts"></label> parts a day</th>
            <td>about <strong>${count(partsADay * state.mean)}</strong> good ones rejected${state.review ? html`, <strong>${count(partsADay * state.more)}</strong> good ones to review` : nothing}</td></tr>
          <tr data-testid="limit.flaws"><th scope="row">Known flaws</th><td>${knownCount ? html`<strong>${known.reject} of ${knownCount}</strong> rejected${known.review ? html`, ${known.review} to review` : nothing}, <span class=${known.pass ? "reject" : ""}>${known.pass} pass</span>` : html`<span class="quiet">none yet: label some under Review or Try</span>`}</td></tr>
          ${data.forged.length ? html`<tr data-testid="limit.forged"><th scope="row">Synthetic flaws</th><td><strong class="n">${Math.round((100 * forgedCaught) / data.forged.length)} %</strong> of ${count(data.forged.length)} rejected <span class="quiet">(drawn, not real)</span></td></tr>` : nothing}
          <tr data-testid="limit.preview"><th scope="row">Latest ${several(data.recent.id.length, "part")}</th><td>${parts.length ? [...kinds].map(([kind, number]) => { const [old, after] = kind.split(" "); return html`<span class="change">${verdict(old)} → ${verdict(after)} <strong>${count(number)}</strong></span>`; }) : html`<span class="quiet">${data.recent.id.length ? "no verdict changes" : "none judged by this model yet"}</span>`}</td></tr>
        </tbody></table>
        <form class="row apply" @submit=${apply}>
          <label class="grow"><span class="hidden">Reason</span><input type="text" placeholder="Reason, for the audit" maxlength="1000" .value=${reason} @input=${(event) => { reason = event.target.value; draw(); }} ?disabled=${!who.isEngineer} data-testid="limit.reason"></label>
          <button class="primary" ?disabled=${!mayApply} data-testid="limit.apply">Apply</button>
        </form>
        <p class="quiet small">${who.isEngineer ? "Holds for parts taken from then on. The audit keeps who, when, why and the expected effect." : "An engineer's token is needed to apply."}</p>
      </section>
      <section class="panel stack" data-testid="limit.edge">
        <h2>Parts nearest to the limit</h2>
        ${near.below.length + near.over.length ? html`
          <h3 class="quiet">just below: not rejected</h3><div class="thumbs">${near.below.map((place) => picture(place, limits))}</div>
          <h3 class="quiet">just above: rejected</h3><div class="thumbs">${near.over.map((place) => picture(place, limits))}</div>` : html`<p class="quiet">Images of the parts that this line judges appear here. Images of rejects and reviews are kept, of passes a share.</p>`}
      </section>
    </div>`, page);
  page.querySelector("limit-chart").show(chart);
}

follow({ limit: (told) => { if (told.line === line && told.limit.limits !== data?.now.limits && !chosen) load(); }, model: (told) => { if (told.line === line) load(); } }, undefined, () => { if (!chosen) load(); });
load();
