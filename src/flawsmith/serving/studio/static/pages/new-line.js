// The form that makes a line, which is taught next.
import { attempt, post } from "../api.js";

const form = document.querySelector("#new-line");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = form.elements.line.value.trim().replace(/\s+/g, "-");
  const made = await attempt(() => post("/v1/lines", { line: name }));
  if (made) location.assign(`/studio/lines/${encodeURIComponent(made.line)}/teach`);
});
