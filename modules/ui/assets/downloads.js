// Model files on their way. Each `.fetchable` element names a file that the server knows how to
// fetch; here it gets a button, or says how far it is. The server does the work: a tab may go.

const DOWNLOAD_MS = 1000;
const HIDDEN_DOWNLOAD_MS = 10000;
const LISTS_THAT_CHANGE = ["preset-note", "models-hint", "performance-note", "ip-slots"];
const ON_THE_WAY = new Set(["waiting", "running"]);

const downloads = {
  views: null, // by name, null until they are known
  allowed: false, // whether this visitor may begin and stop them
  turn: 0, // counts questions and presses, for answers that come late
  timer: 0,
  news: [], // names of files of `mine` that have come, until the form has heard of it

  /** Names of the files that this tab asked for, reloaded or not: only there they take their place. */
  get mine() {
    return (memory.get("downloads") ?? "").split("\n").filter(Boolean);
  },
  set mine(names) {
    memory.set("downloads", names.join("\n"));
  },

  start() {
    document.addEventListener("click", (event) => {
      const button = event.target.closest(".fetch, .fetch-stop");
      const name = button?.closest(".fetchable").dataset.file;
      if (name) this.act(name, button.matches(".fetch-stop") ? "/stop" : "");
    });
    const seen = new MutationObserver(() => this.draw());
    for (const id of LISTS_THAT_CHANGE) seen.observe($(id), { childList: true, subtree: true });
  },

  get underWay() {
    return [...(this.views?.values() ?? [])].filter(({ state }) => ON_THE_WAY.has(state));
  },

  async act(name, verb) {
    const turn = ++this.turn;
    this.mine = [...this.mine.filter((other) => other !== name), ...(verb ? [] : [name])];
    const path = name.split("/").map(encodeURIComponent).join("/");
    try {
      this.take(await post(`/api/downloads/${path}${verb}`), turn);
    } catch (error) {
      stage.error(error instanceof HttpError ? error.message : say("offline"));
    }
  },

  async ask() {
    const turn = ++this.turn;
    try {
      this.take(await call("/api/downloads", { timeout: 5000 }), turn);
    } catch {
      this.askAgain(); // the page says elsewhere that nobody answers
    }
  },

  askAgain() {
    clearTimeout(this.timer);
    if (!this.underWay.length) return;
    this.timer = setTimeout(() => this.ask(), document.hidden ? HIDDEN_DOWNLOAD_MS : DOWNLOAD_MS);
  },

  /** An answer to the question, or part of the status, which is asked now and then anyway.
   * turn: what it was when the question was put. */
  take({ allowed, downloads: list }, turn) {
    if (turn !== this.turn) return this.askAgain();
    const before = this.views;
    this.allowed = allowed;
    this.views = new Map(list.map((view) => [view.name, view]));
    const mine = this.mine;
    for (const view of list) {
      if (before || mine.includes(view.name)) this.compare(before?.get(view.name), view);
    }
    this.draw();
    this.askAgain();
    return undefined;
  },

  compare(before, view) {
    if (before?.state === view.state) return;
    const file = view.name.split("/").pop();
    if (view.state === "done") {
      const { mine } = this;
      if (mine.includes(view.name)) this.news.push(view.name);
      this.mine = mine.filter((name) => name !== view.name);
      stage.tell(say("download.arrived", { file }));
      this.refresh();
    } else if (view.state === "failed") setText($("announcer"), view.error);
  },

  /** The form is as this tab left it: it can hear of what came while nobody looked. */
  restored() {
    if (this.news.length) $("arrived")?.click();
  },

  /** Show the new files wherever models are listed; the form hears of it by #arrived. */
  refresh() {
    if (controls.isRestored) $("arrived")?.click();
    poll.status();
    lorasPanel.load();
    imagePrompts.load();
    performanceMode.changed(controls.shown, () => controls.summarize());
  },

  /** For the form: what has come since it asked last. */
  arrived() {
    return this.news.splice(0);
  },

  draw() {
    if (!this.views) return;
    this.drawOthers();
    for (const row of document.querySelectorAll(".fetchable")) {
      drawFetching(row, this.views.get(row.dataset.file), this.allowed);
    }
    const running = this.underWay.find(({ state }) => state === "running");
    setText($("downloading"), running ? howFar(running) : "");
  },

  /** Those that no list of known files names, such as one that a preset of yesterday wanted. */
  drawOthers() {
    const listed = [...document.querySelectorAll("#models-downloads .fetchable")].map((row) => row.dataset.file);
    const others = [...this.views.values()].filter(({ name, state }) => state !== "done" && !listed.includes(name));
    const items = others.map((view) => ({ key: view.name, view }));
    reconcile($("downloads"), items, ({ view }) => fetchable("li", { ...ofName(view.name), url: view.url }), () => {});
  },
};

