// A region painted with the finger, pen or mouse over the picture to be: white where an image
// prompt counts. What is painted is the alpha of a canvas; stored is white on black.

const REGION_SIDE = 512; // of the longer side; the engine scales it to each of its layers
const BRUSH = 0.16; // of the longer side

class RegionCanvas {
  constructor() {
    this.canvas = make("canvas", { className: "region" });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", say("region.canvas"));
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.brush = BRUSH;
    this.erases = false;
    this.changed = false;
    this.ready = true;
    this.turn = 0; // counts what was shown, for answers that come late
    this.last = null;
    const at = (type, act) => this.canvas.addEventListener(type, act);
    at("pointerdown", (event) => this.begin(event));
    at("pointermove", (event) => this.move(event));
    at("pointerup", () => (this.last = null));
    at("pointercancel", () => (this.last = null));
  }

  /** Whether it can be painted on: not while the stored region is on its way. */
  get ready() {
    return this.canvas.ariaBusy !== "true";
  }
  set ready(is) {
    this.canvas.ariaBusy = String(!is);
  }

  /** Start anew for a picture of this size, with the stored region at `url` if there is one.
   * Nothing can be painted until it is there; Clear begins without it. */
  async show([width, height], url) {
    const scale = REGION_SIDE / Math.max(width, height);
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.changed = false;
    this.last = null;
    const turn = ++this.turn;
    this.ready = !url;
    if (!url) return;
    const image = make("img");
    image.src = url;
    await image.decode();
    if (turn !== this.turn) return;
    this.take(image);
    this.ready = true;
  }

  /** Paint where `image` is bright. */
  take(image) {
    const { pen, canvas } = this;
    pen.globalCompositeOperation = "copy";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
    pen.putImageData(pixels, 0, 0);
    this.tint(pen, "source-in");
  }

  /** Everything that is painted in the one colour in which it is shown. */
  tint(pen, operation, colour = "#e8a33d") {
    pen.globalCompositeOperation = operation;
    pen.fillStyle = colour;
    pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  begin(event) {
    if (event.button || !this.ready) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.point(event);
    this.line(this.last);
  }

  move(event) {
    if (this.last) this.line(this.point(event));
  }

  line(to) {
    const { pen, last } = this;
    pen.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
    pen.strokeStyle = "#e8a33d";
    pen.lineWidth = this.brush * REGION_SIDE;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(last.x, last.y);
    pen.lineTo(to.x + 0.01, to.y); // a line without length would draw nothing
    pen.stroke();
    this.last = to;
    this.changed = true;
  }

  /** A half of the picture: top, bottom, left or right. */
  half(side) {
    if (!this.ready) return;
    const { pen } = this;
    const { width, height } = this.canvas;
    const box = {
      top: [0, 0, width, height / 2],
      bottom: [0, height / 2, width, height / 2],
      left: [0, 0, width / 2, height],
      right: [width / 2, 0, width / 2, height],
    }[side];
    pen.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
    pen.fillStyle = "#e8a33d";
    pen.fillRect(...box.map(Math.round));
    this.changed = true;
  }

  clear() {
    this.turn += 1;
    this.ready = true;
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed = true;
  }

  get isEmpty() {
    const { data } = this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let at = 3; at < data.length; at += 4) if (data[at] > 8) return false;
    return true;
  }

  /** A PNG, white where it is painted and black elsewhere; null where nothing is. */
  async png() {
    if (this.isEmpty) return null;
    const copy = make("canvas");
    copy.width = this.canvas.width;
    copy.height = this.canvas.height;
    const pen = copy.getContext("2d");
    pen.drawImage(this.canvas, 0, 0);
    this.tint(pen, "source-in", "#fff");
    this.tint(pen, "destination-over", "#000");
    return new Promise((done) => copy.toBlob(done, "image/png"));
  }
}
