// Buttons, keys, theme, sheet, and the start of everything. `window.easel` is what Gradio's
// listeners call.

const WIDE = matchMedia("(min-width: 1024px)");
const STATUS_MS = 10000;
const OFFLINE_STATUS_MS = 2000;
const QUEUE_MS = 3000;
const ANSWER_MS = 15000;

const controls = {
  nonce: "",
  pending: 0, // timer of a press of Generate that has no answer yet
  shown: {}, // the form's values that the summary needs

  generate() {
    $("generate")?.click();
  },

  /** Before Gradio sees a press of Generate. */
  beforeGenerate(event) {
    stage.error("");
    if (page.offline) {
      event.stopImmediatePropagation();
      event.preventDefault();
      stage.error(say("offline.generate"));
      return;
    }
    clearTimeout(this.pending);
    this.pending = setTimeout(() => this.noAnswer(), ANSWER_MS);
    $("generate").setAttribute("aria-busy", "true");
  },

  async noAnswer() {
    this.answered();
    await poll.status();
    stage.error(say(page.offline ? "offline.generate" : "error.unknown"));
  },

  answered() {
    clearTimeout(this.pending);
    this.pending = 0;
    $("generate").removeAttribute("aria-busy");
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
    memory.set("settings", ticket.settings);
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
      stage.error(error instanceof HttpError ? error.message : say("offline"));
    }
  },

  async unqueue(id) {
    waiting.drop(id);
    page.drawQueue();
    try {
      await post(`/api/tasks/${encodeURIComponent(id)}/stop`);
    } catch (error) {
      stage.error(error instanceof HttpError ? error.message : say("offline"));
    }
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
      await copyText(unparse({ ...view.spec, seed: picture.seed, image_count: 1 }));
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
    else setText($("look-result"), say("nomodel.none", { folder: "models/checkpoints" }));
  },

  summary(names, values) {
    names.forEach((name, index) => (this.shown[name] = values[index]));
    this.summarize();
  },

  /** "What this will make". */
  summarize() {
    const { image_count: count, steps, checkpoint } = this.shown;
    const [width, height] = [Number(this.shown.width), Number(this.shown.height)];
    if (!$("make") || !count) return;
    const chosen = document.querySelector("#size input:checked")?.parentElement.textContent ?? "";
    const [wide, high] = width && height ? [width, height] : chosen.trim().split("×").map(Number);
    const parts = [say(count === 1 ? "make.one" : "make.many", { count })];
    if (wide && high) parts.push(say("make.size", { width: wide, height: high }));
    parts.push(say("make.steps", { steps }));
    const seconds = speed.seconds(checkpoint, steps, wide * high * count);
    if (seconds) parts.push(say("make.time", { time: duration(seconds) }));
    const lines = [make("span", { className: "title", text: say("make.title") })];
    lines.push(make("span", { text: parts.join(" · ") }));
    $("make").replaceChildren(...lines);
  },
};

const sheet = {
  opener: null,
  get open() {
    return document.documentElement.dataset.side === "open";
  },
  /** Follow the window's width: a column that is remembered, or a sheet that starts closed. */
  fit() {
    this.set(WIDE.matches ? memory.get("side", localStorage) !== "closed" : false);
  },
  set(open) {
    document.documentElement.dataset.side = open ? "open" : "closed";
    if ($("advanced-toggle")) $("advanced-toggle").checked = open;
    if ($("side")) $("side").inert = !open;
    const covers = open && !WIDE.matches;
    if ($("main")) $("main").inert = covers;
    show($("backdrop"), covers);
  },
  toggle(open) {
    this.set(open);
    if (WIDE.matches) memory.set("side", open ? "open" : "closed", localStorage);
    else if (open) $("sheet-close").focus();
    else $("advanced-toggle").focus();
  },
};

