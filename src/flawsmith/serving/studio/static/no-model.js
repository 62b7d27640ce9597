// What a page says that has nothing to show before the line has a model.
import { line } from "./api.js";
import { html } from "./vendor/lit-html.js";

const first = document.body.dataset.first;

/** `words`: what there will be once there is a model. */
export const noModel = (words) => html`<div class="empty big" data-testid="no-model"><p class="lead">The line has no model yet</p><p>${words}</p>
  <p>${first === "teach" ? html`<a class="button primary" href="/studio/lines/${line}/teach">Teach it</a> ` : ""}<a class="button ${first === "teach" ? "" : "primary"}" href="/studio/lines/${line}/models">Bring a model file</a></p></div>`;
