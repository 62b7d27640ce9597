// All lines: what runs, what it rejects, what waits.
import { attempt, follow, get } from "../api.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { of1000 } from "../words.js";

const cards = document.querySelector("#cards");
const search = document.querySelector("#search");
let lines = [];

const page = (line, name) => `/studio/lines/${encodeURIComponent(line.line)}/${name}`;

const card = (line) => html`
  <article class="card" data-testid="lines.card" data-line=${line.line}>
    <div>
      <h2><a href=${page(line, "run")}>${line.line}</a></h2>
      <span class="state ${line.ready ? "pass" : "quiet"}">${line.ready ? "● running" : "○ no model"}</span>
    </div>
    <dl class="facts">
      ${line.limit ? html`
        <div><dt>model</dt><dd><small>${line.method} ${line.model_sha256.slice(0, 8)}</small></dd></div>
        <div><dt>good parts rejected, of 1,000</dt><dd>${of1000(line.limit.rejected_of_1000 / 1000)} <small>at worst ${of1000(line.limit.rejected_of_1000_at_worst / 1000, { up: true })}</small></dd></div>` : nothing}
    </dl>
    <div class="links"><a class="button" href=${page(line, "limit")}>Limit</a><a class="button primary" href=${page(line, "run")}>Open</a></div>
  </article>`;

function draw() {
  const words = search.value.trim().toLowerCase();
  const shown = lines.filter((line) => `${line.line} ${line.place} ${line.product ?? ""}`.toLowerCase().includes(words));
  render(shown.length ? shown.map(card) : html`<p class="empty">No line has “${search.value}” in its name.</p>`, cards);
}

async function load() {
  lines = (await attempt(() => get("/v1/lines"))) ?? lines;
  draw();
}

search.addEventListener("input", draw);
follow({ limit: load, model: load });
load();
