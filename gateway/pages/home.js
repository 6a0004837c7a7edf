"use strict";
// Draws /status, again every two seconds. Text is only ever set as text, never as markup.

const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (name) element.className = name;
  return element;
};

const milliseconds = (value) => (value === null ? "–" : `${value} ms`);

const breakerText = (breaker) => {
  let text = `${breaker.state} for ${Math.round(breaker.seconds_in_state)} s`;
  if (breaker.cause) text += ` (${breaker.cause.replaceAll("_", " ")})`;
  if (breaker.state !== "closed" && breaker.reason) text += `: ${breaker.reason}`;
  return text;
};

const endpointText = (endpoint) => {
  let text = endpoint.endpoint;
  if (endpoint.address && endpoint.address !== endpoint.endpoint) text += ` → ${endpoint.address}`;
  text += ` ${endpoint.health}, ${endpoint.in_flight} in flight`;
  if (endpoint.ejected) text += ", ejected";
  if (endpoint.health !== "SERVING" && endpoint.reason) text += `: ${endpoint.reason}`;
  return text;
};

const servesText = (serves) =>
  (serves.models || serves.chunkers || []).map((served) => served.name).join(", ") || serves.backend || "";

const hopBlock = (hop) => {
  const block = make("section");
  const title = block.appendChild(make("h2", hop.name));
  title.append(" ", make("span", hop.serving ? "serving" : "not serving", hop.serving ? "good" : "bad"));
  const rows = [
    ["why not", hop.reason],
    ["serves", servesText(hop.serves)],
    ["endpoints", ...hop.endpoints.map(endpointText)],
    ["breaker", breakerText(hop.breaker)],
    ["load", `${hop.in_flight} of ${hop.limit} calls in flight, ${hop.calls} calls, ${hop.retries} retries`],
    ["latency", `median ${milliseconds(hop.p50_ms)}, 99 % within ${milliseconds(hop.p99_ms)}`],
  ];
  const table = block.appendChild(make("table"));
  for (const [name, ...values] of rows.filter((row) => row[1])) {
    const row = table.appendChild(make("tr"));
    row.appendChild(make("th", name)).scope = "row";
    const cell = row.appendChild(make("td"));
    for (const value of values) cell.appendChild(make("div", value));
  }
  return block;
};

const summaryText = (status) => {
  const away = status.hops.filter((hop) => !hop.serving).map((hop) => hop.name);
  const state = away.length ? `Not serving: ${away.join(", ")}.` : "Everything serves.";
  const draining = status.gateway.draining ? " This gateway is draining." : "";
  return `${state}${draining} Version ${status.gateway.version}, up for ${Math.round(status.gateway.uptime_seconds)} s.`;
};

const say = (text) => {
  const summary = document.getElementById("summary");
  // Said again only where it says something new: a screen reader reads every change aloud.
  const stable = text.replace(/up for \d+ s/, "");
  if (summary.dataset.stable !== stable) summary.textContent = text;
  summary.dataset.stable = stable;
};

const refresh = async () => {
  try {
    const answer = await fetch("/status", { signal: AbortSignal.timeout(5000) });
    const status = await answer.json();
    document.getElementById("hops").replaceChildren(...status.hops.map(hopBlock));
    say(summaryText(status));
  } catch (error) {
    say(`The gateway does not answer: ${error}`);
  }
  setTimeout(refresh, 2000);
};

refresh();
