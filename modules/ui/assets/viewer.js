// A picture as large as the screen, with the arrows to walk along the strip.

const viewer = {
  dialog: null,
  picture: null,

  build() {
    const dialog = make("dialog", { id: "viewer" });
    dialog.setAttribute("aria-label", say("viewer"));
    const image = make("img");
    const close = () => dialog.close();
    dialog.append(
      image,
      make("button", { className: "close", icon: "close", label: say("viewer.close"), onclick: close }),
      make("button", {
        className: "use-image",
        icon: "image",
        label: say("action.image"),
        onclick: () => {
          imagePrompts.takeUrl(this.picture.url);
          close();
        },
      }),
      make("button", {
        className: "previous",
        icon: "left",
        label: say("viewer.previous"),
        onclick: () => this.step(-1),
      }),
      make("button", {
        className: "next",
        icon: "right",
        label: say("viewer.next"),
        onclick: () => this.step(1),
      }),
    );
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target === image) close();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
    document.body.append(dialog);
    this.dialog = dialog;
  },

  open(picture) {
    if (!this.dialog) this.build();
    this.put(picture);
    if (!this.dialog.open) this.dialog.showModal();
  },

  put(picture) {
    this.picture = picture;
    const image = this.dialog.querySelector("img");
    image.src = picture.url;
    image.alt = say("picture.alt", { prompt: picture.prompt || say("untitled") });
    const pictures = strip.pictures();
    const index = pictures.findIndex((other) => other.url === picture.url);
    this.dialog.querySelector(".previous").disabled = index <= 0;
    this.dialog.querySelector(".next").disabled = index < 0 || index >= pictures.length - 1;
  },

  step(by) {
    const pictures = strip.pictures();
    const index = pictures.findIndex((other) => other.url === this.picture.url);
    const next = index < 0 ? null : pictures[index + by];
    if (!next) return;
    this.put(next);
    page.choose(next);
  },
};
