// Clicks, keys and the start of everything. `window.easel` is what Gradio's listeners call.

const STATUS_MS = 10000;
const OFFLINE_STATUS_MS = 2000;
const QUEUE_MS = 3000;

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

/** What a control does, for one without help under its name; it is given when it is looked at. */
function giveTip({ target }) {
  for (let box = target; box?.id !== undefined; box = box.parentElement) {
    const tip = window.easelTexts[`tip.${box.id}`];
    if (!tip) continue;
    if (box.title === tip) return;
    box.title = tip;
    box.querySelector("input, textarea")?.setAttribute("aria-description", tip);
    return;
  }
}

const CLICKS = {
  stop: () => controls.act("stop"),
  skip: () => controls.act("skip"),
  "theme-toggle": () => theme.toggle(),
  "log-out": () => memory.clear(), // the next visitor may be another one
  "sheet-close": () => sheet.toggle(false),
  backdrop: () => sheet.toggle(false),
  "error-close": () => stage.error(""),
  "try-example": () => {
    setValue(promptBox(), say("prompt.example"));
    promptBox().focus();
  },
  "look-again": () => controls.lookAgain(),
  "use-seed": () => controls.useSeed(),
  "use-image": () => imagePrompts.takeUrl(stage.picture.url),
  "copy-settings": () => controls.copySettings(),
  download: () => controls.download(),
  "more-sizes": toggleSizes,
  "skip-link": () => promptBox().focus(),
};

function listen() {
  document.addEventListener(
    "click",
    (event) => {
      const target = event.target.closest("[id]:is(button, #backdrop, #skip-link)");
      if (target?.id === "skip-link") event.preventDefault(); // the address names the task
      if (target?.id === "generate") controls.beforeGenerate(event);
      else if (target?.role === "tab") tabs.choose(target);
      else if (target && !target.disabled) CLICKS[target.id]?.();
      if (event.target.matches("#stage img.result")) viewer.open(stage.picture);
    },
    true,
  );
  for (const look of ["pointerover", "focusin"]) document.addEventListener(look, giveTip);
  document.addEventListener("change", (event) => {
    if (event.target.id === "advanced-toggle") sheet.toggle(event.target.checked);
  });
  document.addEventListener("keydown", (event) => {
    tabs.key(event);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
      event.preventDefault();
      if (!document.querySelector("dialog[open]")) controls.generate();
    } else if (event.key === "Escape" && !WIDE.matches && sheet.open) sheet.toggle(false);
    else if (["Enter", " "].includes(event.key) && event.target.matches?.("#stage img.result")) {
      event.preventDefault(); // Space would scroll
      viewer.open(stage.picture);
    }
  });
  addEventListener("hashchange", () => {
    const id = taskInAddress();
    if (id && id !== page.follower.id) page.follow(id, { offer: true });
  });
  WIDE.addEventListener("change", () => sheet.fit());
  theme.system.addEventListener("change", () => theme.apply());
}

const taskInAddress = () => /^#task=([a-z0-9]{1,64})$/.exec(location.hash)?.[1] ?? null;

function start() {
  const label = make("span", { text: say("generate") });
  $("generate").replaceChildren(label);
  promptBox()?.setAttribute("aria-keyshortcuts", "Control+Enter Meta+Enter");
  document.body.append(make("div", { id: "backdrop" }));
  show($("backdrop"), false);
  sheet.fit();
  setTimeout(() => controls.admit(), RESTORE_MS); // it may never be, where a request was lost
  theme.apply();
  nameFields();
  $("preset-note").setAttribute("aria-live", "polite");
  for (const box of document.querySelectorAll(":is(#seed, #width, #height) input")) {
    box.inputMode = "numeric";
    box.autocomplete = "off";
  }
  tabs.choose(tabs.all()[0]);
  $("size").parentElement.addEventListener("click", (event) => {
    if (event.target.closest("#size input")) forgetOwnSize();
  });
  drawSizes();
  new MutationObserver(drawSizes).observe($("size").parentElement, { childList: true, subtree: true });
  new MutationObserver(() => theme.apply()).observe(document.body, { attributeFilter: ["class"] });
  page.follower = new Follower({
    onView: (view) => page.take(view),
    onPreview: (preview) => page.preview(preview),
    onGone: () => page.gone(),
    onContact: (reached) => page.contact(reached),
  });
  stylesPanel.start();
  lorasPanel.start();
  imagePrompts.start();
  pictureDrop.start();
  inspector.start();
  downloads.start();
  waiting.load();
  listen();
  const id = taskInAddress() ?? memory.get("task");
  if (id) page.follow(id, { offer: true });
  else page.idle();
  page.drawQueue();
  strip.loadHistory();
  poll.forever(() => poll.status(), () => (page.offline ? OFFLINE_STATUS_MS : STATUS_MS));
  poll.forever(() => poll.queue(), () => QUEUE_MS);
  setInterval(() => page.drawClock(), 1000);
}

window.easel = {
  ticket: (ticket) => controls.ticket(ticket),
  form: (names, values) => controls.form(names, values),
  formOfThisTab: () => memory.get("form") ?? "",
  restored: () => controls.restored(),
  arrived: () => downloads.arrived(),
  refreshed: () => controls.refreshed(),
};

// Gradio brings its controls one kind after the other.
const NEEDED = [
  ...["top", "stage", "progress", "strip", "generate", "stop", "toggles", "side", "more-sizes"],
  ...["make", "announcer", "sheet-close", "tabs", "styles", "loras", "inspector", "input-image"],
  ...["preset-note", "models-hint", "performance-note", "downloads"],
];
theme.apply();
(function whenReady() {
  const there = NEEDED.every($) && promptBox() && document.querySelector("#size label") && tabs.all().length;
  if (there) start();
  else requestAnimationFrame(whenReady);
})();