/** "download 66 %", or how much where nobody knows of how much. */
function howFar({ done, total }) {
  if (!total) return say("download.amount", { size: inBytes(done) });
  return say("download.share", { percent: Math.floor((done / total) * 100) });
}

/** "loras/ink.safetensors" → its two parts. */
const ofName = (name) => ({ folder: name.split("/")[0], file: name.split("/").slice(1).join("/") });

/** A file's name, as a link where everybody may know its address. */
function fileLink({ file, url }) {
  const link = make(url ? "a" : "span", { text: file });
  if (url) Object.assign(link, { href: url, target: "_blank", rel: "noreferrer noopener" });
  return link;
}

/** A line with a link to a file, which gets its button from `downloads`. */
function fetchable(tag, { file, folder, url, size }, facts = "") {
  const row = make(tag, { className: "fetchable" });
  row.dataset.file = `${folder}/${file}`;
  row.dataset.size = size ?? "";
  row.append(fileLink({ file, url }), ...(facts ? [" ", make("small", { text: facts })] : []));
  return row;
}

/** Beside the link: the button, or how far it is and a way to stop it; what went wrong. */
function drawFetching(row, view, allowed) {
  const box = row.querySelector(".fetch-box") ?? fetchBox(row);
  const busy = ON_THE_WAY.has(view?.state);
  const done = view?.state === "done";
  show(box.querySelector(".fetch"), allowed && !busy && !done);
  show(box.querySelector(".fetch-stop"), allowed && busy);
  show(box.querySelector(".track"), busy);
  const share = view?.total ? view.done / view.total : 0;
  const bar = box.querySelector(".track");
  if (busy) bar.setAttribute("aria-valuenow", String(Math.floor(share * 100)));
  bar.firstChild.style.transform = `scaleX(${share})`;
  const isFirst = !row.previousElementSibling?.matches(".fetchable"); // once for a list
  const why = !allowed && isFirst ? say("download.owner") : "";
  setText(box.querySelector(".fetch-words"), view ? downloadWords(view) : why);
  setText(box.querySelector(".fetch-error"), view?.error ?? "");
}

function fetchBox(row) {
  const { file } = ofName(row.dataset.file);
  const size = Number(row.dataset.size);
  const box = make("span", { className: "fetch-box" });
  const text = size ? say("download.size", { size: inBytes(size) }) : say("download");
  const start = make("button", { className: "fetch", text, label: say("download.of", { file }) });
  const stop = make("button", { className: "fetch-stop", icon: "close", label: say("download.stop", { file }) });
  const track = make("span", { className: "track" });
  track.append(make("span", { className: "bar" }));
  track.setAttribute("role", "progressbar");
  track.setAttribute("aria-label", file);
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  const words = make("span", { className: "fetch-words" });
  words.setAttribute("aria-live", "off"); // not every second
  const error = make("span", { className: "fetch-error" });
  error.setAttribute("role", "alert");
  box.append(start, track, words, stop, error);
  row.append(" ", box);
  return box;
}

/** "1.2 of 6.9 GB · 23 MB/s · 4 min 3 s left" */
function downloadWords({ state, phase, done, total, rate, seconds_left: left }) {
  if (state === "waiting") return say("download.waiting");
  if (state === "done") return say("download.done");
  if (state === "stopped" || state === "failed") return done ? say("download.kept", { size: inBytes(done) }) : "";
  if (phase !== "fetching") return say(`download.${phase}`);
  const parts = [total ? say("download.part", { done: inBytes(done), total: inBytes(total) }) : inBytes(done)];
  if (rate >= 1) parts.push(say("download.rate", { rate: inBytes(rate) }));
  if (left !== null) parts.push(say("progress.left", { time: duration(left) }));
  return parts.join(" · ");
}

/** 6938078334 → "6.9 GB". */
function inBytes(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} GB`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(count / 1e3))} kB`;
}
