// A page at rest leaves the processor to the painter.
//
// Gradio's sign of loading goes on asking for frame after frame when it has long gone, sixty times a
// second for as long as the page is open. Whoever asks for a frame while nobody touches the page
// waits a little here, and never once somebody does.

const FRAME_PAUSE_MS = 250;
const AWAKE_MS = 700;
const TOUCHES = [
  ...["pointerdown", "pointermove", "pointerup", "click", "wheel", "touchstart", "touchmove"],
  ...["keydown", "input", "focusin", "dragover", "drop", "scroll", "resize"],
];

const rest = {
  nextFrame: window.requestAnimationFrame.bind(window),
  cancelFrame: window.cancelAnimationFrame.bind(window),
  waiting: new Map(),
  lastId: 0,
  timer: 0,
  awakeUntil: 0,

  begin() {
    for (const kind of TOUCHES) addEventListener(kind, () => this.wake(), { capture: true, passive: true });
    window.requestAnimationFrame = (callback) => this.request(callback);
    window.cancelAnimationFrame = (id) => this.waiting.delete(id) || this.cancelFrame(id);
  },

  request(callback) {
    const isLoading = !("restored" in document.documentElement.dataset);
    if (isLoading || performance.now() < this.awakeUntil) return this.nextFrame(callback);
    this.waiting.set(--this.lastId, callback); // the browser's own numbers are positive
    this.timer ||= setTimeout(() => this.release(), FRAME_PAUSE_MS);
    return this.lastId;
  },

  wake() {
    this.awakeUntil = performance.now() + AWAKE_MS;
    if (this.timer) this.release();
  },

  release() {
    clearTimeout(this.timer);
    this.timer = 0;
    for (const id of this.waiting.keys()) this.nextFrame((now) => this.run(id, now));
  },

  /** Unless it was cancelled, or has run, meanwhile. */
  run(id, now) {
    const callback = this.waiting.get(id);
    this.waiting.delete(id);
    callback?.(now);
  },
};

rest.begin();
