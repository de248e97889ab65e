// The image prompts: slots in a drawer under the prompt, a picture in each. The hidden box of the
// form holds them as JSON, as the request has them; an empty slot is no entry.

const IMAGE_SLOTS = 4;
const SHARES = ["stop", "weight"];
const FETCH_MS = 60000; // for a finished picture of this server

const imagePrompts = {
  list: new HiddenList("image-prompts-value"),
  facts: null, // of the panel: types with their usual stop and weight, bounds
  missing: null, // files that each type still needs, by type; null until they are known
  optional: {}, // files that each type counts better with and does without, by type
  checkpoint: undefined, // the one that `missing` is told for
  slots: IMAGE_SLOTS,
  sending: 0, // pictures that are on their way to the server
  trouble: [], // {sentence, place, image} of pictures that were not taken
  failures: 0, // how many pictures and regions could not be stored
  replaced: new Map(), // a picture that gave its slot to another → that other one
  asked: 0, // counts the questions for files, for answers that come late
  stored: Promise.resolve(), // until those that were taken are there; see settled()
  target: null, // the slot that a chosen file goes to

  start() {
    this.facts = JSON.parse($("input-image").dataset.facts);
    $("ip-add").addEventListener("click", () => {
      this.slots = Math.min(this.facts.most, this.rows().length + 1);
      this.draw();
      document.querySelector("#ip-slots > :last-child .ip-picture").focus();
    });
    $("ip-file").addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // the same file may be chosen again
      this.take(files, this.target);
    });
    document.querySelector("#refresh")?.addEventListener("click", () => this.load());
    imageDrawer.start();
    this.draw();
  },

  /** The form has changed. Its box is looked at when Gradio has written into it. */
  changed() {
    if (controls.shown.checkpoint !== this.checkpoint) this.load();
    setTimeout(() => this.draw(), 0);
  },

  /** Ask which files the types need. */
  async load() {
    const checkpoint = controls.shown.checkpoint ?? "";
    this.checkpoint = controls.shown.checkpoint;
    const turn = ++this.asked;
    try {
      const { types } = await call(`/api/controls?checkpoint=${encodeURIComponent(checkpoint)}`);
      if (turn !== this.asked) return;
      this.missing = Object.fromEntries(types.map(({ type, missing }) => [type, missing]));
      this.optional = Object.fromEntries(types.map(({ type, optional }) => [type, optional]));
    } catch {
      if (turn === this.asked) this.checkpoint = undefined; // ask again at the next change
      return; // the page says elsewhere that nobody answers
    }
    this.draw();
  },

  entries() {
    return this.list.read().filter((entry) => typeof entry?.image === "string");
  },

  usual(type) {
    return this.facts.types.find((known) => known.type === type) ?? this.facts.types[0];
  },

  /** Where the picture is now that was in slot `place`, or what took its place; -1 if nowhere
   * that has regions. */
  find(place, image) {
    while (this.replaced.has(image)) image = this.replaced.get(image);
    const entries = this.entries();
    const has = (entry) => entry?.image === image && VIEWS[entry.type].includes("region");
    return has(entries[place]) ? place : entries.findIndex(has);
  },

  /** Ask anew for the small pictures that did not come. */
  retry() {
    for (const slot of document.querySelectorAll(".ip-slot")) {
      if (slot.lost) slot.querySelector("img").removeAttribute("src");
    }
    this.draw();
  },

  /** How many of them do something. */
  inForce() {
    const counts = (e) => this.share(e, "weight") > 0 && this.share(e, "stop") > (e.start ?? 0);
    return this.entries().filter(counts).length;
  },

  share(entry, name) {
    return entry[name] ?? this.usual(entry.type)[name];
  },

  /** Entries of the list, then empty slots. */
  rows() {
    const entries = this.entries();
    const waiting = this.sending + this.trouble.filter(({ image }) => !image).length;
    const least = entries.length + Math.max(1, waiting);
    const count = Math.min(this.facts.most, Math.max(this.slots, least));
    return [...entries, ...Array(Math.max(0, count - entries.length)).fill(null)];
  },

  /** Change slot `place`; null takes the picture out and the others move up. */
  set(place, change) {
    const entries = this.entries();
    if (!entries[place]) return;
    if (change) entries[place] = { ...entries[place], ...change };
    else {
      entries.splice(place, 1);
      this.trouble = [];
    }
    this.list.write(entries);
    this.draw();
  },

  remove(place) {
    this.set(place, null);
    document.querySelector(`#ip-slot-${place + 1} .ip-picture`).focus();
  },

  choose(place) {
    this.target = place;
    $("ip-file").click();
  },

  /** Store pictures and put them into the slots: the first one into `place`, the others after. */
  take(files, place = null) {
    if (!files.length) return;
    imageDrawer.toggle(true);
    const entries = this.entries();
    const image = entries[place]?.image ?? null;
    const room = this.facts.most - entries.length - this.sending + (image ? 1 : 0);
    this.trouble = [];
    this.tell(files.length > room ? say("ip.full", { most: this.facts.most }) : "");
    for (const [index, file] of files.slice(0, Math.max(0, room)).entries()) {
      this.sending += 1;
      const goal = index ? { place: null, image: null } : { place, image };
      this.stored = this.stored.then(() => this.send(file, goal));
    }
    this.draw();
  },

  /** Wait until every picture and region is stored; whether all of them were. */
  async settled() {
    const { failures } = this;
    let last;
    do {
      last = this.stored;
      await last;
    } while (last !== this.stored);
    return failures === this.failures;
  },

  /** A picture of this page, such as a finished one. */
  takeUrl(url, place = null) {
    this.stored = this.stored.then(() => this.fetchAndTake(url, place));
  },

  async fetchAndTake(url, place) {
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(FETCH_MS) });
      if (!response.ok) throw new HttpError(response.status, say("ip.lost"));
      this.take([await response.blob()], place);
    } catch (error) {
      this.failures += 1;
      stage.error(error instanceof HttpError ? error.message : say("offline"));
    }
  },

  async send(file, { place, image }) {
    try {
      const answer = await storePicture(file, this.facts.bytes);
      const entries = this.entries();
      const now = entries[place]?.image === image ? place : entries.findIndex((e) => e.image === image);
      if (image && now >= 0) {
        entries[now] = { ...entries[now], image: answer.image };
        if (image !== answer.image) this.replaced.set(image, answer.image);
        this.replaced.delete(answer.image); // it is here again
      }
      else entries.push({ image: answer.image, type: "image_prompt", stop: null, weight: null });
      this.list.write(entries);
      setText($("announcer"), say("ip.taken", { number: image ? now + 1 : entries.length }));
    } catch (error) {
      const sentence = await whyNot(error);
      const named = file.name ? say("ip.of.file", { file: file.name, sentence }) : sentence;
      this.trouble.push({ sentence: named, place, image });
      this.failures += 1;
      setText($("announcer"), named);
    }
    this.sending -= 1;
    this.draw();
  },

  /** Beside the title: a sentence, or else what can be done here. */
  tell(sentence) {
    setText($("ip-hint"), sentence || $("ip-hint").dataset.hint);
    $("ip-hint").classList.toggle("said", Boolean(sentence));
  },

  draw() {
    if (!this.facts) return;
    const entries = this.entries();
    const free = this.trouble.filter(({ image }) => !image);
    const rows = this.rows().map((entry, place) => {
      const behind = place - entries.length;
      const trouble = entry
        ? this.trouble.find((other) => other.image === entry.image && other.place === place)
        : free[behind];
      const sending = !entry && behind >= free.length && behind - free.length < this.sending;
      return { key: String(place), entry, place, sending, trouble: trouble?.sentence ?? "" };
    });
    reconcile($("ip-slots"), rows, imageSlot, updateSlot);
    $("ip-add").disabled = rows.length >= this.facts.most;
    const count = this.inForce();
    setText($("input-image-count"), count ? String(count) : "");
    $("input-image-count").title = count ? imageCount(count) : "";
    controls.summarize();
  },
};