const tabs = {
  all: () => [...document.querySelectorAll("#tabs [role=tab]")],
  choose(tab, { focus = false } = {}) {
    for (const other of this.all()) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      const panel = $(other.getAttribute("aria-controls"));
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", other.id);
    }
    document.documentElement.dataset.tab = tab.id.replace("tab-", "");
    if (focus) tab.focus();
  },
  key(event) {
    const all = this.all();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !all.includes(event.target)) return;
    const place = (all.indexOf(event.target) + step + all.length) % all.length;
    this.choose(all[place], { focus: true });
  },
};

const theme = {
  system: matchMedia("(prefers-color-scheme: light)"),
  get dark() {
    const chosen = memory.get("theme", localStorage);
    return chosen ? chosen === "dark" : !this.system.matches;
  },
  apply() {
    const { dark } = this;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
    const button = $("theme-toggle");
    if (!button) return;
    button.innerHTML = window.easelIcons[dark ? "sun" : "moon"];
    button.title = say(dark ? "theme.light" : "theme.dark");
    button.setAttribute("aria-label", button.title);
  },
  toggle() {
    memory.set("theme", this.dark ? "light" : "dark", localStorage);
    this.apply();
  },
};

const poll = {
  async status() {
    try {
      page.status = await call("/api/status", { timeout: 5000 });
      page.contact(true);
      setText($("notices"), page.status.notices.join(" "));
      const count = page.status.queue_length;
      setText($("queue-count"), count > 0 ? say("queue.count", { count }) : "");
      page.drawIdle();
    } catch (error) {
      page.contact(error instanceof HttpError);
    }
  },
  async queue() {
    if (!waiting.ids.length) return;
    await waiting.refresh();
    page.drawQueue();
  },
  async forever(job, pause) {
    for (;;) {
      if (!document.hidden) await job();
      await wait(pause());
    }
  },
};

const promptBox = () => document.querySelector("#prompt textarea, #prompt input");

function focusField(field) {
  const ids = { cfg_scale: "guidance", image_count: "image-number", steps: "performance" };
  const id = ids[field] ?? (field || "prompt").replaceAll("_", "-");
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

/** Give each size its little picture; nine usual ones are in sight until all are asked for. */
function drawSizes() {
  for (const label of document.querySelectorAll("#size label")) {
    const [width, height] = label.textContent.trim().split("×").map(Number);
    if (!width || !height) continue;
    const scale = 18 / Math.max(width, height);
    label.style.setProperty("--w", `${Math.round(width * scale)}px`);
    label.style.setProperty("--h", `${Math.round(height * scale)}px`);
    const input = label.querySelector("input");
    if (input.name !== "easel-size") input.name = "easel-size"; // one group for the arrow keys
  }
}

/** Gradio counts a field's help to its name; to a reader it is a description. */
function nameFields() {
  for (const block of document.querySelectorAll("#side .block")) {
    const box = block.querySelector("label > .input-container :is(input, textarea)");
    const name = block.querySelector("[data-testid=block-info]")?.textContent.trim();
    if (!box || !name) continue;
    box.setAttribute("aria-label", name);
    box.setAttribute("aria-description", block.querySelector(".info-text")?.textContent ?? "");
  }
}

function toggleSizes() {
  const all = $("size").classList.toggle("all");
  const count = document.querySelectorAll("#size label").length;
  $("more-sizes").setAttribute("aria-expanded", String(all));
  setText($("more-sizes"), say(all ? "size.fewer" : "size.more", { count }));
}

const CLICKS = {
  stop: () => controls.act("stop"),
  skip: () => controls.act("skip"),
  "theme-toggle": () => theme.toggle(),
  "sheet-close": () => sheet.toggle(false),
  backdrop: () => sheet.toggle(false),
  "error-close": () => stage.error(""),
  "try-example": () => {
    setValue(promptBox(), say("prompt.example"));
    promptBox().focus();
  },
  "look-again": () => controls.lookAgain(),
  "use-seed": () => controls.useSeed(),
  "copy-settings": () => controls.copySettings(),
  download: () => controls.download(),
  "more-sizes": toggleSizes,
};

function listen() {
  document.addEventListener(
    "click",
    (event) => {
      const target = event.target.closest("[id]:is(button, #backdrop)");
      if (target?.id === "generate") controls.beforeGenerate(event);
      else if (target?.role === "tab") tabs.choose(target);
      else if (target && !target.disabled) CLICKS[target.id]?.();
      if (event.target.matches("#stage img.result")) viewer.open(stage.picture);
    },
    true,
  );
  document.addEventListener("change", (event) => {
    if (event.target.id === "advanced-toggle") sheet.toggle(event.target.checked);
  });
  document.addEventListener("input", (event) => {
    if (event.target === promptBox()) memory.set("prompt", event.target.value);
  });
  document.addEventListener("keydown", (event) => {
    tabs.key(event);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
      event.preventDefault();
      if (!viewer.dialog?.open) controls.generate();
    } else if (event.key === "Escape" && !WIDE.matches && sheet.open) sheet.toggle(false);
    else if (event.key === "Enter" && event.target.matches?.("#stage img.result")) {
      viewer.open(stage.picture);
    }
  });
  addEventListener("hashchange", () => {
    const id = taskInAddress();
    if (id && id !== page.follower.id) page.follow(id);
  });
  WIDE.addEventListener("change", () => sheet.fit());
  theme.system.addEventListener("change", () => theme.apply());
}

