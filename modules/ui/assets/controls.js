// What the buttons do, and the words about what the form will make.

const ANSWER_MS = 15000;
const RESTORE_MS = 4000;

const controls = {
  nonce: "",
  pending: 0, // timer of a press of Generate that has no answer yet
  presses: Promise.resolve(), // the last of them
  resolve: () => {}, // ends the wait for the answer
  cleared: false, // the next click on Generate is for Gradio
  shown: {}, // what the form's controls hold
  isRestored: false,
  isWaiting: true, // a choice made before the form is restored would be overwritten

  /** A press of Generate. Presses are sent one after the other, so that none gets lost. */
  generate() {
    this.presses = this.presses.then(() => this.send());
  },

  async send() {
    stage.error("");
    $("generate").setAttribute("aria-busy", "true");
    if (imagePrompts.sending) stage.tell(say("ip.waiting"));
    if (!(await imagePrompts.settled())) {
      this.answered();
      imageDrawer.toggle(true);
      stage.error(say("ip.not.sent"));
      return;
    }
    await poll.health(); // Gradio reloads the page over a request that nobody takes
    if (page.offline) {
      this.answered();
      stage.error(say("offline.generate"));
      return;
    }
    const answer = new Promise((resolve) => (this.resolve = resolve));
    this.pending = setTimeout(() => this.noAnswer(), ANSWER_MS);
    this.cleared = true;
    $("generate").click();
    await answer;
  },

  /** Every click on Generate waits for `send`, which clears its own. */
  beforeGenerate(event) {
    if (!this.cleared) {
      event.stopImmediatePropagation();
      event.preventDefault();
      this.generate();
    }
    this.cleared = false;
  },

  async noAnswer() {
    this.answered();
    const { nonce } = this;
    await poll.status();
    if (nonce === this.nonce) stage.error(say("error.noanswer")); // none came late
  },

  answered() {
    clearTimeout(this.pending);
    this.pending = 0;
    $("generate").removeAttribute("aria-busy");
    this.resolve();
  },

  /** The answer to a press of Generate; see modules/ui/app.py. */
  ticket(ticket) {
    if (!ticket || ticket.nonce === this.nonce) return this.noAnswer();
    this.nonce = ticket.nonce;
    this.answered();
    if (ticket.error) {
      stage.error(ticket.error.message);
      focusField(ticket.error.field);
      return undefined;
    }
    stage.error("");
    if (page.busy) {
      waiting.add(ticket.id, parse(ticket.settings).prompt);
      page.drawQueue();
      poll.queue();
    } else page.follow(ticket.id);
    poll.status();
    return undefined;
  },

  async act(name) {
    const id = page.follower.id;
    if (!id || !page.busy) return;
    if (name === "stop") page.stopping = true;
    else page.skipping = page.view ? progressNumber(page.view) : 0;
    setText($("progress-words"), say(name === "stop" ? "stopping" : "skipping"));
    page.drawButtons();
    try {
      await post(`/api/tasks/${encodeURIComponent(id)}/${name}`);
    } catch (error) {
      page.stopping = false;
      page.skipping = -1;
      page.drawButtons();
      stage.error(error instanceof HttpError ? error.message : say("offline.action"));
    }
  },

  async unqueue(id) {
    try {
      await post(`/api/tasks/${encodeURIComponent(id)}/stop`);
    } catch (error) {
      const known = error instanceof HttpError;
      if (!known || error.status !== 404) {
        stage.error(known ? error.message : say("offline.action"));
        return;
      }
    }
    waiting.drop(id);
    page.drawQueue();
    poll.status();
  },

  /** Fill the prompt of a page that has none yet, such as a phone that opened the address. */
  offerPrompt(prompt) {
    const box = promptBox();
    if (box && !box.value && prompt) setValue(box, prompt);
  },

  /** The settings of the picture on the stage, as JSON that makes it again. */
  async copySettings() {
    const picture = stage.picture;
    try {
      const view = await call(`/api/tasks/${encodeURIComponent(picture.taskId)}`);
      // Arrays and lists in order go by a picture's place, all else by its seed.
      const own = { seed: picture.seed, first_index: view.spec.first_index + picture.index };
      await copyText(unparse({ ...view.spec, ...own, image_count: 1 }));
      stage.tell(say("action.copied"));
    } catch (error) {
      stage.error(error instanceof HttpError ? error.message : say("offline"));
    }
  },

  useSeed() {
    const { seed } = stage.picture;
    const random = document.querySelector("#seed-random input");
    if (random?.checked) random.click();
    const box = document.querySelector("#seed textarea, #seed input");
    if (box) setValue(box, String(seed));
    stage.tell(say("action.seeded", { seed }));
  },

  download() {
    const link = make("a");
    link.href = `${stage.picture.url}?download=1`;
    link.download = "";
    link.click();
  },

  async lookAgain() {
    document.querySelector("#refresh")?.click();
    await poll.status();
    const found = page.status?.checkpoints ?? [];
    if (found.length) stage.tell(say("nomodel.found", { name: found[0].name }));
    else setText($("look-result"), say("nomodel.none", { folder: document.querySelector("#no-model code").textContent }));
  },

  /** The form has changed. Kept for a reload, but not before what was kept is shown again. */
  form(names, values) {
    names.forEach((name, index) => (this.shown[name] = values[index]));
    if (this.isRestored) memory.set("form", JSON.stringify(this.shown));
    this.summarize();
    performanceMode.changed(this.shown, () => this.summarize());
    stylesPanel.changed();
    lorasPanel.changed();
    imagePrompts.changed();
    inspector.changed();
  },

  /** The server has looked at its files again. */
  refreshed() {
    poll.status();
    performanceMode.changed(this.shown, () => this.summarize());
  },

  restored() {
    this.isRestored = true;
    downloads.restored();
    document.documentElement.dataset.restored = "true";
    this.admit();
    this.summarize();
  },

  /** The side can be used from now on. */
  admit() {
    if (!this.isWaiting) return;
    this.isWaiting = false;
    sheet.set(sheet.open);
    if (sheet.open && !WIDE.matches) $("sheet-close").focus(); // it could not take it before
  },

  /** "What this will make". */
  summarize() {
    const { image_count: count } = this.shown;
    const { steps = this.shown.steps, picture, memory } = performanceMode.answer ?? {};
    if (!$("make") || !count) return;
    const [width, height] = pictureSize() ?? [];
    const parts = [say(count === 1 ? "make.one" : "make.many", { count })];
    if (width) parts.push(say("make.size", { width, height }));
    parts.push(say("make.steps", { steps: steps ?? this.shown.steps }));
    const images = imagePrompts.facts ? imagePrompts.inForce() : 0;
    if (images) parts.push(imageCount(images));
    if (picture) parts.push(say("make.time", { time: forecastDuration(picture * count) }));
    if (memory) parts.push(say("make.memory", { size: gigabytes(memory) }));
    const lines = [make("span", { className: "title", text: say("make.title") })];
    lines.push(make("span", { text: parts.join(" · ") }));
    $("make").replaceChildren(...lines);
  },
};

