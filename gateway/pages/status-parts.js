// What the status page is drawn from: the breaker as a switch, a state as a shape, a minute as a line; and the words.
import { draw, make } from "./shared.js";

// ── words ──
const CAPITAL = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const words = (code) => CAPITAL((code || "").replaceAll("_", " ").toLowerCase());

// What an operator can do about a reason. One that is not here says it in the request's own answer.
export const MEANING = {
  unavailable: "A worker was away while it was asked. It comes back by itself where the supervisor can start it.",
  connection_lost: "The connection to a worker broke while it was answering. It crashed, or the network between failed.",
  starting: "The worker is still loading its model.",
  warming_up: "The worker is still loading its model.",
  no_endpoint: "No worker of this hop can be reached. Look at its process and its log.",
  circuit_open: "The breaker is open, so calls are answered at once without waiting for a worker that fails.",
  hop_limit: "More calls at once than this worker takes. Send fewer, or start another worker.",
  overloaded: "The worker had no room for more. Send fewer, or start another worker.",
  queue_full: "The worker's queue is full. Send fewer, or start another worker.",
  queue_full_of_tokens: "The worker's queue is full. Send fewer or shorter texts, or start another worker.",
  queue_longer_than_deadline: "Waiting would have taken longer than the caller allows. Start another worker.",
  gateway_limit: "More requests at once than gateway.limits.max_concurrent_requests allows.",
  gateway_busy: "The gateway's own process is behind. Start another gateway, or send fewer requests.",
  attempt_timed_out: "A worker took longer than the gateway waits for one try.",
  deadline_exceeded: "The caller's time was up before the answer was there.",
  draining: "The worker is ending and takes nothing new.",
  gpu_oom: "The GPU's memory did not suffice, even after the batch was split.",
  model_not_found: "A model was asked for that is not served; /v1/models lists those that are.",
  model_damaged: "The worker's model cannot be used. Put it right and start the worker anew.",
  route_not_found: "A path was asked for that does not exist here; the API page lists those that do.",
  missing_api_key: "No API key was sent. See the gateway's documents on keys.",
  invalid_api_key: "An API key that is not known, cut short, revoked or expired; the request's own answer says which.",
  role_needed: "The API key has the other role: inference for the APIs, operator for the status, metrics and GPUs.",
  foreign_origin: "Another site's page used a browser's password.",
  rate_limit_exceeded: "An API key asked for more than its own limits allow. The mesh itself had room.",
  certificate_not_allowed: "A worker does not let this gateway's certificate ask for that: see MESH_TLS_ALLOW there.",
  host_not_allowed: "Asked for by another host's name. If that name is right, add it to gateway.allowed_hosts.",
  host_repeated: "A request that named two hosts.",
  cross_site: "A page of another site tried to use this gateway.",
  body_timeout: "A body came too slowly, or too many came slowly at once.",
  payload_too_large: "A body over a limit: the gateway's, or its API key's.",
  upgrade_not_supported: "A body behind a request for another protocol.",
  method_not_allowed: "A path was asked for with a method that it does not take.",
  unsupported_media_type: "A body of a type that the path does not take.",
  invalid_request: "The request can never work as it was sent; its own answer names what is wrong.",
  invalid_body: "The body does not validate; its own answer names the field.",
  invalid_json: "The body is not JSON.",
  internal: "A bug, or an engine's failure. The log has the cause under the request's id.",
  broken_stream: "A worker's answer ended before it was whole.",
  status_viewers: "As many follow the status page already as may.",
};

export const HEALTH = {
  SERVING: ["good", "serving"],
  NOT_SERVING: ["warn", "not ready"],
  UNREACHABLE: ["bad", "unreachable"],
  UNKNOWN: ["wait", "not heard of yet"],
};

// A hop in one state and one word: what a person asks first.
export const stateOf = (hop) => {
  const away = hop.endpoints.filter((each) => each.health !== "SERVING");
  const healths = new Set(hop.endpoints.map((each) => each.health));
  if (!hop.serving) {
    if (healths.has("SERVING")) return ["bad", "breaker open"];
    if (healths.has("NOT_SERVING")) return ["bad", "not ready"];
    if (healths.has("UNREACHABLE")) return ["bad", "unreachable"];
    return ["wait", "not heard of yet"];
  }
  if (hop.breaker.state === "half_open") return ["warn", "serving, on probation"];
  if (away.length) return ["warn", `serving, ${away.length} of ${hop.endpoints.length} endpoints away`];
  if (hop.endpoints.some((each) => each.ejected)) return ["warn", "serving, an endpoint is left out"];
  return ["good", "serving"];
};

// How long it has been what `stateOf` says.
export const sinceOf = (hop) => {
  const serving = hop.endpoints.filter((each) => each.health === "SERVING");
  const away = hop.endpoints.filter((each) => each.health !== "SERVING").map((each) => each.seconds_in_state);
  if (!serving.length) return Math.min(...away);
  if (hop.breaker.state !== "closed") return hop.breaker.seconds_in_state;
  if (away.length) return Math.min(...away);
  return Math.min(hop.breaker.seconds_in_state, Math.max(...serving.map((each) => each.seconds_in_state)));
};

