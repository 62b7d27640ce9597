// Entries of the audit in words.
import { html } from "./vendor/lit-html.js";
import { of1000 } from "./words.js";

const promise = (limit) => `${of1000(limit.rejected_of_1000 / 1000)} of 1,000 (at worst ${of1000(limit.rejected_of_1000_at_worst / 1000, { up: true })})`;
const short = (sha256) => (sha256 ? sha256.slice(0, 8) : "none");

const WORDS = {
  limit: ({ effect, reason }) => html`limit ${promise(effect.before)} → <strong>${promise(effect.after)}</strong>, “${reason}”`,
  review: ({ record, label, comment }) => html`part ${record}: <strong>${label}</strong>${comment ? `, “${comment}”` : ""}`,
  picked: ({ name, label, role }) => html`image kept: ${name || "without a name"}, <strong>${label}</strong>, ${role === "test" ? "to measure with" : "to set limits by"}`,
  start: () => html`the service began`,
  stop: () => html`the service ended`,
};

function model(facts) {
  if ("loaded" in facts) return facts.loaded ? html`model <strong>${short(facts.loaded)}</strong> loaded` : html`model taken away`;
  return other(facts);
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
