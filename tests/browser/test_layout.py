"""Sizes, reach and contrast: nothing jumps, nothing is cut off, nothing is too small or faint."""

import pytest

from tests.browser.conftest import SCREENSHOTS, generate, ready, wait_state

MOVING = {"reduced_motion": "no-preference"}  # what moves for most visitors moves here
DESKTOP = {"viewport": {"width": 1400, "height": 900}, **MOVING}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, **MOVING}
# What user scripts and assistive tools hold on to. All of it is built.
IDS = """
prompt generate skip stop stage progress strip gallery queue preset performance size image-number
negative-prompt seed styles checkpoint lora-1 lora-2 guidance sampler scheduler advanced-toggle
input-image-toggle ip-slot-1 ip-slot-2 ip-type-1 ip-stop-1 ip-weight-1 error downloads downloading
no-model-downloads models-downloads
"""
STILL = ("#stage", "#progress", "#strip", "#prompt", "#generate", "#stop", "#toggles")

CONTRAST = """
(selectors) => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const selector of selectors) {
    const found = [...document.querySelectorAll(selector)].filter((e) => e.offsetParent);
    if (!found.length) faint.push(`${selector} is not there`);
    for (const element of found) {
      const ink = light(numbers(getComputedStyle(element).color));
      const paper = light(ground(element));
      const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      if (ratio < 4.5) faint.push(`${selector}: ${ratio.toFixed(2)}`);
    }
  }
  return faint;
}
"""

SMALL_TARGETS = """
() => [...document.querySelectorAll(
  "button, a, input, textarea, label:has(input), [role=tab], #frame img.result")]
  .filter((e) => !e.disabled && e.checkVisibility({ visibilityProperty: true })
    && e.offsetWidth > 1 && !e.closest("[inert]") && !e.matches("label input, .skip-link"))
  .map((e) => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.width < 44 || box.height < 44)
  .map(([e, box]) => `${e.tagName} ${e.id} ${e.className} ${box.width}×${box.height}`)
"""


def boxes(tab):
    return {selector: tab.locator(selector).bounding_box() for selector in STILL}


def overflow(tab):
    """Pixels by which the page, the sheet's panels or the stage are wider than their room."""
    return tab.evaluate(
        """() => Math.max(...["html", "body", "#main", "#side", "#stage", "[id^=panel-]"]
          .flatMap((s) => [...document.querySelectorAll(s)])
          .map((e) => e.scrollWidth - e.clientWidth))"""
    )


def require_on_screen_together(tab, found):
    """Picture, prompt and Generate are in sight without scrolling."""
    assert found["#stage"]["height"] > 500
    for selector in ("#stage", "#prompt", "#generate"):
        box = found[selector]
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900
    assert tab.evaluate("document.scrollingElement.scrollHeight") <= 900


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_moves_between_idle_running_queued_done_and_failed(visit, device):
    tab = visit(**device).page
    idle = boxes(tab)
    if device == DESKTOP:
        require_on_screen_together(tab, idle)
    ground = "getComputedStyle(document.querySelector('#progress .track')).backgroundColor"
    assert tab.evaluate(ground) == "rgba(0, 0, 0, 0)"  # an empty bar would look like a rule
    generate(tab, "hills holds")
    tab.wait_for_selector("#stage img.preview")
    assert boxes(tab) == idle
    generate(tab, "this fails")
    tab.wait_for_selector("#queue .chip")
    assert boxes(tab) == idle
    tab.locator("#stop").click()
    wait_state(tab, "failed")
    assert boxes(tab) == idle
    generate(tab, "quick hills")
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    assert boxes(tab) == idle


def test_nothing_scrolls_sideways_and_sizes_have_room_in_their_tiles(visit):
    tab = visit(viewport={"width": 320, "height": 844}).page
    rooms = """() => [...document.querySelectorAll("#size label")]
      .filter((tile) => tile.offsetParent)
      .map((tile) => [tile.getBoundingClientRect(), tile.lastElementChild])
      .map(([tile, text]) => tile.right - text.getBoundingClientRect().right)"""
    least = {390: 6, 1024: 4, 1400: 6}
    for width in (320, 390, 768, 1024, 1400, 2560):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.keyboard.press("Escape")  # a sheet that is open goes
        assert tab.locator("#advanced-toggle").is_checked() == (width >= 1024)
        assert overflow(tab) <= 0, width
        tab.locator("#advanced-toggle").set_checked(True, force=True)
        for name in ("models", "advanced", "settings"):
            tab.locator(f"#tab-{name}").click()
            assert overflow(tab) <= 0, (width, name)
        if width in least:
            found = tab.evaluate(rooms)
            assert len(found) == 9
            assert min(found) >= least[width], width


