// Draws openapi.json, with every example ready to be sent. Text is only ever set as text, never as markup.
import { ask, errorBox, header, withKey } from "./shared.js";

const make = (tag, text, attributes = {}) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

const fieldsOf = (api, schema) => {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? api.components.schemas[name] : schema;
};

const fieldTable = (schema) => {
  const table = make("table");
  const head = table.appendChild(make("tr"));
  for (const title of ["field", "what it is", "default"]) head.appendChild(make("th", title));
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = table.appendChild(make("tr"));
    const cell = row.appendChild(make("td"));
    cell.appendChild(make("code", name));
    if ((schema.required || []).includes(name)) cell.append(" (required)");
    row.appendChild(make("td", field.description || field.type || ""));
    row.appendChild(make("td", field.default === undefined || field.default === null ? "" : shown(field.default)));
  }
  return table;
};

const send = async (method, path, body, output, button) => {
  button.disabled = true;
  output.textContent = "…";
  const started = performance.now();
  try {
    const options = { method, credentials: "omit", headers: withKey(body === null ? {} : { "content-type": "application/json" }) };
    if (body !== null) options.body = body;
    const answer = await fetch(path, options);
    output.textContent = `${answer.status} after ${Math.round(performance.now() - started)} ms\n\n`;
    const isJson = (answer.headers.get("content-type") || "").includes("json") &&
      !(answer.headers.get("content-type") || "").includes("ndjson");
    if (isJson) {
      output.textContent += shown(await answer.json());
    } else {
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      // A stream without an end is read for ten seconds.
      const stop = setTimeout(() => reader.cancel(), 10000);
      for (let part = await reader.read(); !part.done; part = await reader.read()) output.textContent += part.value;
      clearTimeout(stop);
    }
  } catch (error) {
    output.textContent += `\n${error}`;
  } finally {
    button.disabled = false;
  }
};

const tryIt = (method, path, content) => {
  const box = make("div");
  const examples = content ? Object.values(content.examples || {}) : [];
  let editor = null;
  if (content) {
    editor = make("textarea", examples.length ? shown(examples[0].value) : "{}", { "aria-label": "Request body", spellcheck: "false" });
    if (examples.length > 1) {
      const choice = box.appendChild(make("select", null, { "aria-label": "Example" }));
      examples.forEach((example, index) => choice.appendChild(make("option", example.summary, { value: index })));
      choice.addEventListener("change", () => { editor.value = shown(examples[choice.value].value); });
    }
    box.appendChild(editor);
  }
  const button = box.appendChild(make("button", "Send", { type: "button" }));
  const output = make("pre", "");
  output.hidden = true;
  box.appendChild(output);
  button.addEventListener("click", () => {
    output.hidden = false;
    send(method, path, editor && editor.value, output, button);
  });
  return box;
};

const operation = (api, path, method, details) => {
  const block = make("details", null, { class: "operation" });
  const summary = block.appendChild(make("summary"));
  summary.appendChild(make("span", method.toUpperCase(), { class: "method" }));
  summary.appendChild(make("code", path));
  summary.appendChild(make("span", details.summary || "", { class: "summary" }));
  const inside = block.appendChild(make("div"));
  if (details.description) inside.appendChild(make("p", details.description));
  const content = details.requestBody && details.requestBody.content["application/json"];
  if (content) inside.appendChild(fieldTable(fieldsOf(api, content.schema)));
  const answers = Object.values(details.responses["200"].content || {});
  if (answers.length && answers[0].example !== undefined) {
    inside.appendChild(make("p", "An answer:"));
    inside.appendChild(make("pre", shown(answers[0].example)));
  }
  if (!path.includes("{")) inside.appendChild(tryIt(method.toUpperCase(), path, content));
  return block;
};

const show = (api) => {
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  document.getElementById("description").textContent = api.info.description;
  const tags = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, details] of Object.entries(methods)) {
      const tag = (details.tags || ["Other"])[0];
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(operation(api, path, method, details));
    }
  }
  const place = document.getElementById("operations");
  place.replaceChildren();
  for (const [tag, blocks] of tags) {
    place.appendChild(make("h2", tag));
    place.append(...blocks);
  }
};

header("/docs", () => read());
const read = async () => {
  const place = document.getElementById("operations");
  try {
    show(await (await ask("/openapi.json")).json());
  } catch (error) {
    place.replaceChildren(errorBox(error));
  }
};
read();
