// What the pages share: making elements, asking the gateway with a key, and saying what went wrong.
// Text is only ever set as text, never as markup; the pages' policy forbids the rest.

const SVG = "http://www.w3.org/2000/svg";
const KEY = "mesh-api-key";

const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

export const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Changes an element only where it says something new: what is written again loses a reader's place in it.
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};
export const mark = (element, name, value) => {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
};

// ── numbers for people ──
export const age = (seconds) => {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 100) return `${whole} s`;
  if (whole < 6000) return `${Math.round(whole / 60)} min`;
  if (whole < 48 * 3600) return `${Math.round(whole / 3600)} h`;
  return `${Math.round(whole / 86400)} days`;
};
export const milliseconds = (value) => {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 100 ? Math.round(value) : value.toPrecision(value >= 10 ? 3 : 2)} ms`;
};
export const gibi = (bytes) => (bytes === null || bytes === undefined ? "?" : `${(bytes / 2 ** 30).toFixed(1)} GiB`);
export const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;

// ── the key ──
// In this tab alone, and gone with it.
export const key = () => sessionStorage.getItem(KEY) || "";
export const withKey = (headers = {}) => (key() ? { ...headers, authorization: `Bearer ${key()}` } : headers);

const keyForm = (onChange) => {
  const input = make("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false" });
  const note = make("span", { class: "note", role: "status" });
  const summary = make("summary", {});
  const show = () => say(summary, key() ? "API key: in use" : "API key");
  const keep = (value, words) => {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    input.value = "";
    show();
    say(note, words);
    onChange();
  };
  const form = make("form", { onsubmit: (event) => {
    event.preventDefault();
    if (input.value.trim()) keep(input.value.trim(), "In use in this tab.");
  } },
  make("label", { for: "key" }, "Key for this gateway"), input,
  make("button", { type: "submit" }, "Use"),
  make("button", { type: "button", class: "quiet", onclick: () => keep("", "Forgotten.") }, "Forget"), note,
  make("p", { class: "note" }, "Kept in this browser tab until it is closed; sent to this gateway only."));
  show();
  return make("details", { class: "key", id: "key-box" }, summary, form);
};

export const header = (here, onKey = () => {}) => {
  const link = (path, words) => make("a", { href: path, "aria-current": path === here ? "page" : null }, words);
  document.getElementById("top").append(
    make("p", { class: "brand" }, "Torch Isolation Mesh"),
    make("nav", { "aria-label": "Pages" }, link("/", "Status"), link("/try", "Try"), link("/docs", "API")),
    keyForm(onKey),
  );
};

export const openKeyBox = () => {
  document.getElementById("key-box").open = true;
  document.getElementById("key").focus();
};

// ── what went wrong ──
// Every dialect's failure has its sentence somewhere else; it says what to do where the gateway knows.
const sentence = (body) => {
  if (typeof body !== "object" || body === null) return "";
  const inner = body.error;
  if (typeof inner === "object" && inner !== null) return inner.message || inner.detail || "";
  return body.detail || body.message || inner || "";
};
const NEXT = {
  401: "Enter an API key for this gateway above.",
  403: "This key may not do that. Use a key with the role that may, or ask whoever runs the gateway.",
  404: "See on the status page what is served now.",
  413: "Send less at once, or split it.",
  422: "Put right what the message names, then send it again.",
  429: "Something is busy: wait for a moment, then try again.",
  500: "Report the request id to whoever runs this gateway; its log has the cause.",
  503: "See on the status page which worker is away; it comes back by itself where it can.",
  504: "Send less at once, or try again when the mesh is less busy: see the status page.",
};

export class Refused extends Error {
  constructor(status, words, next, { requestId = "", retryAfter = "" } = {}) {
    super(words);
    Object.assign(this, { status, next, requestId, retryAfter });
  }

  static broken(document) {
    return new Refused(0, sentence({ error: document }) || sentence(document) || "The answer broke off.",
      "What came so far is not whole. Send it again.");
  }
}

// Answers with the response where it is a success, else throws Refused. Without the browser's own credentials: a gateway
// that asks for a key would have it open a password window over the page, which asks by itself.
export const ask = async (path, options = {}) => {
  let answer;
  try {
    answer = await fetch(path, { credentials: "omit", ...options, headers: withKey(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The gateway does not answer.", "Check that it runs and that the network reaches it, then try again.");
  }
  if (answer.ok) return answer;
  let body = null;
  try {
    body = await answer.json();
  } catch { /* an answer without JSON: its status must do */ }
  const next = NEXT[answer.status] || (answer.status >= 500 ? NEXT[503] : NEXT[422]);
  throw new Refused(answer.status, sentence(body) || `The gateway answered with status ${answer.status}.`, next,
    { requestId: answer.headers.get("x-request-id") || "", retryAfter: answer.headers.get("retry-after") || "" });
};
export const post = (path, body, options = {}) =>
  ask(path, { method: "POST", body: JSON.stringify(body), ...options,
    headers: { "content-type": "application/json", ...options.headers } });

export const errorBox = (error) => {
  if (!(error instanceof Refused)) {
    return make("div", { class: "error", role: "alert" }, make("p", {}, "This page failed: ", make("code", {}, `${error}`)),
      make("p", {}, "Reload it. If it fails again, report this text to whoever runs the gateway."));
  }
  const facts = [error.status ? `status ${error.status}` : "", error.retryAfter ? `retry after ${error.retryAfter} s` : "",
    error.requestId ? `request ${error.requestId}` : ""].filter(Boolean).join(" · ");
  const box = make("div", { class: "error", role: "alert" }, make("p", {}, make("strong", {}, error.message)),
    make("p", {}, error.next), facts ? make("p", { class: "note" }, facts) : null);
  if (error.status === 401 || error.status === 403) {
    box.append(make("button", { type: "button", onclick: openKeyBox }, "Enter a key"));
  }
  return box;
};

// ── streams ──
async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const pieces = (rest + part.value).split("\n");
      rest = pieces.pop();
      yield* pieces;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function* jsonLines(answer) {
  for await (const line of lines(answer)) if (line.trim()) yield JSON.parse(line);
}

// fetch instead of EventSource, which sends no headers and so no key.
export async function* events(answer) {
  let event = { name: "message", id: "", data: [] };
  for await (const raw of lines(answer)) {
    const line = raw.replace(/\r$/, "");
    if (line === "") {
      if (event.data.length) yield { ...event, data: event.data.join("\n") };
      event = { name: "message", id: event.id, data: [] };
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === 0) continue;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") event.name = value;
    else if (field === "id") event.id = value;
    else if (field === "data") event.data.push(value);
  }
}
