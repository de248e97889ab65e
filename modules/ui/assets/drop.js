// Pictures that come by drag and drop or from the clipboard, anywhere on the page.

const DROP_MS = 200; // after the last sign of something dragged over the page

const pictureDrop = {
  own: "", // the address of this page's picture that is dragged
  timer: 0,
  over: null,

  start() {
    document.body.append(make("div", { id: "drop-hint", text: say("drop.hint") }));
    document.addEventListener("dragstart", (event) => {
      const picture = event.target.closest?.("#stage, #strip, #viewer") && event.target;
      this.own = picture?.src?.includes("/api/images/") ? picture.src.replace("?thumb=1", "") : "";
    });
    document.addEventListener("dragend", () => (this.own = ""));
    document.addEventListener("dragover", (event) => this.hover(event), true);
    document.addEventListener("drop", (event) => this.drop(event), true);
    document.addEventListener("paste", (event) => this.paste(event), true);
  },

  /** Whether a picture is dragged, as far as is known before it is dropped. */
  carries(event) {
    const files = event.dataTransfer?.types.includes("Files");
    return Boolean(files || this.own);
  },

  hover(event) {
    if (!this.carries(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const covered = document.querySelector("dialog[open]"); // a large view takes nothing
    event.dataTransfer.dropEffect = covered ? "none" : "copy";
    if (covered) return;
    this.mark(event.target.closest?.(".ip-slot"));
    document.documentElement.dataset.dropping = "true";
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.leave(), DROP_MS);
  },

  mark(slot) {
    if (slot === this.over) return;
    this.over?.classList.remove("over");
    slot?.classList.add("over");
    this.over = slot;
  },

  leave() {
    clearTimeout(this.timer);
    this.mark(null);
    delete document.documentElement.dataset.dropping;
  },

  drop(event) {
    if (!this.carries(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const place = event.target.closest?.(".ip-slot")?.place ?? null;
    if (document.querySelector("dialog[open]")) return;
    if (this.own) imagePrompts.takeUrl(this.own, place);
    else imagePrompts.take([...event.dataTransfer.files], place);
    this.own = "";
    this.leave();
  },

  /** A copied picture; where words were copied with it, a box for words gets those. */
  paste(event) {
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    const words = event.clipboardData?.types.includes("text/plain");
    const box = event.target.closest?.("textarea, input:not([type=range], [type=checkbox])");
    if (!files.length || (words && box) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    event.stopPropagation();
    imagePrompts.take(files, event.target.closest?.(".ip-slot")?.place ?? null);
  },
};
