// The stage: one picture (preview or result), one message, one error; the progress row below.

const LOST_MS = 1000;
const LOST_MS_MAX = 60000;
const QUIET_MOTION = matchMedia("(prefers-reduced-motion: reduce)");

const stage = {
  picture: null, // {url, width, height, seed, taskId, index, prompt, preview}
  waitingUrl: "",
  lost: null, // a result that could not be fetched

  setState(state) {
    const element = $("stage");
    if (element.dataset.state !== state) element.dataset.state = state;
  },

  /** Show one of the messages, or none when a picture is there. */
  message(name, title = "", text = "") {
    for (const id of ["idle", "no-model", "waiting"]) show($(id), id === name);
    if (name === "waiting") {
      setText($("waiting-title"), title);
      setText($("waiting-text"), text);
    }
    if (name) this.clear();
  },

  clear() {
    this.picture = null;
    this.lost = null;
    this.waitingUrl = "";
    $("frame").replaceChildren();
    show($("picture-bar"), false);
  },

  /** Show a picture once it is decoded, so that nothing flashes. A result fades in. */
  async put(picture) {
    if (this.waitingUrl === picture.url) return;
    this.waitingUrl = picture.url;
    this.lost = null;
    const next = new Image();
    next.src = picture.url;
    next.alt = say(picture.preview ? "preview.alt" : "picture.alt", {
      prompt: picture.prompt || say("untitled"),
    });
    try {
      await next.decode();
    } catch {
      if (this.waitingUrl !== picture.url) return;
      this.waitingUrl = "";
      if (!picture.preview) this.lose(picture);
      return;
    }
    if (this.waitingUrl !== picture.url) return; // something newer was asked for
    const before = this.picture;
    this.picture = picture;
    for (const id of ["idle", "no-model", "waiting"]) show($(id), false);
    this.swap(next, before, picture);
    this.describe();
  },

  /** A result did not come: ask again, seldomer and seldomer, and when Easel is reached again. */
  lose(picture) {
    this.lost = picture;
    const pause = 2 * (picture.pause ?? LOST_MS / 2);
    const again = () => this.lost === picture && this.retryLost(pause);
    if (pause <= LOST_MS_MAX) setTimeout(again, pause);
  },

  retryLost(pause) {
    if (this.lost) this.put({ ...this.lost, pause }).then(() => strip.draw());
  },

  swap(next, before, picture) {
    const frame = $("frame");
    const old = frame.querySelector("img");
    const ghost = old && !picture.preview && !QUIET_MOTION.matches ? ghostOf(old) : null;
    next.className = picture.preview ? "preview" : "result";
    next.width = picture.width;
    next.height = picture.height;
    if (!picture.preview) {
      next.tabIndex = 0;
      next.setAttribute("role", "button");
      next.title = say("picture.open");
    }
    if (old) old.replaceWith(next);
    else frame.append(next);
    if (!ghost) return;
    frame.append(ghost);
    ghost.getBoundingClientRect(); // start from opaque
    ghost.classList.add("gone");
    setTimeout(() => ghost.remove(), 600);
  },

  describe() {
    const picture = this.picture;
    const finished = picture && !picture.preview;
    show($("picture-bar"), Boolean(finished));
    if (!finished) return;
    setText($("picture-facts"), say("picture.facts", picture));
  },

  /** A word at the lower edge that goes away by itself. */
  told: 0,
  tell(text) {
    setText($("said"), text);
    show($("said"), true);
    clearTimeout(this.told);
    this.told = setTimeout(() => show($("said"), false), 2500);
  },

  error(text) {
    setText($("error-text"), text);
    show($("error"), Boolean(text));
  },

  /** The progress row. fraction null: something goes on, nobody knows how far. */
  progress(words, fraction = 0, active = false) {
    setText($("progress-words"), words);
    const row = $("progress");
    const percent = fraction === null ? 0 : Math.round(fraction * 1000) / 10;
    row.dataset.active = String(active);
    row.dataset.unknown = String(active && fraction === null);
    if (fraction === null) row.removeAttribute("aria-valuenow");
    else row.setAttribute("aria-valuenow", String(Math.round(percent)));
    row.setAttribute("aria-valuetext", words);
    const scale = `scaleX(${percent / 100})`;
    if ($("bar").style.transform !== scale) $("bar").style.transform = scale;
  },
};

/** A still copy of `image`, laid over it to fade out; not an img, so there is only ever one. */
function ghostOf(image) {
  const canvas = make("canvas", { className: "ghost" });
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  try {
    canvas.getContext("2d").drawImage(image, 0, 0);
  } catch {
    return null;
  }
  return canvas;
}

/** Words for the progress row while `view` is not final. */
function progressWords(view) {
  const { progress } = view;
  if (!progress) return view.loading?.message || view.message || say("starting");
  const words = [];
  if (progress.image_count > 1) {
    words.push(say("progress.image", { image: progress.image, count: progress.image_count }));
  }
  words.push(say("progress.step", progress));
  if (progress.seconds_left !== null && progress.seconds_left !== undefined) {
    words.push(say("progress.left", { time: duration(progress.seconds_left) }));
  }
  if (progress.note) words.push(progress.note);
  return words.join(" · ");
}

function progressFraction({ progress }) {
  const done = progress.image - 1 + progress.step / Math.max(progress.steps, 1);
  return clamp(done / Math.max(progress.image_count, 1), 0, 1);
}

/** What a task's end says in the progress row. */
function endWords(view) {
  const count = view.images.length;
  if (view.state === "failed") return "";
  if (view.state === "stopped") {
    if (!count) return say("stopped.none");
    return say("stopped.some", { count, total: view.spec.image_count });
  }
  const time = duration((view.ended ?? 0) - (view.started ?? view.created));
  return say(count === 1 ? "done.one" : "done.many", { count, time });
}
