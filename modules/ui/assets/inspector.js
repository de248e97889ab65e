// The prompt inspector: what will be painted, from which words, asked of the server a moment after
// the form has changed. While it is closed, its button tells how much there is to look at.

const INSPECT_MS = 300;

const inspector = {
  timer: 0,
  asked: 0,
  picture: 0, // whose detail is shown
  sent: "", // the request that the answer is for
  answer: null, // of /api/inspect
  ids: ["prompt", "negative_prompt", "image_count", "expand_prompt", "wildcards_in_order", "checkpoint"],

  start() {
    $("inspect-toggle").addEventListener("click", () => this.toggle($("inspector").hidden));
    $("inspect-close").addEventListener("click", () => this.toggle(false));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !$("inspector").hidden && !document.querySelector("dialog[open]")) this.toggle(false);
    });
    document.querySelector("#refresh")?.addEventListener("click", () => this.again());
  },

  toggle(open) {
    show($("inspector"), open);
    $("inspect-toggle").setAttribute("aria-expanded", String(open));
    if (open) {
      this.again();
      $("inspect-close").focus();
    } else $("inspect-toggle").focus();
  },

  again() {
    this.sent = "";
    this.changed();
  },

  changed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), INSPECT_MS);
  },

  /** The request as far as words go. A seed may be longer than a number of JavaScript's. */
  body() {
    const { shown } = controls;
    const known = this.ids.filter((name) => shown[name] !== undefined && shown[name] !== null);
    const request = Object.fromEntries(known.map((name) => [name, shown[name]]));
    request.styles = stylesPanel.list.read();
    request.loras = lorasPanel.list.read();
    const text = JSON.stringify(request);
    const digits = /^\d{1,19}$/.test(shown.seed ?? "") && !shown.random_seed;
    return digits ? `${text.slice(0, -1)},"seed":${BigInt(shown.seed)}}` : text;
  },

  async ask() {
    const body = this.body();
    const closed = $("inspector").hidden;
    const key = `${this.picture} ${body}`;
    if (page.offline || key === this.sent || (closed && !controls.shown.prompt)) {
      if (closed && !controls.shown.prompt) setText($("inspect-count"), "");
      return;
    }
    const number = ++this.asked;
    try {
      const headers = { "Content-Type": "application/json" };
      const path = `/api/inspect?picture=${this.picture}`;
      const answer = await call(path, { method: "POST", headers, body });
      if (number !== this.asked) return;
      this.sent = key;
      this.answer = answer;
    } catch {
      if (number === this.asked) setText($("inspect-summary"), say("inspect.failed"));
      return;
    }
    this.draw();
  },

  choose(index) {
    this.picture = index;
    this.ask();
  },

  /** [sentence, whether it must be mended] for everything that is worth a look. */
  notes() {
    const { answer } = this;
    const missing = (key, names) => names.map((name) => [say(key, { name }), true]);
    return [
      ...(answer.problem ? [[answer.problem.message, true]] : []),
      ...missing("inspect.lora.missing", answer.missing_loras),
      ...missing("inspect.embedding.missing", answer.missing_embeddings),
      ...(answer.misfits ?? []).map((sentence) => [sentence, true]),
      ...answer.conflicts.map((sentence) => [sentence, false]),
      ...answer.notices.map((sentence) => [sentence, false]),
    ];
  },

  draw() {
    const { answer } = this;
    const notes = this.notes();
    const bad = notes.some(([, mend]) => mend);
    $("inspect-count").classList.toggle("bad", bad);
    setText($("inspect-count"), notes.length ? String(notes.length) : "");
    $("inspect-count").title = notes.length ? say("inspect.count", { count: notes.length }) : "";
    if ($("inspector").hidden) return;
    this.summarize();
    if (answer.by_chance && !answer.prompts[0]?.seed && answer.prompts[0]?.seed !== 0) {
      notes.push([say("inspect.chance"), false]);
    }
    const items = notes.map(([text, mend]) => make("li", { text, className: mend ? "bad" : "" }));
    $("inspect-notes").replaceChildren(...items);
    $("inspect-picture").replaceChildren(...(answer.picture ? pictureParts(answer) : []));
    this.drawPrompts();
  },

  summarize() {
    const { pictures, combinations } = this.answer;
    const seconds = performanceMode.answer?.picture;
    const parts = [say(pictures === 1 ? "make.one" : "make.many", { count: pictures })];
    if (combinations > 1) {
      parts.push(say("inspect.combinations", { count: combinations.toLocaleString("en") }));
    }
    if (seconds) parts.push(say("make.time", { time: forecastDuration(seconds * pictures) }));
    setText($("inspect-summary"), pictures ? parts.join(" · ") : "");
  },

  drawPrompts() {
    const { prompts, picture } = this.answer;
    const several = prompts.length > 1;
    show($("inspect-prompts"), several);
    const items = several ? prompts.map((line) => ({ key: String(line.index), line })) : [];
    const beyond = items.findIndex(({ line }) => !line.painted);
    if (beyond > 0) items.splice(beyond, 0, { key: "beyond" });
    reconcile($("inspect-prompts"), items, promptLine, (row, { line }) => {
      if (!line) return;
      setText(row.querySelector(".number"), String(line.index + 1));
      setText(row.querySelector(".words"), line.text || say("inspect.empty"));
      const seed = line.seed === null ? "" : say("strip.seed", { seed: line.seed });
      setText(row.querySelector(".seed"), seed);
      row.setAttribute("aria-pressed", String(line.index === picture?.index));
    });
  },
};

