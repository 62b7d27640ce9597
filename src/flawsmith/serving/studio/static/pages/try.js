// Try: images are judged as parts are, and nothing is stored unless it is kept.
import { attempt, get, notify, ofLine, post, Refusal, who } from "../api.js";
import { filesOf } from "../files.js";
import { decoded, pictureOf } from "../image-view.js";
import { noModel } from "../no-model.js";
import { html, nothing, render } from "../vendor/lit-html.js";
import { count, score, several, times, verdict } from "../words.js";

const page = document.querySelector("#page");
const MOST_HEATS = 60; // maps in memory; others are asked for again
const KINDS = /\.(png|jpe?g|bmp|tiff?|webp)$/i;

let items = []; // {file, result, error, heat, kept}
let shown = null;
let order = "nearest";
let role = "test";
let isBusy = false;
let isReady = true; // whether the line has a model

const orders = {
  nearest: (a, b) => distance(a) - distance(b),
  highest: (a, b) => b.result.deciding - a.result.deciding,
  name: (a, b) => a.file.name.localeCompare(b.file.name, undefined, { numeric: true }),
};
const distance = (item) => Math.abs(item.result.deciding - item.result.limit);

/** Items in the order of the list: those that wait or failed come last. */
function sorted() {
  const done = items.filter((item) => item.result).sort(orders[order]);
  return [...done, ...items.filter((item) => !item.result)];
}

async function judge(item, query = "") {
  for (;;) {
    try {
      const { heat, ...result } = await post(ofLine(`/try${query}`), item.file, { headers: { "Content-Type": "application/octet-stream" } });
      Object.assign(item, { result, heat: decoded(heat), error: null });
      const old = items.filter((other) => other.heat && other !== item && other !== shown);
      for (const other of old.slice(0, Math.max(0, old.length - MOST_HEATS))) other.heat = null;
      return true;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!error.passes) {
        item.error = error.message;
        return false;
      }
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  }
}

async function add(files) {
  const images = [...files].filter((file) => KINDS.test(file.name));
  if (images.length < files.length) notify(`${several(files.length - images.length, "file")} left out: no PNG, JPEG, BMP, TIFF or WebP by its name.`);
  items.push(...images.map((file) => ({ file })));
  draw();
  if (isBusy) return;
  isBusy = true;
  for (let item; (item = items.find((waiting) => !waiting.result && !waiting.error)); ) {
    await judge(item);
    if (!shown && item.result) await select(item);
    draw();
  }
  isBusy = false;
  draw();
}

async function select(item) {
  shown = item;
  draw();
  if (!item?.result) return void view()?.show(null);
  if (!item.heat) await judge(item);
  const picture = (await pictureOf(item.file)) ?? null;
  if (shown !== item) return;
  const { width, height, regions, map_limit: limit, verdict: name } = item.result;
  // TIFF and deep images are shown as far as the browser can: else the map alone, on grey.
  view()?.show({ picture: picture ?? blank(width, height), size: [width, height], heat: item.heat, limit, regions, label: `${item.file.name}: ${name}, ${score(item.result.score)}` });
  page.querySelector("tr[aria-selected='true']")?.scrollIntoView({ block: "nearest" });
}

function blank(width, height) {
  const canvas = new OffscreenCanvas(Math.min(width, 64), Math.min(height, 64));
  const context = canvas.getContext("2d");
  context.fillStyle = "#8a939c";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

const view = () => page.querySelector("image-view");

function step(by) {
  const list = sorted().filter((item) => item.result);
  const next = list[Math.min(list.length - 1, Math.max(0, list.indexOf(shown) + by))];
  if (next) select(next);
}

async function keep(label) {
  const item = shown;
  if (!item?.result || !who.isEngineer) return;
  const name = encodeURIComponent(item.file.name.slice(0, 300));
  if (await judge(item, `?label=${label}&role=${role}&name=${name}`)) {
    item.kept = label;
    notify(`Kept as ${label}, ${role === "test" ? "to measure with" : "to set limits by"}.`);
  } else {
    notify(item.error, { isBad: true });
    item.error = null; // it was judged all the same
  }
  draw();
}

function toggle(name) {
  const element = view();
  element[name] = !element[name];
  element.redraw();
  draw();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary")) return;
  const isButton = Boolean(event.target.closest("button, a"));
  const runs = {
    ArrowDown: () => step(1), ArrowUp: () => step(-1), m: () => toggle("hasMap"), r: () => toggle("hasRegions"),
    g: () => keep("good"), b: () => keep("flawed"), u: () => keep("unclear"), " ": isButton ? null : () => toggle("hasMap"),
  };
  const run = runs[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!run || !items.length) return;
  event.preventDefault();
  run();
});

const input = html`<label class="button primary">Choose images<input type="file" multiple accept="image/*,.tif,.tiff,.bmp" class="hidden" data-testid="try.files" @change=${(event) => { add([...event.target.files]); event.target.value = ""; }}></label>`;

