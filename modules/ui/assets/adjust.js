// One image prompt large: the picture, what of it counts, the region where it counts, and what is
// seldom changed.

const MAP_MS = 200; // after the last change of a threshold
const VIEWS = {
  image_prompt: ["region", "picture"],
  face: ["map", "region", "picture"],
  canny: ["map", "picture"],
  cpds: ["map", "picture"],
  depth: ["map"],
  lineart: ["map"],
};
const FOUND_IN = new Set(["canny", "cpds", "face"]); // the others are taken as they are

const adjust = {
  dialog: null,
  region: null,
  place: 0,
  view: "",
  timer: 0,

  get entry() {
    return imagePrompts.entries()[this.place];
  },

  build() {
    const dialog = make("dialog", { id: "adjust" });
    const close = () => dialog.close();
    const head = make("header");
    head.append(make("h2", { id: "adjust-title" }));
    head.append(make("button", { className: "icon-button", icon: "close", label: say("adjust.close"), onclick: close }));
    dialog.setAttribute("aria-labelledby", "adjust-title");
    this.region = new RegionCanvas();
    const stageBox = make("div", { id: "adjust-stage" });
    const frame = make("div", { id: "adjust-frame" });
    const image = make("img", { id: "adjust-image" });
    image.addEventListener("load", () => this.loaded());
    image.addEventListener("error", () => this.lost());
    frame.append(image, this.region.canvas);
    stageBox.append(frame, make("p", { id: "adjust-note" }));
    const side = make("div", { id: "adjust-side" });
    const done = make("button", { id: "adjust-done", text: say("adjust.done"), onclick: close });
    side.append(make("div", { id: "adjust-views" }), this.tools(), make("div", { id: "adjust-fields" }), done);
    dialog.append(head, stageBox, side);
    dialog.querySelector("#adjust-note").setAttribute("role", "status");
    dialog.addEventListener("close", () => this.closed());
    document.body.append(dialog);
    this.dialog = dialog;
  },

  /** Brush, halves and clear, for the region. */
  tools() {
    const tools = make("div", { id: "region-tools" });
    tools.append(make("p", { text: say("region.help") }));
    const brush = make("input", { id: "region-brush", label: say("region.brush") });
    Object.assign(brush, { type: "range", min: 0.02, max: 0.5, step: 0.01, value: BRUSH });
    brush.addEventListener("input", () => (this.region.brush = brush.valueAsNumber));
    const row = make("label", { className: "adjust-field", text: say("region.brush") });
    row.append(brush);
    const erase = make("button", { id: "region-erase", className: "small-button", text: say("region.erase") });
    erase.setAttribute("aria-pressed", "false");
    erase.addEventListener("click", () => {
      this.region.erases = !this.region.erases;
      erase.setAttribute("aria-pressed", String(this.region.erases));
    });
    const buttons = make("div", { className: "buttons" });
    const clear = make("button", { id: "region-clear", className: "small-button", text: say("region.clear") });
    clear.addEventListener("click", () => this.region.clear());
    const halves = ["top", "bottom", "left", "right"].map((side) => {
      const half = make("button", { className: "small-button", text: say(`region.${side}`) });
      half.addEventListener("click", () => this.region.half(side));
      return half;
    });
    buttons.append(erase, clear, ...halves);
    tools.append(row, buttons);
    return tools;
  },

  open(place) {
    if (!this.dialog) this.build();
    this.place = place;
    const { type, image, region } = this.entry;
    this.image = image;
    const title = { number: place + 1, type: say(`ip.type.${type}`) };
    setText($("adjust-title"), say("adjust.title", title));
    this.region.erases = false;
    $("region-erase").setAttribute("aria-pressed", "false");
    const url = region && `/api/inputs/${encodeURIComponent(region)}`;
    const sides = pictureSize() ?? [1024, 1024];
    this.shape = sides.map((side) => clamp(side, 64, 2048));
    this.regionLost = false;
    const turn = this.region.turn + 1;
    this.region.show(this.shape, url).catch(() => {
      if (turn !== this.region.turn) return;
      this.regionLost = true;
      this.note(say("region.lost"), true);
    });
    this.drawFields();
    this.show(VIEWS[type][0]);
    this.dialog.showModal();
  },

  show(view) {
    this.view = view;
    const views = VIEWS[this.entry.type].map((name) => {
      const key = name === "map" && this.entry.type === "face" ? "face" : name;
      const button = make("button", { className: "small-button", text: say(`adjust.view.${key}`) });
      button.dataset.view = name;
      button.setAttribute("aria-pressed", String(name === view));
      button.addEventListener("click", () => {
        this.show(name);
        $("adjust-views").querySelector(`[data-view=${name}]`).focus();
      });
      return button;
    });
    $("adjust-views").replaceChildren(...views);
    show($("adjust-views"), views.length > 1);
    show($("region-tools"), view === "region");
    show(this.region.canvas, view === "region");
    this.draw();
  },

  /** What lies in the frame: the map, the picture, or under the region the last painted one. */
  draw() {
    const { entry, view } = this;
    const image = $("adjust-image");
    const [width, height] = this.shape;
    let url = `/api/inputs/${encodeURIComponent(entry.image)}`;
    if (view === "map" && !(entry.skip_preprocess && entry.type === "face")) url += `/map?${this.query()}`;
    if (view === "region") url = sameShape(stage.picture, this.shape) ? stage.picture.url : "";
    const free = view === "picture" || (view === "map" && entry.type === "face");
    $("adjust-frame").classList.toggle("free", free);
    $("adjust-frame").style.setProperty("--ratio", width / height);
    if ((image.getAttribute("src") ?? "") === url) return;
    this.note(url && view === "map" ? say("adjust.making") : "");
    $("adjust-frame").dataset.ready = String(!url);
    if (url) image.src = url;
    else image.removeAttribute("src");
  },

  query() {
    const { type, canny_low: low, canny_high: high, face } = this.entry;
    const [width, height] = this.shape;
    const asIs = this.entry.skip_preprocess ? "lineart" : type; // taken as it is, scaled to fill
    const query = new URLSearchParams({ type: asIs, width, height });
    if (asIs === "canny") {
      query.set("canny_low", low ?? 64);
      query.set("canny_high", high ?? 128);
    }
    if (asIs === "face") query.set("face", face ?? 1);
    return query;
  },

  loaded() {
    $("adjust-frame").dataset.ready = "true";
    this.note(this.regionLost ? say("region.lost") : "", this.regionLost);
  },

  /** The map could not be had: ask why. */
  async lost() {
    const url = $("adjust-image").getAttribute("src");
    try {
      await call(url, { timeout: 60000 });
      if (this.triedAgain === url) return;
      this.triedAgain = url;
      if ($("adjust-image").getAttribute("src") === url) $("adjust-image").src = url;
    } catch (error) {
      if ($("adjust-image").getAttribute("src") === url) this.note(await whyNot(error), true);
    }
  },

  note(sentence, bad = false) {
    setText($("adjust-note"), sentence);
    $("adjust-note").classList.toggle("bad", bad);
  },

  drawFields() {
    const { entry } = this;
    const fields = [];
    if (entry.type === "canny") fields.push(this.number("canny_low", 64, 255), this.number("canny_high", 128, 255));
    if (entry.type === "face") fields.push(this.number("face", 1, imagePrompts.facts.faces));
    if (FOUND_IN.has(entry.type)) {
      fields.push(this.check("skip", entry.skip_preprocess, (on) => ({ skip_preprocess: on })));
    } else if (entry.type !== "image_prompt") {
      fields.push(make("p", { text: say(`ip.help.${entry.type}`) }));
    }
    if (!isStructure(entry.type)) {
      const mode = (on) => ({ mode: on ? "decoupled" : "joint" });
      fields.push(this.check("decoupled", entry.mode === "decoupled", mode));
    }
    fields.push(this.number("start", 0, imagePrompts.share(entry, "stop"), { least: 0, step: 0.01 }));
    $("adjust-fields").replaceChildren(...fields);
  },

  /** A slider for a threshold or the start, or a number for which face. */
  number(name, usual, most, { least = 1, step = 1 } = {}) {
    const row = make("label", { className: "adjust-field", text: say(`adjust.${name}`) });
    row.title = say(`adjust.${name}.help`);
    const box = make("input", { id: `adjust-${name.replace("_", "-")}` });
    const value = this.entry[name] ?? usual;
    Object.assign(box, { type: name === "face" ? "number" : "range", min: least, max: most, step, value });
    const written = (number) => (name === "face" ? "" : step < 1 ? number.toFixed(2) : String(number));
    const shown = make("output", { text: written(value) });
    box.addEventListener("input", () => {
      const number = box.valueAsNumber;
      if (name === "face" && !Number.isInteger(number)) return; // not typed to the end
      setText(shown, written(number));
      this.set({ [name]: clamp(number, least, most) });
    });
    row.append(box, shown);
    return row;
  },

  /** A box to tick; `change` gives what it changes of the entry. */
  check(name, on, change) {
    const row = make("label", { className: "adjust-check" });
    row.title = say(`adjust.${name}.help`);
    const box = make("input", { id: `adjust-${name}` });
    box.type = "checkbox";
    box.checked = Boolean(on);
    box.addEventListener("change", () => this.set(change(box.checked)));
    row.append(box, make("span", { text: say(`adjust.${name}`) }));
    return row;
  },

  set(change) {
    imagePrompts.set(this.place, change);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.draw(), MAP_MS);
  },

  closed() {
    clearTimeout(this.timer);
    const { place, image, region } = this;
    if (region.changed) {
      region.changed = false;
      const png = region.png(); // now: the canvas may soon show another one
      imagePrompts.stored = imagePrompts.stored.then(() => this.store(place, image, png));
    }
    document.querySelector(`#ip-slot-${place + 1} .ip-adjust`)?.focus();
  },

  /** Store the region and tell the request of it. */
  async store(place, image, painted) {
    try {
      const png = await painted;
      const region = png && (await storePicture(png, imagePrompts.facts.bytes)).image;
      const now = imagePrompts.find(place, image);
      if (now >= 0) imagePrompts.set(now, { region });
      else stage.error(say("region.unkept"));
    } catch (error) {
      imagePrompts.failures += 1;
      stage.error(await whyNot(error));
    }
  },
};

/** Whether a picture is about as wide for its height as [width, height]. */
function sameShape(picture, [width, height]) {
  if (!picture?.width || picture.preview) return false;
  const ratio = (picture.width / picture.height) * (height / width);
  return ratio > 0.97 && ratio < 1.03;
}
