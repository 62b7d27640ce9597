// Models: what judges on this line, what it rests on, and who changed what.
import { attempt, follow, get, line, ofLine } from "../api.js";
import { inWords } from "../audit.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { of1000, several, when } from "../words.js";

const page = document.querySelector("#page");
const KINDS = { "": "all", limit: "limits", model: "models", picked: "images kept", review: "reviews" };

let facts = null;
let audit = [];
let next = null;
let kind = "";

async function load() {
  facts = (await attempt(() => get(ofLine("")))) ?? facts;
  audit = [];
  next = null;
  await older();
}

async function older() {
  const from = next === null ? "" : `&cursor=${next}`;
  const told = await attempt(() => get(`/v1/audit?line=${encodeURIComponent(line)}&limit=30${kind ? `&kind=${kind}` : ""}${from}`));
  if (!told) return;
  audit.push(...told.items);
  next = told.next;
  draw();
}

function live() {
  if (!facts?.ready) return html`<div class="empty"><p>The line has no model.</p></div>`;
  const { limit } = facts;
  return html`<section class="panel" data-testid="models.live"><div class="row"><h2>Live</h2><span class="state pass">● judges parts</span></div>
    <dl class="facts">
      <div><dt>product</dt><dd class="model">${facts.product}</dd></div><div><dt>method</dt><dd class="model">${facts.method}</dd></div>
      <div><dt>file</dt><dd class="model"><code title=${facts.model_sha256}>${facts.model_sha256.slice(0, 12)}</code></dd></div>
      <div><dt>limit, of 1,000 good parts</dt><dd>${of1000(limit.rejected_of_1000 / 1000)} <small>at worst ${of1000(limit.rejected_of_1000_at_worst / 1000, { up: true })}</small></dd></div>
      <div><dt>rests on</dt><dd>${several(limit.good_images, "image")}</dd></div></dl></section>`;
}

function draw() {
  render(html`<div class="head"><h1>Models</h1></div>
    <div class="stack">${live()}
    <section class="panel" data-testid="models.audit"><div class="row"><h2>Who did what</h2>
      <label class="push">Show <select @change=${(event) => { kind = event.target.value; load(); }}>${Object.entries(KINDS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></label></div>
      <div class="scroll" tabindex="0" role="region" aria-label="Audit"><table><thead><tr><th scope="col">when</th><th scope="col">who</th><th scope="col">what</th></tr></thead>
      <tbody>${audit.map((entry) => html`<tr><td class="when">${when(entry.at)}</td><td>${entry.who}</td><td>${inWords(entry)}</td></tr>`)}</tbody></table></div>
      ${audit.length ? nothing : html`<p class="quiet">Nothing yet.</p>`}
      ${next === null ? nothing : html`<button @click=${older}>Older</button>`}
      <p class="quiet small">Entries are never changed or removed; <code>flawsmith audit verify</code> checks that.</p></section></div>`, page);
}

follow({ limit: load, model: load, line: load });
load();