function promptLine({ line }) {
  if (!line) return make("p", { text: say("inspect.beyond") });
  const row = make("button", { className: "prompt-line" });
  row.append(make("span", { className: "number" }), make("span", { className: "words" }));
  row.append(make("span", { className: "seed" }));
  row.addEventListener("click", () => inspector.choose(line.index));
  return row;
}

/** One picture's texts, chunk by chunk, and what goes with them. */
function pictureParts({ picture, prompts, embeddings, wildcards }) {
  const parts = [];
  if (prompts.length > 1) {
    parts.push(make("h3", { text: say("inspect.picture", { number: picture.index + 1 }) }));
  }
  for (const side of ["positive", "negative"]) {
    parts.push(make("h4", { text: say(`inspect.${side}`) }));
    parts.push(...picture[side].map(textBox));
  }
  const name = (file) => file.replace(/\.[^./]*$/, "");
  const uses = picture.loras.map(({ file, weight }) => say("inspect.lora", { name: name(file), weight }));
  const facts = [
    ["styles", picture.styles],
    ["loras", uses],
    ["embeddings", embeddings],
    ["wildcards", wildcards],
    ["expansion", picture.expansion ? [picture.expansion] : []],
  ];
  const list = make("dl");
  for (const [key, words] of facts) {
    if (!words.length) continue;
    list.append(make("dt", { text: say(`inspect.${key}`) }), make("dd", { text: words.join(", ") }));
  }
  if (list.children.length) parts.push(list);
  return parts;
}

/** A text, its chunks divided where they end. */
function textBox(chunks) {
  const box = make("div", { className: "text-box" });
  chunks.forEach(({ tokens, parts }, place) => {
    const key = chunks.length > 1 ? "inspect.chunk" : "inspect.tokens";
    const chunk = make("div", { className: "chunk" });
    const words = make("p");
    for (const [text, weight] of parts) {
      const span = make("span", { text, className: weight === 1 ? "" : "weighted" });
      if (weight !== 1) span.dataset.weight = `×${weight}`;
      words.append(span);
    }
    if (!parts.length) words.append(make("span", { className: "none", text: say("inspect.empty") }));
    const count = say(key, { number: place + 1, tokens });
    chunk.append(words, make("small", { text: count }));
    box.append(chunk);
  });
  return box;
}
