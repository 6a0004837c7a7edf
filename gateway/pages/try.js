// Tries each capability with the requests that any client would send.
import { ask, count, errorBox, events, header, jsonLines, make, milliseconds, post, Refused, say } from "./shared.js";
import { command, cosine, curl, matrix, ranking, stripes, timing } from "./try-parts.js";

const at = (id) => document.getElementById(id);
const linesOf = (id) => at(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const EMBED_BATCH = 128;
const PASSAGES = 4;
const MOST_SHOWN = 300;
const INSTRUCTIONS = "Answer from these passages alone, and say so where they hold no answer.\n\n";

// One trial: its button waits while it runs, and whatever fails says what to do next in the place of the result.
const trial = (name, run) => {
  const section = at(name);
  const form = section.querySelector("form");
  const result = section.querySelector(".result");
  const button = form.querySelector("button[type=submit]");
  const submit = async () => {
    if (button.disabled) return;
    button.disabled = true;
    section.setAttribute("aria-busy", "true");
    result.replaceChildren(make("p", { class: "facts" }, "…"));
    try {
      await run(result);
    } catch (error) {
      if (error.name === "AbortError") result.append(make("p", { class: "facts", role: "status" }, "Stopped."));
      else result.append(errorBox(error));
    } finally {
      result.querySelector(":scope > .facts:empty")?.remove();
      button.disabled = false;
      section.removeAttribute("aria-busy");
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  return submit;
};

const nothing = (words) => new Refused(0, words, "Then press the button again.");

// ── embed ──
const embedded = async (texts, inputType) => {
  const body = { input: texts, ...(inputType ? { input_type: inputType } : {}) };
  const answer = await post("/v1/embeddings", body);
  const said = await answer.json();
  return { answer, body, said, vectors: said.data.map((each) => each.embedding) };
};

trial("embed", async (result) => {
  const texts = linesOf("embed-texts");
  if (!texts.length) throw nothing("Write at least one line.");
  const { answer, body, said, vectors } = await embedded(texts);
  result.replaceChildren(
    make("p", { class: "facts" }, `${said.model} · ${count(vectors.length, "vector", "vectors")} of ${vectors[0].length} numbers · ${said.usage.total_tokens} tokens · ${timing(answer)}`),
    make("ol", { class: "legend" }, ...texts.slice(0, 12).map((text, index) => make("li", {}, make("span", { class: "number" }, `${index + 1}`), make("span", { class: "text" }, text), stripes(vectors[index])))),
    vectors.length > 1 ? matrix(vectors) : null, command(curl("/v1/embeddings", { body })));
});

// ── rerank ──
trial("rerank", async (result) => {
  const documents = linesOf("rerank-documents");
  const query = at("rerank-query").value.trim();
  if (!query || !documents.length) throw nothing("Write a question and at least one document.");
  const body = { query, documents, model: "" };
  const answer = await post("/v2/rerank", body);
  const said = await answer.json();
  result.replaceChildren(make("p", { class: "facts" }, timing(answer)), ranking(documents, said.results), command(curl("/v2/rerank", { body })));
});

// ── chunk ──
let document_ = { name: "", chunks: [], vectors: null };
let chunking = null;

const chunkRequest = (file, text, tokens) => {
  const accept = "application/x-ndjson";
  if (!file) {
    const body = { text, max_tokens: tokens, media_type: "text/markdown" };
    const options = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json", accept } };
    return { options, command: curl("/v1/chunk", { body, accept }) };
  }
  const form = new FormData();
  form.append("max_tokens", `${tokens}`);
  form.append("file", file, file.name);
  return { options: { method: "POST", body: form, headers: { accept } },
    command: curl("/v1/chunk", { form: [["max_tokens", tokens], ["file", `@${file.name}`]], accept }) };
};

const chunkItem = (chunk) => make("li", {},
  make("p", { class: "note" }, `${chunk.index + 1}`, chunk.headings.length ? ` · ${chunk.headings.join(" › ")}` : "",
    chunk.pages.length ? ` · page ${chunk.pages.join(", ")}` : "", ` · ${chunk.tokens} tokens`),
  make("p", { class: "text" }, chunk.text));

const chunkDocument = trial("chunk", async (result) => {
  const file = at("chunk-file").files[0];
  const text = at("chunk-text").value;
  if (!file && !text.trim()) throw nothing("Drop a document, choose one, or paste text.");
  const { options, command: same } = chunkRequest(file, text, Number(at("chunk-tokens").value) || 200);
  const name = file ? file.name : "the pasted text";
  const progress = make("progress", { "aria-label": `Reading ${name}` });
  const facts = make("p", { class: "facts", role: "status" }, `Reading ${name} …`);
  const list = make("ol", { class: "chunks", tabindex: 0, "aria-label": "Chunks" });
  result.replaceChildren(facts, progress, list);
  chunking = new AbortController();
  at("chunk-stop").disabled = false;
  const began = performance.now();
  const chunks = [];
  let finish = null;
  try {
    const answer = await ask("/v1/chunk", { ...options, signal: chunking.signal });
    for await (const line of jsonLines(answer)) {
      if (line.chunk) {
        chunks.push(line.chunk);
        if (chunks.length <= MOST_SHOWN) list.append(chunkItem(line.chunk));
      } else if (line.progress) {
        if (line.progress.pages_total) Object.assign(progress, { max: line.progress.pages_total, value: line.progress.pages_done });
      } else if (line.document) finish = line;
      else if (line.error) throw Refused.broken(line.error);
    }
    if (!finish) throw Refused.broken({});
  } finally {
    at("chunk-stop").disabled = true;
    progress.remove();
    if (!finish) facts.remove();
    if (!chunks.length) list.remove();
  }
  const pages = finish.document.pages ? `${count(finish.document.pages, "page", "pages")} · ` : "";
  say(facts, `${name}: ${pages}${count(chunks.length, "chunk", "chunks")} · ${finish.usage.tokens} tokens · ${milliseconds(performance.now() - began)}${chunks.length > MOST_SHOWN ? ` · the first ${MOST_SHOWN} are shown` : ""}`);
  for (const warning of finish.document.warnings || []) list.before(make("p", { class: "note" }, warning));
  result.append(command(same));
  document_ = { name, chunks, vectors: null };
  const box = at("ask-document");
  box.disabled = !chunks.length;
  box.checked = chunks.length > 0;
  say(at("ask-document-label"), chunks.length ? `From ${name} (${count(chunks.length, "chunk", "chunks")})` : "From the document above (it holds no text)");
});
at("chunk-stop").addEventListener("click", () => chunking?.abort());

const drop = at("drop");
for (const kind of ["dragover", "dragenter"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.dataset.over = "yes";
  });
}
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => { drop.dataset.over = "no"; });
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  at("chunk-file").files = event.dataTransfer.files;
  chunkDocument();
});
// Elsewhere, a dropped file would replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
at("chunk-file").addEventListener("change", () => { if (at("chunk-file").files.length) chunkDocument(); });
at("chunk-text").addEventListener("input", () => { at("chunk-file").value = ""; });

