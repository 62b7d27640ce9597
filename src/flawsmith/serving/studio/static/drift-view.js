// What is known of a line's drift: how sure, since when, what moved, and the first parts that stood out.
import { get, ofLine } from "./api.js";
import { BECAUSE } from "./audit.js";
import "./drift-chart.js";
import { html, nothing } from "./vendor/lit-html.js";
import { count, inSigns, nameOf, several, shape, when } from "./words.js";

/** Records of numbers that the service names, each with whether its image was kept; those that are no more are left out. */
export async function recordsOf(numbers) {
  const pages = await Promise.all(numbers.map((number) => get(ofLine(`/inspections?cursor=${number + 1}&limit=1`))));
  return pages.flatMap(({ items, images }, place) => items.filter((record) => record.id === numbers[place]).map((record) => ({ record, image: images.includes(record.id) })));
}

/** In a sentence or two, how sure it is. */
function sentence({ alarm, alarm_at: limit, begun, because, evidence, parts, reference, reference_scores: scores }) {
  const compared = reference === "calibration" ? `with ${several(scores, "good image")} behind the limit and with each other` : "with each other";
  const begin = `${several(parts, "part")} since ${when(begun)}, when ${BECAUSE[because] ?? "the test began"}, ${parts === 1 ? "is" : "are"} compared ${compared}.`;
  if (alarm) return html`Scores are <strong>${alarm.direction}</strong> than before since ${when(alarm.since)}, part number ${count(alarm.since_record)}; it was certain ${when(alarm.at)}, with number ${count(alarm.record)}. ${begin}`;
  return html`<strong>Calm.</strong> ${begin} The evidence of a change is <span class="n">${evidence < 10 ? evidence.toFixed(1) : count(evidence)}</span>; at <span class="n">${count(limit)}</span> the line says so. Of 1,000 lines whose parts stay the same, one at most ever reaches that.`;
}

const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function statistics({ statistics: rows }) {
  if (!rows.length) return html`<p class="quiet">Brightness, contrast and the like are compared once 100 parts have come.</p>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Image statistics"><table data-testid="drift.statistics"><thead><tr><th scope="col">of the images</th><th scope="col" class="n">first 100 parts</th><th scope="col" class="n">now</th><th scope="col">change</th><th scope="col">moved, since</th></tr></thead>
    <tbody>${rows.map((row) => html`<tr data-moved=${row.moved}><th scope="row">${row.name}</th><td class="n">${NUMBER.format(row.learned)}</td><td class="n">${NUMBER.format(row.now)}</td><td class="n-left">${row.words.includes("->") ? "–" : inSigns(row.words.replace(row.name, ""))}</td>
      <td class="n-left">${row.moved ? html`<span class="verdict reject">${shape("reject")}yes</span>${row.since_record ? html` <span class="quiet">number ${count(row.since_record)}</span>` : nothing}` : html`<span class="verdict pass">${shape("pass")}no</span>`}</td></tr>`)}</tbody></table></div>`;
}

/** The panel's content: `odd` are the first parts that stood out, as `recordsOf` gives them; `open` is called with the number of one. */
export const driftView = (drift, odd, open) => html`
  <p data-testid="drift.says">${sentence(drift)}</p>
  <div class="columns">
    <div><h3>Evidence, by part number</h3><drift-chart class="rate" data-testid="drift.curve"></drift-chart>
      <p class="quiet small">What a stake of 1 has become that bets on a change, on a logarithmic scale. Dashed: the alarm. Upright: where it most likely began.</p></div>
    <div><h3>What moved</h3>${statistics(drift)}</div>
  </div>
  ${odd.length ? html`<h3>First parts that stood out</h3><div class="thumbs" data-testid="drift.odd">${odd.map(({ record, image }) => html`<a class="thumb" href="?part=${record.id}" @click=${(event) => { event.preventDefault(); open(record.id); }}>
    ${image ? html`<img src=${ofLine(`/inspections/${record.id}/image?width=240`)} width="120" height="90" alt="">` : html`<span class="no-image">not kept</span>`}
    <span>${nameOf(record)}</span><span class="quiet">${when(record.received)}</span></a>`)}</div>` : nothing}`;