/** "2 image prompts" */
const imageCount = (count) => say(count === 1 ? "ip.one" : "ip.many", { count });

/** Send a picture to the server: {image, width, height}. Rejects with what is wrong with it. */
async function storePicture(file, most) {
  if (file.size > most) throw new HttpError(413, say("ip.large", { most: Math.floor(most / 2 ** 20) }));
  return call("/api/inputs", { method: "POST", body: file, timeout: 120000 });
}

/** A sentence on why a picture was not taken. */
async function whyNot(error) {
  if (error instanceof HttpError) return error.message;
  await poll.health();
  return say(page.offline ? "offline" : "ip.unreadable");
}

const imageDrawer = {
  get open() {
    return !$("input-image").hidden;
  },

  start() {
    $("input-image-toggle").addEventListener("click", () => this.toggle(!this.open, true));
    $("input-image-close").addEventListener("click", () => this.toggle(false, true));
    $("input-image").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.toggle(false, true);
    });
    this.toggle(WIDE.matches && memory.get("input-image") === "open"); // a sheet would cover the page
  },

  /** moves: whether the keyboard goes along. */
  toggle(open, moves = false) {
    show($("input-image"), open);
    $("input-image-toggle").setAttribute("aria-expanded", String(open));
    memory.set("input-image", open ? "open" : null);
    if (moves && !open) $("input-image-toggle").focus();
    else if (moves && !WIDE.matches) $("input-image-close").focus();
  },
};