/** [width, height] that the form asks for; null where it says none. */
function pictureSize() {
  const own = [Number(controls.shown.width), Number(controls.shown.height)];
  const chosen = document.querySelector("#size input:checked")?.parentElement.textContent ?? "";
  const sides = own.every(Boolean) ? own : chosen.trim().split("×").map(Number);
  return sides.length === 2 && sides.every(Boolean) ? sides : null;
}

/** A size that is chosen is meant: width and height of the Advanced tab would overrule it. */
function forgetOwnSize() {
  for (const box of document.querySelectorAll(":is(#width, #height) input")) {
    if (box.value) setValue(box, "");
  }
}

const promptBox = () => document.querySelector("#prompt textarea, #prompt input");

function focusField(field) {
  if (field === "image_prompts") imageDrawer.toggle(true);
  const id = idOfField(field || "prompt");
  const panel = $(id)?.closest("[id^=panel-]");
  if (panel) tabs.choose($(panel.id.replace("panel-", "tab-")));
  $(id)?.querySelector("textarea, input")?.focus();
}

/** Type `value` into a control of Gradio's. */
function setValue(box, value) {
  const kind = box instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
  Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(box, value);
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

async function copyText(text) {
  if (navigator.clipboard && isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const box = make("textarea", { className: "quiet" }); // plain http in a local network
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}