async function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  add((await filesOf(event.dataTransfer)).map(({ file }) => file));
}

addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => attempt(() => dropped(event)));

function area({ result }) {
  if (!result.regions.length) return "–";
  const pixels = result.regions.reduce((sum, region) => sum + region.area, 0);
  return result.pixel_size ? `${(pixels * result.pixel_size ** 2).toPrecision(2)} mm²` : `${count(pixels)} px`;
}

function row(item) {
  const isShown = item === shown;
  if (!item.result) return html`<tr><th scope="row"><span class="name">${item.file.name}</span></th><td colspan="4" class=${item.error ? "error" : "quiet"}>${item.error ?? "waits …"}</td></tr>`;
  return html`<tr aria-selected=${isShown} @click=${() => select(item)} data-testid="try.row">
    <th scope="row"><button class="name plain" aria-current=${isShown} @click=${(event) => { event.stopPropagation(); select(item); }}>${item.file.name}</button></th>
    <td>${verdict(item.result.verdict)}</td><td class="n">${times(item.result.times_limit)}</td><td class="n">${area(item)}</td><td>${item.kept ? html`<span title="kept">✓ ${item.kept}</span>` : nothing}</td></tr>`;
}

function summary() {
  const done = items.filter((item) => item.result);
  const failed = items.filter((item) => item.error).length;
  const of = (name) => done.filter((item) => item.result.verdict === name).length;
  return html`<span data-testid="try.summary" aria-live="polite">${several(done.length, "image")}: ${of("pass")} pass, ${of("review")} review, ${of("reject")} reject${failed ? `, ${failed} unreadable` : ""}${isBusy ? html` <span class="quiet">(${items.length - done.length - failed} wait)</span>` : nothing}</span>`;
}

function draw() {
  if (!isReady) return render(html`<div class="head"><h1>Try</h1></div>${noModel("Images are judged here as parts would be, and nothing is stored unless you keep it.")}`, page);
  if (!items.length) {
    return render(html`<div class="head"><h1>Try</h1></div>
      <div class="empty big" data-testid="try.drop"><p class="lead">Drop images of parts here</p><p>The line judges them as it would judge its parts. They get no record, and nothing is stored unless you keep it.</p><p>${input}</p></div>`, page);
  }
  const result = shown?.result;
  return render(html`
    <div class="head"><h1>Try</h1>${summary()}
      <span class="push row"><label>Sort <select @change=${(event) => { order = event.target.value; draw(); }} data-testid="try.sort">
        <option value="nearest">nearest to the limit</option><option value="highest">highest first</option><option value="name">by name</option></select></label>
        <span data-testid="try.drop">${input}</span><button @click=${() => { items = []; shown = null; draw(); }}>Clear</button></span></div>
    <div class="split">
      <div class="panel list" data-testid="try.list" tabindex="0" role="region" aria-label="Images"><table>
        <thead><tr><th scope="col">name</th><th scope="col">verdict</th><th scope="col" class="n">× limit</th><th scope="col" class="n">area</th><th scope="col"><span class="hidden">kept</span></th></tr></thead>
        <tbody>${sorted().map(row)}</tbody></table></div>
      <div class="panel viewer">
        <div class="row">${result ? html`${verdict(result.verdict)}<span class="n">${times(result.times_limit)} × limit</span><span class="quiet small n">score ${score(result.score)} · ${Math.round(result.milliseconds)} ms</span>` : html`<span class="quiet">no image chosen</span>`}
          <span class="push row"><button aria-pressed=${view()?.hasMap ?? true} @click=${() => toggle("hasMap")} data-testid="try.map">Map <kbd>M</kbd></button><button aria-pressed=${view()?.hasRegions ?? true} @click=${() => toggle("hasRegions")} data-testid="try.regions">Regions <kbd>R</kbd></button></span></div>
        <image-view data-testid="try.view"></image-view>
        <p class="quiet small keys"><kbd>Space</kbd> blink <kbd>↑</kbd> <kbd>↓</kbd> other image · wheel or <kbd>+</kbd> <kbd>−</kbd> zoom · <kbd>1</kbd> pixels <kbd>0</kbd> whole</p>
        <div class="row" data-testid="try.label"><span class="small">Keep as</span>
          ${[["good", "Good", "G"], ["flawed", "Bad", "B"], ["unclear", "Unsure", "U"]].map(([label, word, key]) => html`<button ?disabled=${!result || !who.isEngineer} aria-pressed=${shown?.kept === label} @click=${() => keep(label)} data-testid="try.${label}">${word} <kbd>${key}</kbd></button>`)}
          <select aria-label="What it may be used for" @change=${(event) => { role = event.target.value; }} data-testid="try.role"><option value="test">to measure with</option><option value="calibrate">to set limits by</option></select></div>
      </div>
    </div>`, page);
}

draw();
attempt(() => get(ofLine(""))).then((facts) => {
  isReady = facts?.ready ?? true;
  draw();
});
