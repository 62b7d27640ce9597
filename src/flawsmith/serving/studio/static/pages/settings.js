// Settings: what the service runs with. They are changed in its file, by whoever runs it.
import { attempt, get } from "../api.js";
import { html, nothing, render } from "../vendor/lit-html.js";

const page = document.querySelector("#page");
const WORDS = {
  host: "listens at", port: "port", records: "folder of records and images", upload_megabytes: "largest request, MB", model_megabytes: "largest model file, MB", megapixels: "largest image, megapixels",
  upload_seconds: "seconds for a request to arrive", answer_seconds: "seconds for a part to be judged", model_seconds: "seconds for the network", studio: "pages for browsers",
  audit_share: "share of passes and rejects put before a reviewer", decoders: "threads that decode images", queue: "parts that may wait", threads: "threads for the network",
  days: "images stay, days", gigabytes: "images together, GB", passes: "share of passes whose image is kept", keep_free: "GB kept free for records",
};
function shown(value) {
  if (value === null || value === "" || value.length === 0) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(shown).join("; ");
  if (typeof value !== "object") return String(value);
  return Object.entries(value).filter(([, inner]) => inner !== null && inner !== "").map(([name, inner]) => `${name.replaceAll("_", " ")} ${shown(inner)}`).join(", ");
}
const file = document.body.dataset.first === "teach" ? html`write them into <code>settings.toml</code> in the studio's folder` : "edit the file that the service was started with";
const rows = (values) => Object.entries(values).map(([name, value]) => html`<tr><th scope="row">${WORDS[name] ?? name.replaceAll("_", " ")}</th><td>${shown(value)}</td></tr>`);
const table = (title, values, id) => html`<section class="panel" data-testid=${id}><h2>${title}</h2><div class="scroll"><table class="facts-table"><tbody>${rows(values)}</tbody></table></div></section>`;

const told = await attempt(() => get("/v1/settings"));
if (told) {
  const { images, ...service } = told.service;
  render(html`
    <div class="head"><h1>Settings</h1><span class="quiet">signed in as <strong>${told.caller.name}</strong> (${told.caller.role})</span></div>
    <p class="quiet">To change them, ${file}, and start it again. Secrets are not shown.</p>
    <div class="columns settings">
      ${table("Service", service, "settings.service")}
      ${table("Images that are kept", { ...images, "free on the disk, GB": (told.free_bytes / 2 ** 30).toFixed(1) }, "settings.retention")}
      <section class="panel" data-testid="settings.tokens"><h2>Who may</h2>${told.tokens === null ? html`<p class="quiet">Told to engineers alone.</p>` : told.tokens.length ? html`<table><thead><tr><th scope="col">name</th><th scope="col">role</th></tr></thead><tbody>${told.tokens.map((token) => html`<tr><th scope="row">${token.name}</th><td>${token.role}</td></tr>`)}</tbody></table>` : html`<p>Everyone on this machine is an engineer called <strong>local</strong>. Others cannot reach the service; to let them, add tokens to the settings.</p>`}
        <p class="quiet small">Operators have parts inspected, look and review. Engineers teach, train, move limits and change models, too.</p></section>
      ${table("Versions", told.versions, "settings.versions")}
      ${Object.entries(told.lines).map(([name, values]) => table(html`Line ${name}`, values, "settings.line"))}
    </div>`, page);
} else render(nothing, page);
