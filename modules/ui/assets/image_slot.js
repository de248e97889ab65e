// What one slot of the image prompts looks like, empty or with its picture.

const ALWAYS_OFFERED = new Set(["image_prompt", "canny", "cpds", "face"]); // the others with a file
const TOUCH = matchMedia("(hover: none)"); // nothing is dragged there
const NARROW = 4; // sides as 1 to this: then most of it is not seen

/** Whether a picture of this type is followed, filling the picture to be; others count whole. */
const isStructure = (type) => !["image_prompt", "face"].includes(type);

/** An empty slot; `updateSlot` fills it. */
function imageSlot({ place }) {
  const number = place + 1;
  const slot = make("div", { id: `ip-slot-${number}`, className: "ip-slot" });
  slot.place = place;
  slot.setAttribute("role", "group");
  slot.setAttribute("aria-label", say("ip.slot", { number }));
  const picture = make("button", { className: "ip-picture", icon: "image" });
  picture.addEventListener("click", () => imagePrompts.choose(place));
  const image = make("img");
  image.alt = "";
  image.draggable = false;
  image.addEventListener("load", () => {
    const [short, long] = [image.naturalWidth, image.naturalHeight].sort((a, b) => a - b);
    slot.narrow = long > NARROW * short;
    slot.lost = false;
    imagePrompts.draw();
  });
  image.addEventListener("error", () => {
    slot.lost = true;
    imagePrompts.draw();
  });
  picture.append(image, make("span", { className: "words" }));
  const remove = make("button", { className: "ip-remove", icon: "close", label: say("ip.remove", { number }) });
  remove.addEventListener("click", () => imagePrompts.remove(place));
  const type = make("select", { id: `ip-type-${number}`, label: say("ip.type", { number }) });
  type.addEventListener("change", () => {
    const kept = isStructure(type.value) ? { region: null } : {}; // it is followed everywhere
    // What is a face or a map for one type is none for another.
    const usual = { start: 0, stop: null, weight: null, mode: "joint", skip_preprocess: false };
    imagePrompts.set(place, { type: type.value, ...usual, ...kept });
  });
  const note = make("div", { className: "ip-note" });
  note.setAttribute("role", "status");
  const label = say("ip.adjust.image_prompt.of", { number });
  const more = make("button", { className: "ip-adjust text-button", label });
  more.addEventListener("click", () => adjust.open(place));
  slot.append(picture, more, remove, type, ...SHARES.map((name) => shareRow(place, name)), note);
  return slot;
}

/** A slider for the stop or the weight. */
function shareRow(place, name) {
  const row = make("label", { className: "ip-share" });
  row.title = say(`ip.${name}.help`);
  const slider = make("input", { id: `ip-${name}-${place + 1}` });
  const most = name === "weight" ? imagePrompts.facts.weight : 1;
  Object.assign(slider, { type: "range", min: 0, max: most, step: 0.01 });
  slider.setAttribute("aria-label", say(`ip.${name}.of`, { number: place + 1 }));
  slider.addEventListener("input", () => imagePrompts.set(place, { [name]: slider.valueAsNumber }));
  row.append(make("span", { text: say(`ip.${name}`) }), slider, make("output"));
  return row;
}

function updateSlot(slot, { entry, place, sending, trouble }) {
  const words = slot.querySelector(".words");
  slot.classList.toggle("empty", !entry);
  slot.setAttribute("aria-busy", String(sending));
  setText(words, say(sending ? "ip.sending" : TOUCH.matches ? "ip.choose.short" : "ip.drop"));
  const label = say(entry ? "ip.replace" : "ip.choose", { number: place + 1 });
  const picture = slot.querySelector(".ip-picture");
  if (picture.title !== label) picture.title = label;
  picture.setAttribute("aria-label", label);
  const image = slot.querySelector("img");
  const url = entry ? `/api/inputs/${encodeURIComponent(entry.image)}?thumb=1` : "";
  if ((image.getAttribute("src") ?? "") !== url) {
    slot.narrow = slot.lost = false;
    if (url) image.src = url;
    else image.removeAttribute("src");
  }
  if (entry) {
    updateType(slot.querySelector("select"), entry.type);
    const more = slot.querySelector(".ip-adjust");
    setText(more, say(`ip.adjust.${entry.type}`));
    more.classList.toggle("on", Boolean(entry.region || entry.start || entry.mode === "decoupled"));
    const told = say(`ip.adjust.${entry.type}.of`, { number: place + 1 });
    more.title = entry.region ? `${told}; ${say("region.painted")}` : told;
    more.setAttribute("aria-label", more.title);
    for (const name of SHARES) {
      const slider = slot.querySelector(`#ip-${name}-${place + 1}`);
      const value = imagePrompts.share(entry, name);
      if (name === "stop") slider.min = entry.start ?? 0;
      slider.value = value;
      setText(slider.nextElementSibling, Number(value).toFixed(2));
    }
  }
  drawNote(slot, entry, trouble);
}

function updateType(choice, type) {
  const { facts, missing } = imagePrompts;
  const offered = facts.types
    .map((known) => known.type)
    .filter((name) => name === type || ALWAYS_OFFERED.has(name) || missing?.[name]?.length === 0);
  if (choice.dataset.offered !== offered.join()) {
    choice.dataset.offered = offered.join();
    choice.replaceChildren(...offered.map((name) => new Option(say(`ip.type.${name}`), name)));
  }
  choice.value = type;
  choice.title = say(`ip.help.${type}`);
}

/** Below the slot: what is wrong with a picture, or which files its type still needs. */
function drawNote(slot, entry, trouble) {
  const missing = entry && imagePrompts.missing ? imagePrompts.missing[entry.type] : []; // null: none would fit
  const sentence =
    trouble || (entry && slot.lost && say("ip.lost")) || (entry && slot.narrow && isStructure(entry.type) && say("ip.narrow")) || "";
  const note = slot.querySelector(".ip-note");
  const optional = (entry && imagePrompts.optional[entry.type]) ?? [];
  const key = JSON.stringify([sentence, missing, optional]);
  if (note.dataset.key === key) return;
  note.dataset.key = key;
  const bad = sentence !== say("ip.narrow");
  const parts = sentence ? [make("p", { text: sentence, className: bad ? "bad trouble" : "" })] : [];
  const lacks = !missing || missing.length > 0;
  if (lacks) {
    parts.push(make("p", { text: say(missing ? "ip.missing" : "ip.none"), className: "bad" }));
    parts.push(...(missing ?? []).map(neededFile));
  }
  if (optional.length) {
    parts.push(make("p", { text: say("ip.optional") }), ...optional.map(neededFile));
  }
  if (lacks || optional.length) {
    const again = make("button", { className: "text-button", text: say("ip.look.again") });
    again.addEventListener("click", () => imagePrompts.load());
    parts.push(again);
  }
  note.replaceChildren(...parts);
}

function neededFile(needed) {
  const { folder, size } = needed;
  const facts = say("ip.into", { size: inBytes(size), folder: `models/${folder}` });
  const row = fetchable("div", needed, facts);
  row.classList.add("needed");
  return row;
}