// What is served, in a few words, and whether it is only what the mesh falls back to without a model hub.
export const servesOf = (serves) => {
  if (serves.chunkers) {
    const native = serves.pdf_pipeline === "docling-native";
    return [{ name: serves.chunkers.map((each) => each.name).join(", "), how: `PDF: ${serves.pdf_pipeline}`,
      fallback: native ? "offline default" : "" }];
  }
  if (!serves.models) {
    const none = serves.source === "none";
    return serves.source ? [{ name: none ? "no GPU on this machine" : `read through ${serves.source}`, how: "", fallback: "" }] : [];
  }
  return serves.models.map((model) => ({
    name: model.name,
    how: [model.method, model.engine || serves.engine, model.precision].filter(Boolean).join(" "),
    fallback: model.source === "demo" ? "demo model" :
      model.source === "package" || model.method === "late-interaction" ? "offline default" : "",
  }));
};

// ── shapes: a state can be told without its colour ──
export const shape = (state) => {
  const icon = draw("svg", { class: "shape", viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" });
  if (state === "good") icon.append(draw("circle", { cx: 8, cy: 8, r: 6.5, class: "solid" }), draw("path", { d: "M5 8.3 7.2 10.5 11 6", class: "cut" }));
  else if (state === "warn") icon.append(draw("path", { d: "M8 1.8 15 14.2H1Z", class: "solid" }), draw("path", { d: "M8 6.4v3.6M8 11.6v1", class: "cut" }));
  else if (state === "bad") icon.append(draw("rect", { x: 1.5, y: 1.5, width: 13, height: 13, rx: 2, class: "solid" }), draw("path", { d: "M5.2 5.2l5.6 5.6M10.8 5.2l-5.6 5.6", class: "cut" }));
  else icon.append(draw("circle", { cx: 8, cy: 8, r: 6, class: "hollow" }), draw("path", { d: "M8 4.8V8l2.2 1.6", class: "stroke" }));
  return icon;
};

// The breaker is what it is called: a switch on the line. Its lever lies, hangs or stands by `data-breaker` on the row.
export const wire = () => draw("svg", { class: "wire", viewBox: "0 0 96 40", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" },
  draw("path", { d: "M-60 28H34", class: "line in" }),
  draw("path", { d: "M62 28H156", class: "line out" }),
  draw("path", { d: "M34 28H62", class: "lever" }),
  draw("path", { d: "M-60 28H156", class: "flow" }),
  draw("circle", { cx: 34, cy: 28, r: 3.2, class: "contact" }),
  draw("circle", { cx: 62, cy: 28, r: 3.2, class: "contact" }));

const WIDTH = 180;
const HEIGHT = 40;
const POINTS = 60;

// A minute of latency: the median as a line, up to the slowest hundredth as an area; seconds without calls are gaps.
export class Spark {
  constructor() {
    this.area = draw("path", { class: "area" });
    this.line = draw("path", { class: "median" });
    this.dots = draw("path", { class: "dots" });
    this.element = draw("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      draw("path", { d: `M0 ${HEIGHT - 0.5}H${WIDTH}`, class: "base" }), this.area, this.line, this.dots);
    this.points = [];
  }

  replace(points) {
    this.points = points.slice(-POINTS);
    this.redraw();
  }

  add(point) {
    this.replace([...this.points, point]);
  }

  get highest() {
    return Math.max(0, ...this.points.map((each) => each.p99_ms || 0));
  }

  redraw() {
    const top = this.highest || 1;
    const x = (index) => (2 + (WIDTH - 4) * (index + POINTS - this.points.length) / (POINTS - 1)).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (HEIGHT - 5) * value / top).toFixed(1);
    let line = "";
    let area = "";
    let dots = "";
    let run = [];
    const end = () => {
      if (run.length === 1) dots += `M${x(run[0])} ${y(this.points[run[0]].p50_ms)}h.01`;
      if (run.length > 1) {
        const up = run.map((index) => `${x(index)} ${y(this.points[index].p99_ms)}`);
        const back = run.toReversed().map((index) => `${x(index)} ${y(this.points[index].p50_ms)}`);
        area += `M${up.join("L")}L${back.join("L")}Z`;
        line += `M${back.toReversed().join("L")}`;
      }
      run = [];
    };
    this.points.forEach((point, index) => {
      if (point.p50_ms === null) end();
      else run.push(index);
    });
    end();
    this.area.setAttribute("d", area);
    this.line.setAttribute("d", line);
    this.dots.setAttribute("d", dots);
  }
}

// Counts by slice of time, oldest left.
export const bars = (slices) => {
  const top = Math.max(1, ...slices);
  const path = slices.map((each, index) => (each ? `M${index * 4 + 2} 24v-${Math.max(2, 22 * each / top).toFixed(1)}` : "")).join("");
  return draw("svg", { class: "bars", viewBox: `0 0 ${slices.length * 4} 24`, "aria-hidden": "true" },
    draw("path", { d: `M0 23.5H${slices.length * 4}`, class: "base" }), draw("path", { d: path, class: "bar" }));
};

export const meter = (label, used, total, words) => {
  const share = total ? Math.min(1, used / total) : 0;
  return make("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": Math.round(share * 100), "aria-valuetext": words, "data-state": share > 0.92 ? "warn" : "good" },
  draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { width: 100, height: 8, class: "whole" }), draw("rect", { width: share * 100, height: 8, class: "used" })));
};
