// The service's interface, /v1: what a page asks, what it is told, and what it says where something is refused.

const facts = document.body.dataset;
/** Name of the page's line; empty on pages of all lines. */
export const line = facts.line;
/** Who looks. */
export const who = { name: facts.who, role: facts.role, isEngineer: facts.role === "engineer" };
/** Address of something of a line, by default the page's. */
export const ofLine = (path, name = line) => `/v1/lines/${encodeURIComponent(name)}${path}`;

/** A refusal: `status` of HTTP (0: no answer), a `message` for people, and whether it `passes`: the service is busy, ask again. */
export class Refusal extends Error {
  constructor(status, message, passes = false) {
    super(message);
    this.status = status;
    this.passes = passes;
  }
}

async function send(method, path, body, options = {}) {
  const isRaw = body instanceof Blob || body instanceof FormData || body instanceof ArrayBuffer;
  const headers = body === undefined || isRaw ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers: { ...headers, ...options.headers }, body: isRaw || body === undefined ? body : JSON.stringify(body), signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "the service does not answer: is it running?");
  }
  if (response.status === 401) {
    location.assign(`/studio/sign-in?to=${encodeURIComponent(location.pathname)}`);
    throw new Refusal(401, "sign in again");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refusal(response.status, told.detail ?? `refused (${response.status})`, response.headers.has("Retry-After"));
  }
  if (options.as === "response") return response;
  return response.status === 204 ? null : response.json();
}

export const get = (path, options) => send("GET", path, undefined, options);
export const post = (path, body, options) => send("POST", path, body, options);
export const put = (path, body, options) => send("PUT", path, body, options);
export const patch = (path, body, options) => send("PATCH", path, body, options);
export const remove = (path, options) => send("DELETE", path, undefined, options);

/** Say something for a few seconds; `action` [label, function] adds a button. What went wrong stays until it is closed. */
export function notify(text, { isBad = false, action = null } = {}) {
  const notices = document.querySelector("#notices");
  if (isBad && [...notices.children].some((other) => other.firstChild.textContent === text)) return; // it is said already
  const box = document.createElement("div");
  box.className = isBad ? "notice bad" : "notice";
  const words = document.createElement("span");
  words.textContent = text;
  box.append(words);
  const add = (label, run) => {
    const button = document.createElement("button");
    button.textContent = label;
    button.addEventListener("click", () => { box.remove(); run(); });
    box.append(button);
  };
  if (action) add(...action);
  if (isBad) add("Close", () => {});
  notices.append(box);
  if (!isBad) setTimeout(() => box.remove(), 7000);
}

/** Run something that may be refused, and say so. Gives what it gives, or undefined. */
export async function attempt(run, before = "") {
  try {
    return await run();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (!(error instanceof Refusal)) throw error;
    if (error.status !== 401) notify(before + error.message, { isBad: true });
    return undefined;
  }
}

const MOST_MISSED = 60_000; // ms: after a longer time unseen a page is filled anew instead of being told all it missed

/**
 * Follow the service's events while the page is seen. `handlers` by kind take the content; `state` takes "live" or "lost";
 * `again` is called where the page was not seen for so long that it must be filled anew. A hidden page lets go, as a browser
 * has few connections to a service.
 */
export function follow(handlers, state = () => {}, again = () => {}) {
  let source = null;
  let last = null;
  let retry = null;
  let left = null;
  const open = () => {
    if (source || document.hidden) return;
    if (left !== null && Date.now() - left > MOST_MISSED) {
      last = null;
      again();
    }
    left = null;
    source = new EventSource(last === null ? "/v1/events" : `/v1/events?after=${last}`);
    source.onopen = () => state("live");
    source.onerror = () => {
      state("lost");
      if (source.readyState !== EventSource.CLOSED) return; // it comes again by itself
      close();
      clearTimeout(retry);
      retry = setTimeout(open, 3000);
    };
    for (const [kind, handle] of Object.entries(handlers)) {
      source.addEventListener(kind, (event) => {
        if (event.lastEventId) last = event.lastEventId;
        handle(JSON.parse(event.data));
      });
    }
  };
  const close = () => {
    source?.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return open();
    left = Date.now();
    return close();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", open); // a page that the browser had laid aside
  open();
}
