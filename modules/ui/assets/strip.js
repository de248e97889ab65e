// The strip: a place for every picture of this batch, then the last ones made.

const HISTORY_SHOWN = 24;

const strip = {
  history: [],
  liveUrl: "",

  async loadHistory() {
    try {
      const answer = await call(`/api/history?limit=${HISTORY_SHOWN}`);
      this.history = answer.images.map((image) => ({ ...image, taskId: image.task_id }));
    } catch {
      return; // the strip keeps what it has; the status poll says what is wrong
    }
    this.draw();
  },

  /** Places of the followed task: finished ones, the forming one, those to come. */
  batch() {
    const view = page.view;
    if (!view) return [];
    const finished = new Map(view.images.map((image) => [image.index, image]));
    const final = FINAL.has(view.state);
    const count = final ? 0 : view.spec.image_count;
    const live = final || view.state === "queued" ? -1 : (view.progress?.image ?? 1) - 1;
    const places = [];
    const indices = new Set([...Array(count).keys(), ...finished.keys()]);
    for (const index of [...indices].sort((a, b) => a - b)) {
      const image = finished.get(index);
      const key = `${view.id}/${index}`;
      if (image) places.push({ key, image: { ...image, taskId: view.id, prompt: view.spec.prompt } });
      else places.push({ key, index, live: index === live });
    }
    return places;
  },

  /** Every finished picture in the strip's order, without those that could not be fetched. */
  pictures() {
    const lost = new Set();
    for (const place of document.querySelectorAll("#strip .place.lost")) lost.add(place.item.key);
    return this.items().flatMap(({ key, image }) => (image && !lost.has(key) ? [image] : []));
  },

  items() {
    const batch = this.batch();
    const taken = new Set(batch.map((item) => item.key));
    const past = this.history
      .map((image) => ({ key: `${image.taskId}/${image.index}`, image }))
      .filter((item) => !taken.has(item.key) && item.image.taskId !== page.view?.id);
    if (batch.length && past.length) batch.push({ key: "divider", divider: true });
    return [...batch, ...past];
  },

  /** Ask again for pictures that could not be fetched while the server was away. */
  retryLost() {
    for (const place of document.querySelectorAll("#strip .place.lost")) {
      place.classList.remove("lost");
      place.querySelector("img")?.remove();
    }
    this.draw();
  },

  draw() {
    const shown = stage.picture;
    reconcile($("strip"), this.items(), create, (element, item) => update(element, item, shown));
  },
};

function create(item) {
  if (item.divider) return make("span", { className: "divider" });
  const button = make("button", { className: "place" });
  button.addEventListener("click", () => {
    const { item: now } = button;
    if (now.image) page.choose(now.image);
    else if (now.live) page.watchLive();
  });
  return button;
}

function update(element, item, shown) {
  if (item.divider) return;
  element.item = item;
  const { image } = item;
  let label = say("strip.pending", { number: (item.index ?? 0) + 1 });
  if (image) label = say("strip.item", { prompt: image.prompt || say("strip.seed", image) });
  else if (item.live) label = say("strip.live");
  if (element.title !== label) {
    element.title = label;
    element.setAttribute("aria-label", label);
  }
  element.disabled = !image && !item.live;
  element.classList.toggle("live", Boolean(item.live));
  const current = image
    ? shown && !shown.preview && shown.url === image.url
    : item.live && shown?.preview;
  if (current) element.setAttribute("aria-current", "true");
  else element.removeAttribute("aria-current");
  const url = image ? `${image.url}?thumb=1` : item.live ? strip.liveUrl : "";
  let picture = element.querySelector("img");
  if (!url) {
    picture?.remove();
    return;
  }
  if (!picture) {
    picture = make("img");
    picture.alt = "";
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.onerror = () => element.classList.add("lost");
    element.append(picture);
  }
  if (picture.getAttribute("src") !== url) picture.src = url;
}