def test_nothing_scrolls_sideways_with_a_long_prompt_and_error(visit):
    tab = visit(**PHONE).page
    generate(tab, "x" * 300 + " waits")
    wait_state(tab, "running", "loading")
    generate(tab, "y" * 300)
    tab.wait_for_selector("#queue .chip")
    assert overflow(tab) <= 0
    tab.locator("#queue .chip button").click()
    tab.locator("#stop").click()
    wait_state(tab, "stopped")
    generate(tab, "z" * 8193)
    tab.wait_for_selector("#error:not([hidden])")
    assert "8,193" in tab.locator("#error-text").inner_text()
    assert overflow(tab) <= 0


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_notices_can_be_read_in_full(visit, server, device):
    """A warning and a link that somebody is to copy; no pointer hovers over a phone."""
    warning = "This page is open to others without a login (--no-auth)."
    link = f"Public link, for up to a week: https://{'0123456789abcdef' * 2}.gradio.live"
    server.context.notices.put("test", warning)
    server.context.notices.put("test link", f"{link} {warning} {warning}")
    tab = visit(**device).page
    try:
        tab.locator("#notices", has_text=link).wait_for()
    finally:
        server.context.notices.drop("test")
        server.context.notices.drop("test link")
    room = "(e) => [e.scrollHeight - e.clientHeight, e.scrollWidth - e.clientWidth, e.clientWidth]"
    tall, wide, width = tab.locator("#notices").evaluate(room)
    assert (tall, wide) == (0, 0)
    assert width > 300
    assert overflow(tab) <= 0
    last = tab.locator("#generate").bounding_box()
    assert last["y"] + last["height"] <= device["viewport"]["height"]
    SCREENSHOTS.mkdir(exist_ok=True)
    name = "phone" if device == PHONE else "desktop"
    tab.screenshot(path=SCREENSHOTS / f"notices-{name}.png", animations="disabled")


def test_the_sheet_comes_from_below_and_goes_away_and_targets_are_large_enough_for_a_thumb(visit):
    tab = visit(**PHONE).page
    assert tab.locator("#side").is_hidden()
    assert tab.locator("#generate").bounding_box()["width"] > 350
    tab.locator("#advanced-label").click()
    tab.wait_for_selector("#preset", state="visible")
    tab.wait_for_function(  # it has come all the way
        "() => document.querySelector('#side').getAnimations().length === 0"
    )
    box = tab.locator("#side").bounding_box()
    assert box["y"] > 100
    assert box["y"] + box["height"] == 844
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#side", state="hidden")
    tab.locator("#advanced-label").click()
    tab.locator("#backdrop").click(position={"x": 100, "y": 40})
    tab.wait_for_selector("#side", state="hidden")
    generate(tab, "quick hills")
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    assert tab.evaluate(SMALL_TARGETS) == []
    tab.locator("#advanced-label").click()
    for name in ("settings", "models", "advanced"):
        tab.locator(f"#tab-{name}").click()
        assert tab.evaluate(SMALL_TARGETS) == []


def faint(tab, selectors):
    """What of `selectors` is hard to read in the one theme or the other."""
    found = []
    for theme in ("light", "dark"):
        tab.emulate_media(color_scheme=theme)
        tab.wait_for_selector(f"html[data-theme={theme}]")
        found += [f"{theme}: {words}" for words in tab.evaluate(CONTRAST, selectors)]
    return found