const taskInAddress = () => /^#task=([a-z0-9]{1,64})$/.exec(location.hash)?.[1] ?? null;

function start() {
  const label = make("span", { text: say("generate") });
  $("generate").replaceChildren(label);
  $("generate").title = say("generate.hint");
  promptBox()?.setAttribute("aria-keyshortcuts", "Control+Enter Meta+Enter");
  document.body.append(make("div", { id: "backdrop" }));
  show($("backdrop"), false);
  sheet.fit();
  theme.apply();
  nameFields();
  for (const box of document.querySelectorAll(":is(#seed, #width, #height) input")) {
    box.inputMode = "numeric";
    box.autocomplete = "off";
  }
  tabs.choose(tabs.all()[0]);
  drawSizes();
  new MutationObserver(drawSizes).observe($("size").parentElement, { childList: true, subtree: true });
  new MutationObserver(() => theme.apply()).observe(document.body, { attributeFilter: ["class"] });
  page.follower = new Follower({
    onView: (view) => page.take(view),
    onPreview: (preview) => page.preview(preview),
    onGone: () => page.gone(),
    onContact: (reached) => page.contact(reached),
  });
  waiting.load();
  listen();
  const id = taskInAddress() ?? memory.get("task");
  if (id) page.follow(id);
  else page.idle();
  page.drawQueue();
  strip.loadHistory();
  poll.forever(() => poll.status(), () => (page.offline ? OFFLINE_STATUS_MS : STATUS_MS));
  poll.forever(() => poll.queue(), () => QUEUE_MS);
  setInterval(() => page.drawClock(), 1000);
}

window.easel = {
  ticket: (ticket) => controls.ticket(ticket),
  summary: (names, values) => controls.summary(names, values),
  restored: () => controls.summarize(),
  /** What the form shows again after a reload: the last settings sent and the words typed since. */
  settingsOfThisTab() {
    const sent = memory.get("settings");
    const prompt = memory.get("prompt");
    const settings = sent ? parse(sent) : {};
    if (prompt !== null) settings.prompt = prompt;
    return Object.keys(settings).length ? unparse(settings) : "";
  },
};

// Gradio brings its controls one kind after the other.
const NEEDED = [
  ...["top", "stage", "progress", "strip", "generate", "stop", "toggles", "side", "more-sizes"],
  ...["make", "announcer", "sheet-close", "tabs"],
];
theme.apply();
(function whenReady() {
  const there = NEEDED.every($) && promptBox() && document.querySelector("#size label") && tabs.all().length;
  if (there) start();
  else requestAnimationFrame(whenReady);
})();
