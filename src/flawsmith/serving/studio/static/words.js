// Numbers and verdicts as all pages write them.
import { html, svg } from "./vendor/lit-html.js";

const SHAPES = {
  pass: svg`<circle cx="8" cy="8" r="7"/>`,
  review: svg`<path d="M8 1 15.5 15H.5z"/>`,
  reject: svg`<rect x="1" y="1" width="14" height="14"/>`,
  error: svg`<path d="M3 1 8 6l5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5-5-5z"/>`,
};
/** Outcomes of a part in the order of severity. */
export const OUTCOMES = ["pass", "review", "reject", "error"];

/** The shape of a verdict alone. */
export const shape = (verdict) => html`<svg viewBox="0 0 16 16" aria-hidden="true">${SHAPES[verdict]}</svg>`;
/** Shape and word. */
export const verdict = (name) => html`<span class="verdict ${name}">${shape(name)}${name}</span>`;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
/** 11482 -> 11,482 */
export const count = (number) => whole.format(number);
/** "1 image", "12 images" */
export const several = (number, noun, plural = `${noun}s`) => `${count(number)} ${number === 1 ? noun : plural}`;

/** What the service says of changes, "brightness -9 %", with a minus and an arrow. */
export const inSigns = (words) => words.replaceAll(" ->", " →").replaceAll(" -", " −");

/** A rate as parts of 1,000, as the service writes them: whole from ten on, one decimal below; `up` rounds a bound up. */
export function of1000(rate, { up = false } = {}) {
  const parts = 1000 * rate;
  const digits = parts >= 9.95 ? 0 : parts >= 0.95 ? 1 : 2;
  const rounded = up ? Math.ceil(parts * 10 ** digits - 1e-9) / 10 ** digits : parts;
  return new Intl.NumberFormat("en", { maximumFractionDigits: digits }).format(rounded);
}
/** What limits reject of 1,000 good parts: [in the mean, 95 % sure at most]. */
export const rates = ({ rejected_of_1000: mean, rejected_of_1000_at_worst: worst }) => [of1000(mean / 1000), of1000(worst / 1000, { up: true })];
/** The same in words: "10 of 1,000, at worst 24". */
export const promise = (limit) => rates(limit).join(" of 1,000, at worst ");
/** A score with four digits that count. */
export const score = (number) => (number === null || number === undefined ? "–" : Number(number.toPrecision(4)).toString());
/** A multiple of the limit. */
export const times = (number) => (number === null || number === undefined ? "–" : number.toFixed(2));

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
/** Time of day of an ISO text, with the date where it is another day. */
export function when(text) {
  const time = new Date(text);
  return time.toDateString() === new Date().toDateString() ? clock.format(time) : date.format(time);
}
/** Begin of today here, as the service reads it. */
export function today() {
  const start = new Date();
  start.setHours(0, 0, 0, 0);
  return start.toISOString();
}