def test_words_stand_out_in_both_themes(visit):
    # Colours change at once, so that none is measured on its way.
    tab = visit(reduced_motion="reduce").page
    frame = [".brand", "#idle h2", "#idle p", "#idle button", "#generate span", "#advanced-label"]
    side = ["#tabs button", "[data-testid=block-info]", "#size label span", "#make span"]
    fields = ["#preset input", "#performance label span", "#more-sizes"]
    assert faint(tab, [*frame, *side, *fields]) == []
    tab.locator("#tab-models").click()
    assert faint(tab, [".hint p", ".hint a", ".hint small", "#refresh"]) == []
    generate(tab, "this fails")
    wait_state(tab, "failed")
    assert faint(tab, ["#error-text", "#waiting h2"]) == []
    generate(tab, "hills holds")
    tab.wait_for_selector("#stage img.preview")
    assert faint(tab, ["#progress-words", "#skip span", "#stop span", "#clock"]) == []
    tab.locator("#stop").click()
    wait_state(tab, "stopped")


def test_controls_have_ids_names_and_keys(visit):
    tab = visit().page
    tab.wait_for_selector("#lora-1", state="attached")
    count = "(ids) => ids.map((id) => [id, document.querySelectorAll(`[id=${id}]`).length])"
    assert [found for found in tab.evaluate(count, IDS.split()) if found[1] != 1] == []
    assert tab.locator("#gallery #strip").count() == 1
    for role, name in [
        ("textbox", "Prompt"),
        ("button", "Generate"),
        ("tab", "Settings"),
        ("checkbox", "Advanced"),
        ("textbox", "Negative prompt"),
        ("progressbar", "Progress"),
        ("combobox", "Preset"),
    ]:
        assert tab.get_by_role(role, name=name, exact=True).count() == 1, name
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("button")].filter((b) =>
          !(b.getAttribute("aria-label") || b.textContent.trim())).map((b) => b.outerHTML)"""
    )
    assert nameless == []
    tab.locator("#seed-random input").focus()
    tip = tab.locator("#seed-random").get_attribute("title")
    assert tip.startswith("Draws a new seed")
    assert tab.locator("#seed-random input").get_attribute("aria-description") == tip
    tab.locator("#generate").hover()
    assert tab.locator("#generate").get_attribute("title").startswith("Paints what")
    tab.locator("#tab-settings").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#tab-styles").get_attribute("aria-selected") == "true"
    assert tab.locator("#style-search").is_visible()


def test_no_fading_where_motion_is_unwanted(visit):
    tab = visit(reduced_motion="reduce").page
    tab.evaluate(
        """() => new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) =>
          n.nodeName === "CANVAS" && (window.faded = true))))
          .observe(document.querySelector("#frame"), {childList: true})"""
    )
    generate(tab, "quick hills", pictures=2)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    assert not tab.evaluate("window.faded")
    generate(tab, "hills waits")  # the bar of unknown length stands, but can be seen
    tab.wait_for_selector("#progress[data-unknown=true]")
    bar, track = (tab.locator(f"#progress {part}").bounding_box() for part in ("#bar", ".track"))
    assert bar["width"] == track["width"] > 100
    tab.locator("#stop").click()
    wait_state(tab, "stopped")


COUNTED = """{
  const nextFrame = window.requestAnimationFrame.bind(window);
  window.framesDrawn = 0;
  window.nextFrame = () => new Promise(nextFrame);
  window.requestAnimationFrame = (callback) =>
    nextFrame((now) => { window.framesDrawn += 1; callback(now); });
}"""


def test_a_page_at_rest_asks_for_few_frames_and_wakes_at_a_touch(visit):
    """Gradio's sign of loading asks for a hundred a second, also when it has gone."""
    tab = visit(viewport={"width": 1400, "height": 880}, **MOVING).page
    tab.context.add_init_script(COUNTED)
    tab.reload()
    ready(tab)
    tab.wait_for_timeout(500)  # what was asked for while it loaded
    before = tab.evaluate("framesDrawn")
    tab.wait_for_timeout(2000)
    assert tab.evaluate("framesDrawn") - before < 40
    drawn = """async (touch) => {
      let drawn = false;
      const id = requestAnimationFrame(() => { drawn = true; });
      if (touch === "cancel") cancelAnimationFrame(id);
      if (touch) dispatchEvent(new Event("pointermove"));
      await nextFrame();
      await nextFrame();
      return drawn;
    }"""
    assert not tab.evaluate(drawn, "cancel")
    tab.wait_for_timeout(900)  # it rests again
    assert tab.evaluate(drawn, "move")
