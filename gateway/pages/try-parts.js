// What the try page's answers are drawn with: vectors, likenesses, bars; and the command that does the same.
import { draw, key, make } from "./shared.js";
import { meter } from "./status-parts.js";

export const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
export const cosine = (one, other) => dot(one, other) / (Math.sqrt(dot(one, one) * dot(other, other)) || 1);

const COLUMNS = 96;

// The first numbers of a vector as a strip: above zero dark, below zero light.
export const stripes = (vector) => {
  const shown = vector.slice(0, COLUMNS);
  const top = Math.max(...shown.map(Math.abs)) || 1;
  return draw("svg", { class: "stripes", viewBox: `0 0 ${shown.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...shown.map((value, index) => draw("rect", { x: index, width: 1.05, height: 1, fill: value > 0 ? "var(--accent)" : "var(--warn)",
      "fill-opacity": (0.08 + 0.92 * Math.abs(value) / top).toFixed(2) })));
};

export const MOST_IN_MATRIX = 12;

export const matrix = (vectors) => {
  const shown = vectors.slice(0, MOST_IN_MATRIX);
  const cell = (likeness) => {
    const element = make("td", {}, likeness.toFixed(2).replace("-", "−"));
    // Ink on paper tinted by likeness: at most half covered, so that the number stays readable.
    element.style.background = `color-mix(in srgb, var(--accent) ${Math.round(Math.max(0, likeness) * 38)}%, var(--paper))`;
    return element;
  };
  const numbers = shown.map((_, index) => make("th", { scope: "col" }, `${index + 1}`));
  return make("table", { class: "matrix" },
    make("caption", {}, shown.length < vectors.length ? `Cosine of the first ${shown.length} lines with each other` : "Cosine of each line with each other"),
    make("thead", {}, make("tr", {}, make("td", {}), ...numbers)),
    make("tbody", {}, ...shown.map((row, index) => make("tr", {}, make("th", { scope: "row" }, `${index + 1}`), ...shown.map((column) => cell(cosine(row, column)))))));
};

export const ranking = (documents, results) => make("ol", { class: "ranking" }, ...results.map((result, place) => {
  const score = result.relevance_score;
  return make("li", {}, make("div", {}, `${place + 1}. ${documents[result.index]}`),
    meter(`Score of place ${place + 1}`, Math.max(0, score), 1, score.toFixed(3)),
    make("span", { class: "note" }, `${score.toFixed(3)} · line ${result.index + 1}`));
}));

// ── where the time went ──
export const timing = (answer) => (answer.headers.get("server-timing") || "").split(",").map((part) => {
  const [name, duration] = part.trim().split(";dur=");
  return duration ? `${name} ${Number(duration).toFixed(1)} ms` : "";
}).filter(Boolean).join(" · ");

// ── the command ──
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export const curl = (path, { body = null, form = null, accept = "" }) => {
  const parts = [`curl -sN ${quoted(location.origin + path)}`];
  // The name of a variable, never the key: commands are pasted into places where keys do not belong.
  if (key()) parts.push(`-H "authorization: Bearer $MESH_API_KEY"`);
  if (accept) parts.push(`-H ${quoted(`accept: ${accept}`)}`);
  if (body !== null) parts.push(`-H 'content-type: application/json'`, `-d ${quoted(JSON.stringify(body))}`);
  for (const [name, value] of form || []) parts.push(`-F ${quoted(`${name}=${value}`)}`);
  return parts.join(" \\\n  ");
};

export const command = (text) => {
  const copy = make("button", { type: "button", class: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(shown);
      copy.textContent = "Selected: press Ctrl+C";
    }
  } }, "Copy");
  const shown = make("pre", { tabindex: 0, "aria-label": "The command" }, text);
  return make("details", { class: "curl" }, make("summary", {}, "The same with curl"), shown, copy);
};
