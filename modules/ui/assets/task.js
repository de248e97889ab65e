// Following one task: server-sent events while the tab is seen, a slow poll while it is hidden
// (a browser gives all tabs of one address six connections together).

const FINAL = new Set(["done", "stopped", "failed"]);
const HIDDEN_POLL_MS = 3000;
const SILENCE_MS = 40000; // the server says something every 15 s

class Follower {
  constructor({ onView, onPreview, onGone, onContact }) {
    Object.assign(this, { onView, onPreview, onGone, onContact });
    this.id = null;
    this.seq = -1;
    this.source = null;
    this.timer = 0;
    this.tries = 0;
    document.addEventListener("visibilitychange", () => this.id && !this.ended && this.connect());
    addEventListener("online", () => this.id && !this.ended && this.connect());
  }

  follow(id) {
    this.release();
    this.id = id;
    this.seq = -1;
    this.tries = 0;
    this.ended = false;
    this.connect();
  }

  release() {
    this.close();
    this.id = null;
    this.ended = true;
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  connect() {
    this.close();
    if (document.hidden) this.poll();
    else this.listen();
  }

  listen() {
    const id = this.id;
    const path = `/api/tasks/${encodeURIComponent(id)}/events?after=${this.seq}`;
    const source = new EventSource(path);
    this.source = source;
    const heard = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.connect(), SILENCE_MS);
    };
    source.onopen = () => {
      this.tries = 0;
      this.onContact(true);
      heard();
    };
    source.addEventListener("view", (event) => {
      if (id !== this.id) return;
      heard();
      this.take(parse(event.data));
    });
    source.addEventListener("preview", (event) => {
      if (id !== this.id) return;
      heard();
      this.onPreview(JSON.parse(event.data));
    });
    source.onerror = () => {
      if (source !== this.source || this.ended) return;
      this.retry();
    };
  }

  /** Ask plainly what is wrong (an event source does not tell), then try again. */
  async retry() {
    this.close();
    const id = this.id;
    this.tries += 1;
    try {
      const view = await call(`/api/tasks/${encodeURIComponent(id)}`, { timeout: 4000 });
      if (id !== this.id) return;
      this.onContact(true);
      this.take(view);
    } catch (error) {
      if (id !== this.id) return;
      if (error instanceof HttpError && [404, 422].includes(error.status)) {
        this.release();
        this.onGone(id);
        return;
      }
      this.onContact(error instanceof HttpError);
    }
    if (this.ended) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), Math.min(5000, 250 * 2 ** this.tries));
  }

  async poll() {
    const id = this.id;
    try {
      const view = await call(`/api/tasks/${encodeURIComponent(id)}`);
      if (id !== this.id) return;
      this.onContact(true);
      this.take(view);
    } catch (error) {
      if (id !== this.id) return;
      this.onContact(error instanceof HttpError);
    }
    if (this.ended || this.source) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), HIDDEN_POLL_MS);
  }

  take(view) {
    this.seq = view.seq;
    if (FINAL.has(view.state)) {
      this.ended = true;
      this.close();
    }
    this.onView(view);
  }
}

/** This tab's tasks that wait behind the followed one, oldest first; kept over a reload. */
const waiting = {
  ids: [],
  views: new Map(),
  load() {
    try {
      const ids = JSON.parse(memory.get("waiting") ?? "[]");
      this.ids = Array.isArray(ids) ? ids.filter((id) => typeof id === "string") : [];
    } catch {
      this.ids = [];
    }
  },
  save() {
    memory.set("waiting", this.ids.length ? JSON.stringify(this.ids) : null);
  },
  add(id, prompt) {
    if (!this.ids.includes(id)) this.ids.push(id);
    this.views.set(id, { prompt, position: null });
    this.save();
  },
  drop(id) {
    this.ids = this.ids.filter((other) => other !== id);
    this.views.delete(id);
    this.save();
  },
  next() {
    const id = this.ids[0] ?? null;
    if (id) this.drop(id);
    return id;
  },
  /** Refresh the first few; drop those that have ended meanwhile. */
  async refresh() {
    for (const id of this.ids.slice(0, 4)) {
      try {
        const view = await call(`/api/tasks/${encodeURIComponent(id)}`);
        if (!this.ids.includes(id)) continue;
        if (FINAL.has(view.state)) this.drop(id);
        else this.views.set(id, { prompt: view.spec.prompt, position: view.position });
      } catch (error) {
        if (error instanceof HttpError && error.status === 404) this.drop(id);
      }
    }
  },
};
