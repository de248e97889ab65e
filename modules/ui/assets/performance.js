// What a performance mode decides, how long it takes, and what it still needs: asked of the server
// whenever a setting changes that matters for it.

const performanceMode = {
  fields: ["performance", "checkpoint", "aspect_ratio", "steps", "sampler", "cfg_scale", "guidance_start", "guidance_end",
    "refiner", "refiner_switch"],
  asked: 0,
  timer: 0,
  answer: null, // of /api/forecast, for the settings of this moment

  /** `shown`: values of the form by field name. */
  changed(shown, whenKnown) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(shown, whenKnown), 120);
  },

  async ask(shown, whenKnown) {
    const number = ++this.asked;
    const whole = (name, least, most, of) => {
      const number = Number(shown[name]);
      return number >= least && number <= most && number % of === 0 ? number : null;
    };
    const [width, height] = [whole("width", 64, 2048, 8), whole("height", 64, 2048, 8)];
    const size = width && height ? { width, height } : { width: null, height: null };
    const known = Object.fromEntries(this.fields.map((name) => [name, shown[name]]));
    const steps = Object.fromEntries(
      ["overwrite_step", "overwrite_switch"].map((name) => [name, whole(name, 1, 200, 1)]),
    );
    const values = { ...known, ...size, ...steps, image_prompts: imagePrompts.list.read() };
    const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
    const body = JSON.stringify(Object.fromEntries(given));
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await call("/api/forecast", { method: "POST", headers, body });
      if (number !== this.asked) return;
      this.answer = answer;
    } catch {
      return; // the page says elsewhere that nobody answers
    }
    this.grey();
    this.tell();
    whenKnown();
  },

  /** Controls of which the mode decides cannot be changed; their values wait for another mode. */
  grey() {
    const forced = this.answer.forced ?? {};
    const ids = Object.keys(forced).map(idOfField);
    if (forced.cfg_scale === 1) ids.push("negative-prompt");
    for (const control of document.querySelectorAll("#side .forced")) {
      if (!ids.includes(control.id)) control.classList.remove("forced");
      control.inert = ids.includes(control.id);
    }
    for (const id of ids) {
      const control = $(id);
      if (!control) continue;
      control.classList.add("forced");
      control.inert = true;
    }
    for (const [name, value] of Object.entries(forced)) {
      const label = labelOf(name);
      if (label) label.dataset.forced = say("performance.value", { value: value === "" ? say("refiner.none") : value });
    }
  },

  tell() {
    const { forced = {}, missing, modes = {}, memory_modes: memory = {} } = this.answer;
    for (const input of document.querySelectorAll("#performance input")) {
      const seconds = modes[input.value];
      input.parentElement.dataset.time = seconds ? `~${forecastDuration(seconds)}` : "";
      const bytes = memory[input.value];
      input.parentElement.title = bytes ? say("make.memory", { size: gigabytes(bytes) }) : "";
    }
    const note = $("performance-note");
    if (!note) return;
    const told = ["steps", "cfg_scale"].filter((name) => name in forced && labelOf(name));
    const fields = told.map((name) => `${labelOf(name).textContent.trim()} ${forced[name]}`).join(", ");
    const parts = told.length ? [make("span", { text: say("performance.forced", { fields }) })] : [];
    if (missing && !missing.file) {
      parts.push(make("span", { className: "missing", text: say("performance.none") }));
    } else if (missing) {
      const needs = make("span", { className: "missing", text: say("performance.missing", missing) });
      parts.push(needs, missing.folder ? fetchable("span", missing) : fileLink(missing));
    }
    const key = JSON.stringify([fields, missing]);
    if (note.dataset.key === key) return; // a download that runs goes on being told
    note.dataset.key = key;
    note.replaceChildren(...parts.flatMap((part) => [part, " "]).slice(0, -1));
  },
};

/** The words over the control of a field. */
const labelOf = (name) => $(idOfField(name))?.querySelector("[data-testid=block-info]");

const FIELD_IDS = { cfg_scale: "guidance", image_count: "image-number", aspect_ratio: "size", image_prompts: "input-image" };

/** The element that holds a field of the request. */
const idOfField = (name) => FIELD_IDS[name] ?? name.replaceAll("_", "-");
