// The LoRA slots. The hidden box of the form holds those in use as JSON, in their order; an empty
// slot is no entry, so taking one out moves the others up.

const LORA_SLOTS = 5;
const LORAS_MOST = 32;
const LORA_WEIGHT_MOST = 4;

const lorasPanel = {
  list: new HiddenList("loras-value"),
  files: null, // of /api/loras, null until they are there
  slots: LORA_SLOTS,
  told: new Map(), // what each file says of itself beside a checkpoint, by both names

  start() {
    $("lora-add").addEventListener("click", () => {
      this.slots = Math.min(LORAS_MOST, this.rows().length + 1);
      this.draw();
      document.querySelector("#lora-rows > :last-child select").focus();
    });
    $("tab-models").addEventListener("click", () => this.load());
    document.querySelector("#refresh")?.addEventListener("click", () => this.load());
    this.load();
  },

  async load() {
    try {
      this.files = (await call("/api/loras")).loras;
    } catch {
      if (!this.files) setText($("lora-rows"), say("loras.failed"));
      return;
    }
    this.told.clear(); // a file may have been replaced under its name
    if ($("lora-rows").firstChild?.nodeType === Node.TEXT_NODE) $("lora-rows").replaceChildren();
    this.draw();
  },

  /** The form has changed. Its box is looked at when Gradio has written into it. */
  changed() {
    setTimeout(() => this.draw(), 0);
  },

  /** Entries of the list, then empty slots. */
  rows() {
    const entries = this.list.read().filter((entry) => entry?.name);
    const empty = Math.max(this.slots - entries.length, entries.length < LORAS_MOST ? 1 : 0);
    return [...entries, ...Array(empty).fill(null)].slice(0, LORAS_MOST);
  },

  /** Change slot `place`; null empties it. */
  set(place, change) {
    const entries = this.rows();
    const now = entries[place] ?? { name: "", weight: 1, clip_weight: null, enabled: true };
    entries[place] = change && { ...now, ...change };
    this.list.write(entries.filter(Boolean));
    this.draw();
  },

  /** The listed file that `name` means: whole, without its ending, or without its folder. */
  find(name) {
    const key = name.toLowerCase();
    const stem = (text) => text.replace(/\.[^./]*$/, "");
    const ways = [(file) => file, stem, (file) => stem(file).split("/").pop()];
    for (const way of ways) {
      const found = this.files?.find((file) => way(file.name.toLowerCase()) === key);
      if (found) return found.name;
    }
    return null;
  },

  draw() {
    if (!this.files) return;
    const rows = this.rows().map((entry, place) => ({ key: String(place), entry, place }));
    reconcile($("lora-rows"), rows, loraRow, (row, item) => this.update(row, item));
    $("lora-add").disabled = rows.length >= LORAS_MOST;
  },

  update(row, { entry }) {
    const file = entry && this.find(entry.name);
    const [on, choice, weight] = ["[type=checkbox]", "select", "[type=number]"].map((part) =>
      row.querySelector(part),
    );
    on.checked = entry ? entry.enabled !== false : false;
    on.disabled = weight.disabled = !entry;
    if (weight !== document.activeElement) weight.value = entry ? entry.weight ?? 1 : "";
    const missing = entry && !file ? entry.name : "";
    const offered = JSON.stringify([this.files.map(({ name }) => name), missing]);
    if (choice.dataset.offered !== offered) {
      choice.dataset.offered = offered;
      const names = [...(missing ? [missing] : []), ...this.files.map(({ name }) => name)];
      choice.replaceChildren(new Option(say("loras.nothing"), ""));
      choice.append(...names.map((name) => new Option(name.replace(/\.safetensors$/i, ""), name)));
    }
    choice.value = file ?? missing;
    row.classList.toggle("off", Boolean(entry) && !on.checked);
    this.note(row.querySelector(".lora-note"), file, missing);
  },

  /** Below the slot: what the file says of itself, or that it is not there. */
  async note(place, file, missing) {
    const checkpoint = controls.shown.checkpoint ?? "";
    const key = file ? `file ${file} beside ${checkpoint}` : `missing ${missing}`;
    if (place.dataset.key === key && (!file || this.told.has(key))) return;
    place.dataset.key = key;
    place.classList.toggle("missing", Boolean(missing));
    if (!file) {
      place.replaceChildren(missing ? say("loras.missing", { name: missing }) : "");
      return;
    }
    if (!this.told.has(key)) {
      const path = file.split("/").map(encodeURIComponent).join("/");
      const query = `?checkpoint=${encodeURIComponent(checkpoint)}`;
      this.told.set(key, call(`/api/loras/${path}${query}`).catch(() => null));
    }
    const info = await this.told.get(key);
    if (place.dataset.key === key) place.replaceChildren(...(info ? loraWords(info) : []));
  },
};

function loraRow({ place }) {
  const row = make("div", { id: `lora-${place + 1}`, className: "lora" });
  const number = place + 1;
  const label = make("label", { className: "lora-on" });
  const on = make("input", { label: say("loras.on", { number }) });
  const choice = make("select", { label: say("loras.choice", { number }) });
  const weight = make("input", { label: say("loras.weight", { number }) });
  on.type = "checkbox";
  on.title = say("loras.on.help");
  choice.title = say("loras.help");
  weight.title = say("loras.weight.help");
  Object.assign(weight, { type: "number", step: 0.05, min: -LORA_WEIGHT_MOST, max: LORA_WEIGHT_MOST });
  weight.inputMode = "decimal";
  on.addEventListener("change", () => lorasPanel.set(place, { enabled: on.checked }));
  choice.addEventListener("change", () =>
    lorasPanel.set(place, choice.value ? { name: choice.value } : null),
  );
  weight.addEventListener("input", () => {
    const value = weight.valueAsNumber;
    if (!Number.isFinite(value)) return; // not typed to the end
    lorasPanel.set(place, { weight: clamp(value, -LORA_WEIGHT_MOST, LORA_WEIGHT_MOST) });
  });
  weight.addEventListener("blur", () => setTimeout(() => lorasPanel.draw(), 0));
  label.append(on);
  row.append(label, choice, weight, make("div", { className: "lora-note" }));
  return row;
}

/** Its own picture, family, title and trigger words; a press adds words to the prompt. */
function loraWords(info) {
  if (!info.readable) return [make("span", { className: "bad", text: say("loras.unreadable") })];
  const parts = [];
  if (info.picture) {
    const picture = make("img");
    picture.src = info.picture;
    picture.alt = info.title;
    parts.push(picture);
  }
  const facts = [info.title, info.family && say("loras.family", info)].filter(Boolean);
  const words = make("div", { text: facts.join(" · ") });
  parts.push(words);
  if (info.misfit) parts.push(make("div", { className: "bad", text: info.misfit }));
  if (info.triggers.length) {
    if (facts.length) words.append(make("br"));
    words.append(say("loras.triggers"), " ");
    for (const text of info.triggers) {
      const label = say("loras.trigger", { words: text });
      const button = make("button", { className: "trigger", text, label });
      button.addEventListener("click", () => addToPrompt(text));
      words.append(button, " ");
    }
  }
  return parts;
}

function addToPrompt(words) {
  const box = promptBox();
  const before = box.value.trimEnd().replace(/,$/, "");
  setValue(box, before ? `${before}, ${words}` : words);
}
