// Draws /status/stream. Rows are made once and then changed in place, so that focus, open details and a screen reader's
// place stay where they are; only changes of state are said aloud.
import { age, ask, count, errorBox, events, gibi, header, make, mark, milliseconds, Refused, say } from "./shared.js";
import { bars, HEALTH, MEANING, meter, servesOf, shape, sinceOf, Spark, stateOf, wire, words } from "./status-parts.js";

const STALE_MS = 5000;
const HIDDEN_MS = 30000;
const MOST_CHANGES = 50;
const at = (id) => document.getElementById(id);

// ── one figure: a small name over a value ──
const figure = (list, name) => {
  const value = make("dd", {});
  list.append(make("div", {}, make("dt", {}, name), value));
  return value;
};

// ── a shape that changes with its state ──
class Shape {
  constructor(state) {
    this.state = state;
    this.element = shape(state);
  }

  show(state) {
    if (state === this.state) return;
    this.state = state;
    const next = shape(state);
    this.element.replaceWith(next);
    this.element = next;
  }
}

class EndpointRow {
  constructor() {
    this.shape = new Shape("wait");
    this.name = make("code", {});
    this.words = make("span", {});
    this.probed = make("span", {});
    this.why = make("span", { class: "why" });
    this.element = make("li", { "data-state": "wait" }, this.shape.element, make("span", { class: "what" }, this.name, " ", this.words, this.probed, this.why));
  }

  update(endpoint) {
    let [state, word] = HEALTH[endpoint.health] || HEALTH.UNKNOWN;
    if (endpoint.ejected) [state, word] = ["warn", `${word}, left out: its calls fail`];
    this.shape.show(state);
    mark(this.element, "data-state", state);
    const resolved = endpoint.address && endpoint.address !== endpoint.endpoint ? ` → ${endpoint.address}` : "";
    say(this.name, endpoint.endpoint + resolved);
    const known = endpoint.health === "UNKNOWN" ? "" : ` for ${age(endpoint.seconds_in_state)}`;
    say(this.words, `${word}${known}, ${endpoint.in_flight} in flight`);
    say(this.probed, this.probe(endpoint));
    say(this.why, endpoint.health !== "SERVING" && endpoint.reason ? endpoint.reason : "");
  }

  probe(endpoint) {
    const ago = endpoint.last_probe_seconds_ago;
    return ago === null ? "probe not answered yet" : `probe last heard ${age(ago)} ago`;
  }
}

class HopRow {
  constructor(name) {
    const id = `hop-${name.replaceAll(/[^a-z0-9]/gi, "-")}`;
    this.endpoints = [];
    this.spark = new Spark();
    this.shape = new Shape("wait");
    this.word = make("span", { class: "word" });
    this.since = make("span", { class: "since" });
    this.why = make("p", { class: "why" });
    this.serves = make("p", { class: "serves" });
    this.list = make("ul", { class: "endpoints", "aria-label": `Endpoints of ${name}` });
    const figures = make("dl", { class: "figures" });
    this.breaker = figure(figures, "breaker");
    this.load = figure(figures, "in flight");
    this.rate = figure(figures, "calls");
    this.p50 = figure(figures, "p50");
    this.p99 = figure(figures, "p99");
    this.scale = make("p", { class: "scale" });
    this.minute = make("div", { class: "minute", "data-calls": "no" }, this.spark.element, this.scale);
    this.more = make("dl", { class: "more" });
    this.facts = ["breaker's last reason", "opened", "limits", "asked for what it serves", "leads to", "to serve another"]
      .map((each) => figure(this.more, each));
    this.element = make("li", { class: "hop", "data-state": "wait", "data-breaker": "closed", "data-flow": "no" },
      wire(),
      make("article", { "aria-labelledby": id },
        make("div", { class: "who" },
          make("h3", { id }, name),
          make("p", { class: "state" }, this.shape.element, this.word, this.since), this.serves, this.why),
        make("div", { class: "where" }, this.list,
          make("details", {}, make("summary", { "aria-label": `More about ${name}` }, "more"), this.more)),
        figures,
        this.minute));
  }

