// What this tab shows: the followed task's view, drawn into the stage, the strip and the buttons.

const page = {
  view: null, // the newest TaskView of the followed task
  live: null, // its newest preview
  pinned: false, // the user looks at another picture than the forming one
  held: false, // the last task's picture stays until the next one's first preview
  stopping: false,
  skipping: -1, // how many pictures and steps were there when Skip was pressed
  offline: false,
  status: null, // the newest /api/status

  follower: null,

  get busy() {
    return Boolean(this.follower?.id) && !(this.view && FINAL.has(this.view.state));
  },

  /** Nothing to paint with: as far as is known, no checkpoint is there. */
  get modelless() {
    return this.status?.checkpoints.length === 0;
  },

  /**
   * Show task `id` here. The address carries it, so a reload or another device finds it too.
   * offer: put its prompt into an empty box, on a page that has just come to it.
   */
  follow(id, { hold = false, offer = false } = {}) {
    this.view = null;
    this.offers = offer;
    this.live = null;
    strip.liveUrl = "";
    this.pinned = false;
    this.held = hold && Boolean(stage.picture);
    this.stopping = false;
    this.skipping = -1;
    if (!hold) stage.error(""); // what was said of another task
    memory.set("task", id);
    const hash = `#task=${id}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
    this.follower.follow(id);
    $("strip").scrollLeft = 0;
    this.drawButtons();
  },

  forget() {
    this.follower.release();
    this.view = null;
    this.live = null;
    memory.set("task", null);
    history.replaceState(null, "", location.pathname + location.search);
    stage.error("");
    this.idle();
  },

  idle() {
    stage.setState("idle");
    stage.progress("");
    this.drawIdle();
    strip.draw();
    this.drawButtons();
    document.title = say("title");
  },

  drawIdle() {
    const failed = this.view?.error?.code === "E_MODEL_MISSING";
    if (failed ? stage.picture : this.view || this.follower.id || stage.picture) return;
    if (this.modelless) {
      if (failed && $("no-model").hidden) stage.error(say("nomodel.failed"));
      stage.message("no-model");
    } else if (!failed) stage.message("idle");
    else if (!$("no-model").hidden) this.forget(); // there is one now: begin anew
  },

  take(view) {
    if (view.id !== this.follower.id) return;
    const before = this.view;
    this.view = view;
    if (!before && this.offers) controls.offerPrompt(view.spec.prompt);
    const newest = view.images.at(-1);
    const grown = view.images.length > (before?.images.length ?? 0);
    if (grown) this.live = null;
    if (grown) strip.liveUrl = "";
    if (FINAL.has(view.state)) this.end(view, newest);
    else if (view.state === "queued") this.drawQueued(view);
    else this.drawRunning(view, grown ? newest : null);
    this.announce(before, view);
    strip.draw();
    this.drawButtons();
    this.drawClock();
    if (FINAL.has(view.state)) this.next();
  },

  drawQueued(view) {
    stage.setState("queued");
    const words = queueWords(view);
    const free = !this.pinned && !this.held;
    if (free) stage.message("waiting", words, view.message || say("queued.text"));
    stage.progress(free ? "" : view.message || words); // nothing is said twice
  },

  drawRunning(view, finished) {
    const loading = Boolean(view.loading) && !view.progress;
    stage.setState(loading ? "loading" : "running");
    const fraction = view.progress ? progressFraction(view) : (view.loading?.fraction ?? null);
    let words = view.message || progressWords(view);
    if (this.drawStage(view, finished, loading)) {
      const percent = fraction ? `${Math.round(fraction * 100)} %` : "";
      words = view.progress ? progressWords(view) : percent; // the rest is said above
    }
    stage.progress(this.actionWords(view) || words, fraction, true);
  },

  /** A picture or a message for the running task; true if it is a message. */
  drawStage(view, finished, loading) {
    if (this.pinned) return false;
    if (finished) this.put(finished);
    else if (this.live || this.held || this.shows(view)) return false;
    else if (view.images.length) this.put(view.images.at(-1));
    else {
      const title = loading ? say("loading") : say("starting");
      stage.message("waiting", title, view.message || view.loading?.message || "");
      return true;
    }
    return false;
  },

  shows(view) {
    return stage.picture?.taskId === view.id;
  },

  actionWords(view) {
    if (this.stopping) return say("stopping");
    if (this.skipping < 0) return "";
    if (this.skipping === progressNumber(view)) return say("skipping");
    this.skipping = -1;
    return "";
  },

  end(view, newest) {
    this.stopping = false;
    this.skipping = -1;
    this.held = false;
    stage.setState(view.state);
    const empty = !newest && !this.pinned;
    stage.progress(empty ? "" : endWords(view), view.state === "done" ? 1 : 0, false);
    const failed = view.state === "failed";
    if (failed) stage.error(view.error?.message || say("error.unknown"));
    if (empty) stage.message("waiting", say(failed ? "failed.title" : "stopped.none"));
    else if (!this.pinned) this.put(newest);
    this.drawIdle();
    this.live = null;
    performanceMode.changed(controls.shown, () => controls.summarize());
  },

  /** The followed task has ended: go on with the next one of this tab, if any. */
  next() {
    const id = waiting.next();
    this.drawQueue();
    strip.loadHistory();
    if (id) this.follow(id, { hold: true });
  },

  put(image) {
    stage.put({ ...image, taskId: this.view.id, prompt: this.view.spec.prompt }).then(() => strip.draw());
  },

  preview(preview) {
    const view = this.view;
    if (!view || view.state !== "running") return;
    this.live = preview;
    this.held = false;
    strip.liveUrl = preview.url;
    strip.draw();
    if (!this.pinned) this.showLive();
  },

  showLive() {
    const { view, live } = this;
    const picture = { ...live, taskId: view.id, prompt: view.spec.prompt, preview: true };
    stage.put(picture).then(() => strip.draw());
  },

  watchLive() {
    this.pinned = false;
    if (this.live) this.showLive();
  },

  /** The user clicks a picture of the strip. */
  choose(image) {
    this.pinned = this.busy;
    stage.put(image).then(() => strip.draw());
  },

  gone() {
    this.forget();
    stage.error(say("error.gone"));
    const id = waiting.next();
    if (id) this.follow(id);
  },

  contact(reached) {
    if (this.offline === !reached) return;
    this.offline = !reached;
    document.documentElement.dataset.offline = String(this.offline);
    setText($("server"), this.offline ? say("offline") : "");
    if (!this.offline) {
      stage.tell(say("online"));
      const passing = [say("offline.generate"), say("offline.action")];
      if (passing.includes($("error-text").textContent)) stage.error("");
      stage.retryLost();
      strip.retryLost();
      imagePrompts.retry();
      strip.loadHistory();
    }
    this.drawButtons();
  },

  drawButtons() {
    const busy = this.busy;
    const running = this.view?.state === "running";
    const button = $("generate");
    const label = button?.querySelector("span");
    setText(label, say(busy ? "generate.queue" : "generate"));
    $("stop").disabled = !busy || this.stopping;
    $("skip").disabled = !(busy && running) || this.stopping || this.skipping >= 0;
    document.documentElement.dataset.busy = String(busy);
  },

  drawClock() {
    const view = this.view;
    const running = view?.state === "running" && view.started;
    setText($("clock"), running ? clockTime(Date.now() / 1000 - view.started) : "");
    if (!running) {
      document.title = say("title");
      return;
    }
    const percent = view.progress ? Math.round(progressFraction(view) * 100) : 0;
    document.title = `${percent} % · ${say("title")}`;
  },

  drawQueue() {
    const list = $("queue");
    const shown = waiting.ids.slice(0, 4).map((id) => ({ key: id, id }));
    const more = waiting.ids.length - shown.length;
    if (more > 0) shown.push({ key: "more", more });
    reconcile(list, shown, queueChip, (chip, item) => {
      if (item.more) return setText(chip, say("queue.more", { count: item.more }));
      const { prompt, position } = waiting.views.get(item.id) ?? {};
      setText(chip.querySelector(".number"), position ? `${position}` : "…");
      setText(chip.querySelector(".prompt"), prompt || say("untitled"));
      const label = say("queue.remove", { prompt: prompt || say("untitled") });
      chip.querySelector("button").title = label;
      chip.querySelector("button").setAttribute("aria-label", label);
    });
  },

  /** Tell screen readers what matters, not every step. */
  announce(before, view) {
    if (before?.state === view.state && before.images.length === view.images.length) return;
    const words = FINAL.has(view.state) ? endWords(view) : progressWords(view);
    setText($("announcer"), view.state === "queued" ? queueWords(view) : words);
  },
};

/** A number that changes when a picture or a step is finished. */
function progressNumber({ progress, images }) {
  return images.length * 1000 + (progress?.image ?? 0);
}

function queueWords(view) {
  if (!view.position) return say("queued");
  return view.position === 1 ? say("queued.next") : say("queued.position", view);
}

function queueChip(item) {
  if (item.more) return make("span", { className: "more" });
  const chip = make("span", { className: "chip" });
  chip.setAttribute("role", "listitem");
  chip.append(make("span", { className: "number" }), make("span", { className: "prompt" }));
  chip.append(make("button", { icon: "close", onclick: () => controls.unqueue(item.id) }));
  return chip;
}