// ── ask ──
let asking = null;

const nearest = async (question) => {
  const of = document_;
  if (!of.vectors) {
    const vectors = [];
    for (let start = 0; start < of.chunks.length; start += EMBED_BATCH) {
      const batch = of.chunks.slice(start, start + EMBED_BATCH).map((each) => each.contextualized_text || each.text);
      vectors.push(...(await embedded(batch, "document")).vectors);
    }
    of.vectors = vectors;
  }
  const asked = (await embedded([question], "query")).vectors[0];
  return of.chunks.map((chunk, index) => ({ chunk, likeness: cosine(of.vectors[index], asked) }))
    .sort((one, other) => other.likeness - one.likeness).slice(0, PASSAGES)
    .sort((one, other) => one.chunk.index - other.chunk.index);
};

const passageList = (passages) => make("details", { class: "passages" },
  make("summary", {}, `${count(passages.length, "passage", "passages")} of ${document_.name} that the model was given`),
  make("ol", {}, ...passages.map(({ chunk, likeness }) => make("li", {}, make("p", { class: "note" }, `likeness ${likeness.toFixed(2)}${chunk.headings.length ? ` · ${chunk.headings.join(" › ")}` : ""}${chunk.pages.length ? ` · page ${chunk.pages.join(", ")}` : ""}`), make("p", {}, chunk.text)))));

const DEMO = "torch-isolation-mesh-demo";
const DEMO_SAYS = "This is the demo model, which knows a page of questions about the mesh by heart and nothing else. It cannot read passages. Start the LLM worker with LLM_MODEL set to a path or a hub name for a real one.";

trial("ask", async (result) => {
  const question = at("ask-question").value.trim();
  if (!question) throw nothing("Write a question.");
  asking = new AbortController();
  at("ask-stop").disabled = false;
  const answerText = make("p", { class: "answer", "data-writing": "yes", "aria-label": "Answer" });
  const facts = make("p", { class: "facts", role: "status" }, "Asking …");
  try {
    const passages = at("ask-document").checked ? await nearest(question) : [];
    const system = passages.length ? [{ role: "system", content: INSTRUCTIONS + passages.map((each) => each.chunk.text).join("\n\n") }] : [];
    const body = { model: at("ask-model").value, messages: [...system, { role: "user", content: question }], temperature: 0, stream: true,
      stream_options: { include_usage: true } };
    result.replaceChildren(facts, answerText);
    const began = performance.now();
    const answer = await post("/v1/chat/completions", body, { signal: asking.signal });
    let model = "";
    let first = 0;
    let ended = "";
    let tokens = 0;
    for await (const event of events(answer)) {
      if (event.data === "[DONE]") {
        ended ||= "stop";
        break;
      }
      const piece = JSON.parse(event.data);
      if (piece.error) throw Refused.broken(piece);
      model = piece.model || model;
      tokens = piece.usage?.completion_tokens || tokens;
      const choice = piece.choices[0];
      if (choice?.delta?.content) {
        first ||= performance.now() - began;
        answerText.append(choice.delta.content);
      }
      ended = choice?.finish_reason || ended;
    }
    if (!ended) throw Refused.broken({});
    say(facts, `${model} · ${count(tokens, "token", "tokens")} · first after ${milliseconds(first)}, all after ${milliseconds(performance.now() - began)}${ended === "length" ? " · cut: the longest answer was reached" : ""}`);
    if (model === DEMO) result.append(make("p", { class: "note" }, DEMO_SAYS));
    if (passages.length) result.append(passageList(passages));
    result.append(command(curl("/v1/chat/completions", { body })));
  } finally {
    at("ask-stop").disabled = true;
    answerText.dataset.writing = "no";
    if (facts.textContent === "Asking …") facts.remove();
    if (!answerText.textContent) answerText.remove();
  }
});
at("ask-stop").addEventListener("click", () => asking?.abort());

const listModels = async () => {
  try {
    const { data } = await (await ask("/v1/models")).json();
    const names = data.filter((each) => each.capability === "chat" && each.id === each.root).map((each) => each.id);
    at("ask-model").replaceChildren(make("option", { value: "" }, "the gateway's default"), ...names.map((name) => make("option", { value: name }, name)));
  } catch { /* the default can be asked all the same, and says what is wrong */ }
};

header("/try", listModels);
listModels();
