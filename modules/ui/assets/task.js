// Following one task: server-sent events while the tab is seen, a slow poll while it is hidden.
// A browser gives all tabs of one address six connections together; so only a few of the tabs
// that are seen at once hold one, and the others ask every second.

const FINAL = new Set(["done", "stopped", "failed"]);
const HIDDEN_POLL_MS = 3000;
const CROWDED_POLL_MS = 1000;
const STREAMS = 3;
const SILENCE_MS = 40000; // the server says something every 15 s

/**
 * A permit for a stream of events, as a function that gives it back; null when all are taken.
 * Without locks (plain http in a local network) everyone gets one.
 */
async function streamPermit() {
  if (!navigator.locks) return () => {};
  for (let number = 0; number < STREAMS; number += 1) {
    const permit = await new Promise((answer) => {
      const hold = (lock) => (lock ? new Promise((back) => answer(back)) : answer(null));
      navigator.locks.request(`easel-stream-${number}`, { ifAvailable: true }, hold).catch(() => answer(null));
    });
    if (permit) return permit;
  }
  return null;
}

class Follower {
  constructor({ onView, onPreview, onGone, onContact }) {
    Object.assign(this, { onView, onPreview, onGone, onContact });
    this.id = null;
    this.seq = -1;
    this.source = null;
    this.timer = 0;
    this.tries = 0;
    this.attempt = 0; // counts connections, so that a permit that comes too late is given back
    this.permit = null;
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
    this.attempt += 1;
    this.source?.close();
    this.source = null;
    this.permit?.();
    this.permit = null;
  }

  async connect() {
    this.close();
    const { attempt } = this;
    const permit = document.hidden ? null : await streamPermit();
    if (attempt !== this.attempt) return permit?.();
    this.permit = permit;
    return permit ? this.listen() : this.poll();
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

  /** An event source does not tell what is wrong: ask plainly, then try again. */
  async retry() {
    this.close();
    this.tries += 1;
    await this.ask(Math.min(5000, 250 * 2 ** this.tries));
  }

  async poll() {
    await this.ask(document.hidden ? HIDDEN_POLL_MS : CROWDED_POLL_MS);
  }

  /** Ask once how the task is, and connect again after `pause` ms unless something else did. */
  async ask(pause) {
    const { id, attempt } = this;
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
    if (this.ended || attempt !== this.attempt) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), pause);
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
  /** Refresh the first few; drop those that were stopped meanwhile. */
  async refresh() {
    for (const id of this.ids.slice(0, 4)) {
      try {
        const view = await call(`/api/tasks/${encodeURIComponent(id)}`);
        if (!this.ids.includes(id)) continue;
        if (view.state === "stopped") this.drop(id);
        else if (FINAL.has(view.state)) continue; // `next` shows how it ended
        else this.views.set(id, { prompt: view.spec.prompt, position: view.position });
      } catch (error) {
        if (error instanceof HttpError && error.status === 404) this.drop(id);
      }
    }
  },
};
