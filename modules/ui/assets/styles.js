// The Styles tab: a list to search and what is chosen, in its order. The hidden box of the form
// holds the choice as JSON, so a reload, a preset and Generate see the same.

const RANDOM = "random";
const STYLES_SHOWN = 400;

/** A list of the form: JSON in a box that nobody sees. */
class HiddenList {
  constructor(id) {
    this.id = id;
  }
  get box() {
    return document.querySelector(`#${this.id} :is(textarea, input)`);
  }
  read() {
    try {
      const entries = JSON.parse(this.box?.value || "[]");
      return Array.isArray(entries) ? entries : [];
    } catch {
      return [];
    }
  }
  write(entries) {
    if (this.box) setValue(this.box, JSON.stringify(entries));
  }
}

const stylesPanel = {
  list: new HiddenList("styles-value"),
  all: null, // of /api/styles, null until they are there
  drawn: "",

  start() {
    $("style-search").addEventListener("input", () => this.draw());
    $("style-search").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        document.querySelector("#style-list button")?.click();
      }
    });
    $("random-style").addEventListener("click", () => this.toggle(RANDOM));
    $("clear-styles").addEventListener("click", () => this.choose([]));
    $("tab-styles").addEventListener("click", () => this.load());
    this.load();
  },

  async load() {
    try {
      const answer = await call("/api/styles");
      this.all = answer.styles;
      setText($("style-faults"), answer.notices.join(" "));
    } catch {
      if (!this.all) setText($("style-note"), say("styles.failed"));
      return;
    }
    this.drawn = "";
    this.draw();
  },

  /** The form has changed. Its box is looked at when Gradio has written into it. */
  changed() {
    setTimeout(() => this.draw(), 0);
  },

  toggle(name) {
    const chosen = this.list.read();
    const rest = chosen.filter((other) => other !== name);
    this.choose(rest.length < chosen.length ? rest : [...chosen, name]);
  },

  choose(names) {
    this.list.write(names);
    this.draw();
  },

  /** The style that a request means by `name`: its name or title, in any case. */
  find(name) {
    const key = String(name).toLowerCase();
    const by = (part) => (style) => style[part].toLowerCase() === key;
    return this.all?.find(by("name")) ?? this.all?.find(by("title"));
  },

  titleOf(name) {
    if (String(name).toLowerCase() === RANDOM) return say("styles.random");
    return this.find(name)?.title ?? String(name);
  },

  draw() {
    const chosen = this.list.read();
    const state = JSON.stringify([chosen, $("style-search").value]);
    if (!this.all || state === this.drawn) return;
    this.drawn = state;
    this.drawChosen(chosen);
    this.drawList(chosen);
  },

  drawChosen(chosen) {
    const items = chosen.map((name, place) => ({ key: String(name), name, place }));
    reconcile($("style-chosen"), items, styleChip, (chip, { name, place }) => {
      const title = this.titleOf(name);
      const there = name === RANDOM || Boolean(this.find(name));
      chip.classList.toggle("missing", !there);
      setText(chip.querySelector(".number"), String(place + 1));
      setText(chip.querySelector(".name"), there ? title : say("styles.gone", { title }));
      const label = say("styles.take.out", { title });
      chip.querySelector("button").title = label;
      chip.querySelector("button").setAttribute("aria-label", label);
    });
    $("clear-styles").disabled = !chosen.length;
    $("random-style").setAttribute("aria-pressed", String(chosen.includes(RANDOM)));
    show($("style-note"), !chosen.length);
    setText($("style-note"), say("styles.none"));
  },

  /** What has every searched word in its title, group or text. */
  drawList(chosen) {
    const words = $("style-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = ({ title, group, prompt }) => {
      const text = `${title} ${group} ${prompt}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const found = this.all.filter(has);
    const inTitle = (style) => words.some((word) => style.title.toLowerCase().includes(word));
    if (words.length) found.sort((a, b) => inTitle(b) - inTitle(a));
    const names = new Set(chosen.map((name) => this.find(name)?.name));
    const groups = new Map();
    for (const style of found.slice(0, STYLES_SHOWN)) {
      const group = words.length ? "" : style.group;
      if (!groups.has(group)) groups.set(group, make("div", { className: "style-group" }));
      groups.get(group).append(styleButton(style, names.has(style.name)));
    }
    const parts = [...groups].flatMap(([group, box]) => [
      ...(group ? [make("h3", { text: group })] : []),
      box,
    ]);
    const more = found.length - STYLES_SHOWN;
    if (!found.length) parts.push(make("p", { text: say("styles.nothing") }));
    if (more > 0) parts.push(make("p", { text: say("styles.more", { count: more }) }));
    this.replace(parts);
  },

  /** Keep the keyboard where it is when the list is drawn anew. */
  replace(parts) {
    const held = document.activeElement?.closest("#style-list button")?.dataset.name;
    $("style-list").replaceChildren(...parts);
    if (held === undefined) return;
    const again = [...document.querySelectorAll("#style-list button")];
    again.find((button) => button.dataset.name === held)?.focus({ preventScroll: true });
  },
};

function styleButton(style, chosen) {
  const button = make("button", { className: "style" });
  const picture = make("img");
  Object.assign(picture, { alt: "", loading: "lazy", width: 40, height: 40, src: style.picture });
  button.append(picture, make("span", { text: style.title }));
  button.title = style.prompt || style.negative_prompt;
  button.dataset.name = style.name;
  button.setAttribute("aria-pressed", String(chosen));
  button.addEventListener("click", () => stylesPanel.toggle(chosenAs(style)));
  return button;
}

/** A style may be chosen under its title, or in another case: that is the entry to take out. */
const chosenAs = (style) =>
  stylesPanel.list.read().find((name) => stylesPanel.find(name) === style) ?? style.name;

function styleChip({ name }) {
  const chip = make("span", { className: "style-chip" });
  chip.setAttribute("role", "listitem");
  chip.append(make("span", { className: "number" }), make("span", { className: "name" }));
  chip.append(make("button", { icon: "close", onclick: () => stylesPanel.toggle(name) }));
  return chip;
}
