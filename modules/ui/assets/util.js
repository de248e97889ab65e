// Small helpers: elements, words, time, and the HTTP API.

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The text of `key` in the page's language, with {name} replaced. */
function say(key, values = {}) {
  const text = window.easelTexts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
}

/** 42 → "42 s", 75 → "1 min 15 s". */
function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return say("seconds", { count: whole });
  if (whole >= 3570) {
    const minutes = Math.round(whole / 60);
    return say("hours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
  }
  return say("minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
}

/** As duration, of what is to come: never "0 s". */
const forecastDuration = (seconds) => duration(Math.max(1, seconds));

/** 5200000000 → "5.2". */
const gigabytes = (bytes) => (bytes / 1e9).toFixed(1);

/** 75 → "1:15". */
function clockTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A new element. Words go in as text, never as markup. */
function make(tag, { id, className, text, icon, label, onclick } = {}) {
  const element = document.createElement(tag);
  if (tag === "button") element.type = "button";
  if (id) element.id = id;
  if (className) element.className = className;
  if (icon) element.innerHTML = window.easelIcons[icon]; // drawn by us, no foreign text
  if (text !== undefined) element.append(text);
  if (label) {
    element.title = label;
    element.setAttribute("aria-label", label);
  }
  if (onclick) element.addEventListener("click", onclick);
  return element;
}

function show(element, visible) {
  if (element && element.hidden === visible) element.hidden = !visible;
}

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

// Seeds go to 2^63, a number here only to 2^53: long ones are read and written as text.
const parse = (text) => JSON.parse(text.replace(/("seed":\s*)(\d{16,})/g, '$1"$2"'));
const unparse = (value) =>
  JSON.stringify(value, null, 2).replace(/("seed": )"(\d{16,})"/g, "$1$2");

class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** JSON of `path`. HttpError for a refusal, TypeError or AbortError when nobody answers. */
async function call(path, options = {}) {
  const limit = AbortSignal.timeout(options.timeout ?? 10000);
  const response = await fetch(path, { cache: "no-store", signal: limit, ...options });
  const text = await response.text();
  let body = null;
  try {
    body = parse(text);
  } catch {
    // not JSON: an error page of something in between
  }
  if (response.ok) return body;
  if (response.status === 401) location.reload(); // the login page takes over
  throw new HttpError(response.status, body?.error?.message ?? say("error.unknown"));
}

const post = (path) => call(path, { method: "POST" });

/** Make `container`'s children match `items`, moving and keeping elements by key. */
function reconcile(container, items, create, update) {
  const old = new Map([...container.children].map((child) => [child.dataset.key, child]));
  let place = container.firstElementChild;
  for (const item of items) {
    let child = old.get(item.key);
    if (!child) {
      child = create(item);
      child.dataset.key = item.key;
    }
    old.delete(item.key);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else container.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
}

/** Session storage that may be switched off. */
const memory = {
  get(key, store = sessionStorage) {
    try {
      return store.getItem(`easel.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value, store = sessionStorage) {
    try {
      if (value === null) store.removeItem(`easel.${key}`);
      else store.setItem(`easel.${key}`, value);
    } catch {
      // private mode: nothing is remembered
    }
  },
  /** Forget all of this tab. */
  clear() {
    try {
      sessionStorage.clear();
    } catch {
      // there is nothing
    }
  },
};