  update(hop) {
    const [state, word] = stateOf(hop);
    this.shape.show(state);
    mark(this.element, "data-state", state);
    mark(this.element, "data-breaker", hop.breaker.state);
    mark(this.element, "data-flow", hop.serving && hop.now.calls_per_second > 0 ? "yes" : "no");
    say(this.word, word);
    say(this.since, state === "wait" ? "" : `for ${age(sinceOf(hop))}`);
    // What an endpoint says itself stands there.
    const told = hop.endpoints.some((each) => each.health !== "SERVING" && each.reason === hop.reason);
    say(this.why, state !== "good" && hop.reason && !told ? hop.reason : "");
    this.updateServes(hop);
    this.updateEndpoints(hop.endpoints);
    this.updateFigures(hop);
    this.updateFacts(hop);
    this.spark.add(hop.now);
    const top = this.spark.highest;
    mark(this.minute, "data-calls", top ? "yes" : "no");
    say(this.scale, top ? `last minute, up to ${milliseconds(top)}` : "no calls in the last minute");
  }

  updateServes(hop) {
    const text = JSON.stringify(servesOf(hop.serves));
    if (this.served === text) return;
    this.served = text;
    this.serves.replaceChildren(...servesOf(hop.serves).map((model) => make("span", { class: "model" },
      make("b", {}, model.name), model.how ? ` ${model.how}` : "",
      model.fallback ? make("span", { class: "tag" }, model.fallback) : null)));
  }

  updateEndpoints(endpoints) {
    while (this.endpoints.length > endpoints.length) this.endpoints.pop().element.remove();
    endpoints.forEach((endpoint, index) => {
      if (!this.endpoints[index]) {
        this.endpoints[index] = new EndpointRow();
        this.list.append(this.endpoints[index].element);
      }
      this.endpoints[index].update(endpoint);
    });
  }

  updateFigures(hop) {
    const breaker = hop.breaker;
    const wait = breaker.retry_after >= 1 ? `tries in ${age(breaker.retry_after)}` : "tries with the next call";
    const again = breaker.state === "open" ? `, ${wait}` : "";
    say(this.breaker, `${breaker.state.replace("_", "-")} for ${age(breaker.seconds_in_state)}${again}`);
    say(this.load, `${hop.in_flight} of ${hop.limit}`);
    say(this.rate, `${hop.now.calls_per_second} /s`);
    // Of this very second where there were calls in it, else of the latest that there were.
    say(this.p50, milliseconds(hop.now.p50_ms ?? hop.p50_ms));
    say(this.p99, milliseconds(hop.now.p99_ms ?? hop.p99_ms));
  }

