// Entries of the audit in words.
import { html } from "./vendor/lit-html.js";
import { inSigns, promise, several, when } from "./words.js";

const short = (sha256) => (sha256 ? sha256.slice(0, 8) : "none");

/** Why a test of drift begins anew. */
export const BECAUSE = { first: "the line began", model: "another model became live", limits: "the limits were changed", acknowledged: "a drift was acknowledged" };

function drift({ event, because, reason, direction, since, moved }) {
  if (event === "alarm") return html`<strong>drift</strong>: scores ${direction} than before since ${when(since)}${moved.length ? ` (${inSigns(moved.join(", "))})` : ""}`;
  if (because === "acknowledged") return html`drift <strong>acknowledged</strong>, “${reason}”`;
  return html`the test of drift began, as ${BECAUSE[because]}`;
}

const ROLES = { learn: "to learn from", calibrate: "to set the limit", flawed: "flawed", "left-out": "left out", "not-good": "not good" };

function teach(facts) {
  if (facts.role) return html`${several(facts.images.length, "image")}: <strong>${ROLES[facts.role]}</strong>`;
  if (facts.good) return html`${several(facts.good.length, "odd image")} called <strong>good</strong>`;
  if (facts.from !== undefined) return html`images from ${facts.from}: <strong>${several(facts.added, "image")}</strong> added${facts.refused ? `, ${facts.refused} refused` : ""}`;
  const { grouping, scale, region } = facts;
  return html`${[grouping ? `images grouped by ${grouping}` : "", scale ? `scale ${scale === "unknown" ? scale : `${scale} mm per pixel`}` : "", region ? `region of interest ${region === "everywhere" ? "taken away" : "drawn"}` : ""].filter(Boolean).join(", ")}`;
}

function accept({ event, plan, signed, result }) {
  if (event === "begun") return html`acceptance study begun: ${plan.good} good and ${plan.flawed} flawed parts, ${several(plan.repeats, "time")} each`;
  if (event === "withdrawn") return html`acceptance: a placement was taken back`;
  return html`acceptance study ended: <strong>${result.grade ?? "not complete"}</strong>, signed by ${signed}`;
}

const WORDS = {
  limit: ({ effect, reason }) => html`limit ${promise(effect.before)} → <strong>${promise(effect.after)}</strong>, “${reason}”`,
  review: ({ record, label, comment }) => html`part ${record}: <strong>${label}</strong>${comment ? `, “${comment}”` : ""}`,
  picked: ({ name, label, role }) => html`image kept: ${name || "without a name"}, <strong>${label}</strong>, ${role === "test" ? "to measure with" : "to set limits by"}`,
  camera: ({ paused, reason }) => html`camera <strong>${paused ? "paused" : "resumed"}</strong>, “${reason}”`,
  output: ({ output, skipped }) => html`output ${output}: <strong>${several(skipped, "record")}</strong> left out, as too many waited`,
  line: ({ added }) => html`the line was <strong>${added ? "made" : "removed"}</strong>`,
  teach,
  training: ({ number, order, images, stopped }) => (order ? html`training <strong>${number}</strong> begun with ${several(Object.values(images).reduce((sum, each) => sum + each, 0), "image")}` : html`training ${number} <strong>${stopped ? "stopped" : "continued"}</strong>`),
  accept,
  placed: ({ part, truth, verdict }) => html`acceptance: ${part} (${truth}) placed, <strong>${verdict}</strong>`,
  drift,
  start: () => html`the service began`,
  stop: () => html`the service ended`,
};

const DEEDS = { added: "came", activated: "made live", "rolled back": "made live again", "shadow begun": "began to judge beside the line", "shadow ended": "judges no more beside the line", removed: "let go of", unloaded: "taken away", loaded: "loaded" };

function model(facts) {
  if (!facts.action) return facts.loaded ? html`model <strong>${short(facts.loaded)}</strong> loaded` : html`the model was taken away`;
  const changes = Object.entries(facts.changes ?? facts.shadow?.changes ?? {});
  const parts = changes.reduce((sum, [, number]) => sum + number, 0);
  const flips = changes.reduce((sum, [change, number]) => sum + (new Set(change.split(" -> ")).size > 1 ? number : 0), 0);
  return html`model <strong>${short(facts.sha256)}</strong> ${DEEDS[facts.action] ?? facts.action}${parts ? `: ${flips} of ${parts} verdicts differed beside the line` : ""}${facts.reason ? `, “${facts.reason}”` : ""}`;
}

const other = (facts) => html`${Object.entries(facts).filter(([, value]) => value === null || typeof value !== "object").map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ")}`;

/** An entry of the audit as a line of words. */
export function inWords(entry) {
  try {
    return entry.kind === "model" ? model(entry.facts) : (WORDS[entry.kind] ?? other)(entry.facts);
  } catch {
    return other(entry.facts); // an entry of an earlier build may lack what the words name
  }
}
