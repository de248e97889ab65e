// The frame around it all: side column or sheet, tabs, theme, sizes, what is polled.

const USUAL_SIZES = 9; // as many as form.css shows at first
const WIDE = matchMedia("(min-width: 1024px)");

const sheet = {
  opener: null,
  get open() {
    return document.documentElement.dataset.side === "open";
  },
  /** Follow the window's width: a column that is remembered, or a sheet that starts closed. */
  fit() {
    this.set(WIDE.matches ? memory.get("side", localStorage) !== "closed" : false);
  },
  set(open) {
    document.documentElement.dataset.side = open ? "open" : "closed";
    if ($("advanced-toggle")) $("advanced-toggle").checked = open;
    if ($("side")) $("side").inert = !open || controls.isWaiting;
    const covers = open && !WIDE.matches;
    if ($("main")) $("main").inert = covers;
    show($("backdrop"), covers);
  },
  toggle(open) {
    this.set(open);
    if (WIDE.matches) memory.set("side", open ? "open" : "closed", localStorage);
    else if (open) $("sheet-close").focus();
    else $("advanced-toggle").focus();
  },
};

const tabs = {
  all: () => [...document.querySelectorAll("#tabs [role=tab]")],
  choose(tab, { focus = false } = {}) {
    for (const other of this.all()) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      const panel = $(other.getAttribute("aria-controls"));
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", other.id);
    }
    document.documentElement.dataset.tab = tab.id.replace("tab-", "");
    if (focus) tab.focus();
  },
  key(event) {
    const all = this.all();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !all.includes(event.target)) return;
    const place = (all.indexOf(event.target) + step + all.length) % all.length;
    this.choose(all[place], { focus: true });
  },
};

const theme = {
  system: matchMedia("(prefers-color-scheme: light)"),
  get dark() {
    const chosen = memory.get("theme", localStorage) || $("top")?.dataset.theme;
    return chosen ? chosen === "dark" : !this.system.matches;
  },
  apply() {
    const { dark } = this;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
    const button = $("theme-toggle");
    if (!button) return;
    button.innerHTML = window.easelIcons[dark ? "sun" : "moon"];
    button.title = say(dark ? "theme.light" : "theme.dark");
    button.setAttribute("aria-label", button.title);
  },
  toggle() {
    memory.set("theme", this.dark ? "light" : "dark", localStorage);
    this.apply();
  },
};

const poll = {
  async status() {
    const { turn } = downloads;
    try {
      page.status = await call("/api/status", { timeout: 5000 });
      page.contact(true);
      setText($("notices"), page.status.notices.join(" "));
      showUser(page.status.user);
      downloads.take(page.status.downloads, turn);
      const count = page.status.queue_length;
      setText($("queue-count"), count > 0 ? say("queue.count", { count }) : "");
      page.drawIdle();
    } catch (error) {
      if (error instanceof HttpError) page.contact(true);
      else await this.health(); // it looks at the models, which a disk that sleeps makes long
    }
  },
  /** Is anybody there? Sets page.offline. */
  async health() {
    try {
      await call("/healthz", { timeout: 4000 });
      page.contact(true);
    } catch (error) {
      page.contact(error instanceof HttpError);
    }
  },
  async queue() {
    if (!waiting.ids.length) return;
    await waiting.refresh();
    page.drawQueue();
  },
  async forever(job, pause) {
    for (;;) {
      if (!document.hidden) await job();
      await wait(pause());
    }
  },
};

/** Where a login is asked for: whose this page is, and the way out. */
function showUser(name) {
  show($("leave"), Boolean(name));
  $("log-out").title = say("log.out.name", { name });
  $("log-out").setAttribute("aria-label", $("log-out").title);
}

/** Give each size its little picture; nine usual ones are in sight until all are asked for. */
function drawSizes() {
  for (const label of document.querySelectorAll("#size label")) {
    const [width, height] = label.textContent.trim().split("×").map(Number);
    if (!width || !height) continue;
    const scale = 16 / Math.max(width, height);
    label.style.setProperty("--w", `${Math.round(width * scale)}px`);
    label.style.setProperty("--h", `${Math.round(height * scale)}px`);
    const input = label.querySelector("input");
    if (input.name !== "easel-size") input.name = "easel-size"; // one group for the arrow keys
  }
  sayMoreSizes();
}

function toggleSizes() {
  $("size").classList.toggle("all");
  sayMoreSizes();
}

function sayMoreSizes() {
  const all = $("size").classList.contains("all");
  const count = document.querySelectorAll("#size label").length;
  $("more-sizes").setAttribute("aria-expanded", String(all));
  setText($("more-sizes"), say(all ? "size.fewer" : "size.more", { count }));
  show($("more-sizes"), count > USUAL_SIZES);
}