  updateFacts(hop) {
    const breaker = hop.breaker;
    const limits = Object.entries(hop.serves.limits || {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${value.toLocaleString("en")}`);
    const values = [breaker.reason || "none", count(breaker.times_opened, "time", "times"), limits.join(" · ") || "not known",
      hop.info_ms === null ? "not answered yet" : `answered in ${milliseconds(hop.info_ms)}`, hop.target, hop.choose_another || "nothing to choose"];
    values.forEach((value, index) => say(this.facts[index], value));
  }
}

// ── the gateway itself ──
const gateway = { shape: new Shape("wait"), word: make("span", { class: "word" }), why: make("p", { class: "why" }) };
const drawGateway = () => {
  const figures = make("dl", { class: "figures" });
  for (const name of ["version", "up", "requests", "in progress"]) gateway[name] = figure(figures, name);
  at("gateway").append(make("h3", {}, "gateway"), make("p", { class: "state" }, gateway.shape.element, gateway.word), gateway.why, figures);
};
const updateGateway = (status) => {
  const draining = status.gateway.draining;
  // Its own certificate and its file of keys; a worker's certificate is told where its endpoint is.
  const problems = [status.gateway.certificate?.reason, status.keys?.file_problem].filter(Boolean).join(" ");
  const state = draining || problems ? "warn" : "good";
  gateway.shape.show(state);
  mark(at("gateway"), "data-state", state);
  say(gateway.why, problems);
  say(gateway.word, draining ? "draining" : "serving");
  say(gateway.version, status.gateway.version);
  say(gateway.up, age(status.gateway.uptime_seconds));
  say(gateway.requests, `${status.gateway.requests_per_second} /s`);
  say(gateway["in progress"], `${status.gateway.in_progress} of ${status.gateway.most_in_progress}`);
};

// ── what is refused ──
let refusedBefore = "";
const updateRefused = (refusals) => {
  const text = JSON.stringify(refusals.kinds);
  if (text === refusedBefore) return;
  refusedBefore = text;
  if (!refusals.kinds.length) {
    at("refused").replaceChildren(make("p", { class: "none" }, "Nothing."));
    return;
  }
  const row = (kind) => make("li", {},
    make("span", { class: "number" }, kind.count.toLocaleString("en")),
    make("div", {}, make("b", {}, words(kind.reason)),
      make("span", { class: "note" }, ` ${kind.hop ? `on ${kind.hop}` : "at the gateway"} · ${kind.route} · status ${kind.status || "various"}`),
      MEANING[kind.reason] ? make("p", { class: "note" }, MEANING[kind.reason]) : null),
    bars(kind.slices));
  at("refused").replaceChildren(make("ul", { class: "refusals" }, ...refusals.kinds.slice(0, 12).map(row)));
};

// ── GPUs ──
let gpusBefore = "";
const updateGpus = (gpus) => {
  const { read_at_unix_ms: _, ...said } = gpus;
  const text = JSON.stringify(said);
  if (text === gpusBefore) return;
  gpusBefore = text;
  if (gpus.failure) at("gpus").replaceChildren(make("p", { class: "none" }, `Not known: ${gpus.failure}`));
  else if (!gpus.devices.length) at("gpus").replaceChildren(make("p", { class: "none" }, make("b", {}, "No GPU. "), gpus.unavailable_reason));
  else at("gpus").replaceChildren(...gpus.devices.map(gpuBox));
};
const gpuBox = (gpu) => {
  const used = `${gibi(gpu.memory_used_bytes)} of ${gibi(gpu.memory_total_bytes)}`;
  const facts = [gpu.utilization_percent === null ? "" : `${gpu.utilization_percent} % busy`,
    gpu.temperature_celsius === null ? "" : `${gpu.temperature_celsius} °C`,
    gpu.power_watts === null ? "" : `${Math.round(gpu.power_watts)} W`, count(gpu.processes.length, "process", "processes")];
  return make("div", { class: "gpu" }, make("p", {}, make("b", {}, `${gpu.index} ${gpu.name}`), ` ${used}`),
    meter(`Memory of GPU ${gpu.index}`, gpu.memory_used_bytes, gpu.memory_total_bytes, used),
    make("p", { class: "note" }, facts.filter(Boolean).join(" · ")),
    ...gpu.mig.instances.map((each) => {
      const part = `${gibi(each.memory_used_bytes)} of ${gibi(each.memory_total_bytes)}`;
      return make("div", { class: "mig" }, make("p", { class: "note" }, `instance ${each.gpu_instance_id}: ${part}`),
        meter(`Memory of instance ${each.gpu_instance_id} of GPU ${gpu.index}`, each.memory_used_bytes, each.memory_total_bytes, part));
    }),
    ...gpu.warnings.map((each) => make("p", { class: "note" }, each)));
};

// ── what changed: the one part that is said aloud ──
const change = (text, state) => {
  const item = make("li", { "data-state": state }, make("time", {}, new Date().toLocaleTimeString([], { hour12: false })), " ", shape(state), " ", text);
  at("changes").prepend(item);
  while (at("changes").children.length > MOST_CHANGES) at("changes").lastElementChild.remove();
};

const before = new Map();
const tellChanges = (status) => {
  const first = before.size === 0;
  for (const hop of status.hops) {
    const now = stateOf(hop);
    const breaker = hop.breaker.state;
    const last = before.get(hop.name);
    if (last && last.word !== now[1]) change(`${hop.name}: ${now[1]}, was ${last.word}`, now[0]);
    else if (last && last.breaker !== breaker) change(`${hop.name}: breaker ${breaker.replace("_", "-")}, was ${last.breaker.replace("_", "-")}`, now[0]);
    before.set(hop.name, { word: now[1], breaker });
  }
  if (first) change(`You began to look. ${verdictOf(status)}`, status.status === "ok" ? "good" : "warn");
};

const verdictOf = (status) => {
  const away = status.hops.filter((hop) => !hop.serving).map((hop) => hop.name);
  const weak = status.hops.filter((hop) => hop.serving && stateOf(hop)[0] !== "good").map((hop) => hop.name);
  if (status.gateway.draining) return "This gateway is draining: it finishes what it has begun and takes nothing new.";
  if (away.length === status.hops.length) return "No hop serves.";
  if (away.length) return `${away.join(", ")} ${away.length === 1 ? "does" : "do"} not serve. The other hops do.`;
  return weak.length ? `Everything serves; ${weak.join(", ")} not at full strength.` : "Everything serves.";
};

// ── all of it ──
const rows = new Map();
let heard = 0;

const show = (status) => {
  for (const hop of status.hops) {
    if (!rows.has(hop.name)) {
      rows.set(hop.name, new HopRow(hop.name));
      at("hops").append(rows.get(hop.name).element);
    }
    rows.get(hop.name).update(hop);
  }
  updateGateway(status);
  updateRefused(status.refusals);
  updateGpus(status.gpus);
  const verdict = verdictOf(status);
  say(at("verdict"), verdict);
  document.title = `${verdict.split(/[.:]/)[0]} · Torch Isolation Mesh`;
  tellChanges(status);
  at("mesh").hidden = at("below").hidden = false;
  heard = performance.now();
  live("good", "live");
};
const showPast = (past) => {
  for (const [name, points] of Object.entries(past.hops)) {
    if (!rows.has(name)) {
      rows.set(name, new HopRow(name));
      // Once: who is moved in the document loses the focus within.
      at("hops").append(rows.get(name).element);
    }
    rows.get(name).spark.replace(points);
  }
};
const live = (state, words_) => {
  mark(at("live"), "data-state", state);
  mark(document.body, "data-stale", state === "good" ? "no" : "yes");
  say(at("live"), words_);
};

// ── the stream ──
let looking = null;
let failures = 0;
let lastId = "";

const follow = async () => {
  looking = new AbortController();
  try {
    const headers = lastId ? { "last-event-id": lastId } : {};
    const answer = await ask("/status/stream", { headers, signal: looking.signal });
    at("trouble").replaceChildren();
    for await (const event of events(answer)) {
      lastId = event.id;
      if (event.name === "past") showPast(JSON.parse(event.data));
      else if (event.name === "status") show(JSON.parse(event.data));
      else throw Refused.broken(JSON.parse(event.data));
      failures = 0;
    }
    lost("The gateway ended the stream.");
  } catch (error) {
    if (error.name === "AbortError") return;
    trouble(error);
  }
  // A little apart, so that a gateway that comes back is not asked by all pages at once.
  again = setTimeout(follow, Math.min(10000, 1000 * 1.6 ** failures++) * (0.75 + Math.random() / 2));
};
let again = 0;

const trouble = (error) => {
  if (error instanceof Refused && error.status) at("trouble").replaceChildren(errorBox(error));
  lost(error instanceof Refused ? error.message : "The connection was lost.");
};
const lost = (words_) => {
  if (at("live").dataset.state === "good") change(`${words_} Trying again.`, "bad");
  if (!heard) say(at("verdict"), words_);
  else say(at("verdict"), `${words_} What you see is the last that was heard.`);
  live("bad", "trying again");
};
const restart = () => {
  clearTimeout(again);
  if (looking) looking.abort();
  failures = 0;
  follow();
};

let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  // Nobody looks: the gateway need not tell. Back again, everything is told anew.
  if (document.hidden) hiding = setTimeout(() => { clearTimeout(again); looking?.abort(); looking = null; live("wait", "paused"); }, HIDDEN_MS);
  else if (looking === null) restart();
});
setInterval(() => {
  if (at("live").dataset.state === "good" && performance.now() - heard > STALE_MS) {
    lost(`Nothing was heard for ${age((performance.now() - heard) / 1000)}.`);
    restart();
  }
}, 1000);

header("/", restart);
drawGateway();
follow();
