"""An image prompt large: its map or face before anything is painted, and its painted region."""

import json

from PIL import Image

from modules.gallery.inputs import InputStore
from tests.browser.conftest import generate, ready, task_of, wait_state
from tests.browser.pictures import (
    PHONE,
    choose,
    drop,
    encoded,
    filled,
    hills,
    name_of,
    open_drawer,
    photograph,
    photograph_in_both_themes,
    sent,
    slide,
)
from tests.support.drawn_face import draw_face


def mapped(tab):
    """Wait until the large view shows its picture; gives the picture's address."""
    tab.wait_for_selector("#adjust-frame[data-ready=true]")
    tab.wait_for_function("() => document.querySelector('#adjust-image').complete")
    return tab.locator("#adjust-image").get_attribute("src")


def test_the_map_is_shown_before_anything_is_painted(visit, server):
    tab = visit().page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()))
    filled(tab, 1)
    tab.locator("#ip-type-1").select_option("canny")
    tab.locator("#ip-slot-1 .ip-adjust").click()
    first = mapped(tab)
    assert "width=1152&height=896&canny_low=64&canny_high=128" in first
    size = "(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])(%s)"
    assert tab.evaluate(size % "document.querySelector('#adjust-image')") == [1152, 896]
    photograph(tab, "image-prompt-map-desktop")
    drop(tab, "#adjust", ("b.png", "image/png", hills(2)))  # is not opened in place of the page
    left = """() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["x"], "b.png", { type: "image/png" }));
        const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer });
        return document.querySelector("#adjust").dispatchEvent(event);
    }"""
    assert tab.evaluate(left) is False  # the browser is told to leave it
    assert tab.locator(".ip-slot:not(.empty)").count() == 1
    slide(tab, "#adjust-canny-low", 10)
    slide(tab, "#adjust-canny-high", 30)
    tab.wait_for_selector("#adjust-image[src*='canny_low=10&canny_high=30']")
    mapped(tab)
    tab.locator("#adjust-skip").check()
    tab.wait_for_selector("#adjust-image[src*='type=lineart']")
    mapped(tab)
    tab.locator("#adjust-skip").uncheck()
    tab.locator("[data-view=picture]").click()
    assert mapped(tab).endswith(name_of(hills()))
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.className").startswith("ip-adjust")
    (prompt,) = sent(server, tab).image_prompts
    assert (prompt.type, prompt.canny_low, prompt.canny_high) == ("canny", 10, 30)
    assert (prompt.skip_preprocess, prompt.region) == (False, None)


def test_the_face_is_shown_or_that_there_is_none(visit, server):
    window = visit()
    window.forgive = "status of 422"
    tab = window.page
    open_drawer(tab)
    face = encoded(Image.fromarray(draw_face()))
    drop(tab, "#ip-slot-1", ("f.png", "image/png", face), ("h.png", "image/png", hills()))
    filled(tab, 2)
    for number in (1, 2):
        tab.locator(f"#ip-type-{number}").select_option("face")
    tab.locator("#ip-slot-1 .ip-adjust").click()
    mapped(tab)
    photograph(tab, "image-prompt-face-desktop")
    tab.locator("#adjust-face").fill("2")
    tab.wait_for_selector("#adjust-note.bad:has-text('shows one face')")
    tab.locator("#adjust-done").click()
    tab.locator("#ip-slot-2 .ip-adjust").click()
    tab.wait_for_selector("#adjust-note.bad:has-text('No face was found')")
    photograph(tab, "image-prompt-no-face-desktop")
    tab.locator("#adjust-skip").check()
    mapped(tab)
    tab.locator("#adjust-done").click()
    first, second = sent(server, tab).image_prompts
    assert (first.face, second.skip_preprocess) == (2, True)


def test_with_another_type_a_picture_is_no_map_any_more(visit, server):
    tab = visit().page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()))
    filled(tab, 1)
    tab.locator("#ip-type-1").select_option("cpds")
    tab.locator("#ip-slot-1 .ip-adjust").click()
    mapped(tab)
    tab.locator("#adjust-skip").check()
    mapped(tab)
    tab.locator("#adjust-done").click()
    before = sent(server, tab)
    wait_state(tab, "done")
    tab.locator("#ip-type-1").select_option("canny")
    after = sent(server, tab)
    found = [(each.type, each.skip_preprocess) for s in (before, after) for each in s.image_prompts]
    assert found == [("cpds", True), ("canny", False)]


def test_where_it_counts_is_also_when_and_how(visit, server):
    tab = visit(**PHONE).page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()))
    filled(tab, 1)
    tab.locator("#ip-slot-1 .ip-adjust").click()
    assert float(tab.locator("#adjust-start").get_attribute("max")) == 0.5  # the usual stop
    slide(tab, "#adjust-start", 0.25)
    assert tab.locator(".adjust-field:has(#adjust-start) output").text_content() == "0.25"
    tab.locator("#adjust-decoupled").check()
    photograph(tab, "image-prompt-start-phone")
    tab.locator("#adjust-done").click()
    tab.wait_for_function("() => document.querySelector('#ip-stop-1').min === '0.25'")
    tab.locator("#ip-slot-1 .ip-adjust").click()
    assert tab.locator("#adjust-decoupled").is_checked()
    assert tab.locator("#adjust-start").input_value() == "0.25"
    tab.locator("#adjust-done").click()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")
    tab.locator("#input-image-close").click()
    (prompt,) = sent(server, tab).image_prompts
    assert (prompt.start, prompt.mode) == (0.25, "decoupled")
    wait_state(tab, "done")
    open_drawer(tab)
    tab.locator("#ip-type-1").select_option("cpds")  # it has no such choice
    tab.locator("#ip-slot-1 .ip-adjust").click()
    assert tab.locator("#adjust-decoupled").count() == 0
    tab.locator("#adjust-done").click()
    tab.locator("#input-image-close").click()
    (prompt,) = sent(server, tab).image_prompts
    assert (prompt.start, prompt.mode) == (0.0, "joint")


def region_of(server, prompt):
    """The stored region as greys in 0 to 255, (H, W)."""
    return InputStore(server.settings.inputs_path).read(prompt.region)[..., 0]


def test_a_region_is_painted_kept_cleared_and_sent(visit, server):
    tab = visit().page
    generate(tab, "quick hills", pictures=1, seed=9)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    open_drawer(tab)
    sky, house = hills(1), hills(2)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", sky), ("b.png", "image/png", house))
    filled(tab, 2)
    tab.locator("#ip-slot-1 .ip-adjust").click()
    mapped(tab)  # the last picture lies under the paint
    box = tab.locator("#adjust canvas").bounding_box()
    assert abs(box["width"] / box["height"] - 1152 / 896) < 0.01

    def stroke(y):
        tab.mouse.move(box["x"] + 4, box["y"] + y * box["height"])
        tab.mouse.down()
        tab.mouse.move(box["x"] + box["width"] - 4, box["y"] + y * box["height"], steps=4)
        tab.mouse.up()

    stroke(0.12)
    photograph(tab, "image-prompt-region-desktop")
    tab.locator("#adjust-done").click()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")
    tab.locator("#ip-slot-2 .ip-adjust").click()
    tab.locator("#region-tools button:text-is('Bottom half')").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#ip-slot-2 .ip-adjust.on")
    tab.wait_for_function("() => sessionStorage['easel.form'].split('region').length > 2")

    tab.reload()
    ready(tab)
    tab.wait_for_selector("#ip-slot-2 .ip-adjust.on")
    tab.locator("#ip-slot-1 .ip-adjust").click()
    painted = "document.querySelector('#adjust canvas').getContext('2d')"
    alpha = f"() => {painted}.getImageData(256, 48, 1, 1).data[3] === 255"
    tab.wait_for_function(alpha)  # what was painted is there again
    tab.locator("#region-erase").click()
    tab.locator("#region-tools button:text-is('Left half')").click()
    tab.locator("#adjust-done").click()
    first, second = sent(server, tab).image_prompts
    upper, lower = region_of(server, first), region_of(server, second)
    height, width = upper.shape
    assert upper[height // 8, width * 3 // 4] == 255
    assert upper[height // 8, width // 4] == 0
    assert upper[height // 2 :].max() == 0
    assert lower[: height // 2 - 1].max() == 0
    assert lower[height // 2 + 1 :].min() == 255

    tab.locator("#ip-slot-1 .ip-adjust").click()
    tab.locator("#region-clear").click()
    tab.locator("#adjust-done").click()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust:not(.on)")
    tab.locator("#ip-type-2").select_option("cpds")  # a structure counts everywhere
    tab.wait_for_selector("#ip-slot-2 .ip-adjust:not(.on)")
    entries = json.loads(tab.locator("#image-prompts-value :is(textarea, input)").input_value())
    assert [entry["region"] for entry in entries] == [None, None]


def test_a_region_that_comes_late_stays_with_its_picture(visit, server):
    tab = visit().page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()), ("b.png", "image/png", hills(2)))
    filled(tab, 2)
    tab.locator("#ip-slot-1 .ip-adjust").click()
    tab.locator("#region-tools button", has_text="Top half").click()
    tab.locator("#adjust-done").click()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")
    entries = json.loads(tab.locator("#image-prompts-value :is(textarea, input)").input_value())
    stored, held = entries[0]["region"], []

    def hold(route):
        if stored in route.request.url:
            held.append(route)
        else:
            route.continue_()

    tab.route("**/api/inputs/*", hold)
    tab.locator("#ip-slot-1 .ip-adjust").click()
    tab.wait_for_selector("canvas.region[aria-busy=true]")
    tab.locator("#region-tools button", has_text="Left half").click()  # not before it is there
    tab.keyboard.press("Escape")
    tab.locator("#ip-slot-2 .ip-adjust").click()
    address = held[0].request.url
    with tab.expect_response(address):
        held[0].continue_()
    tab.unroute("**/api/inputs/*")
    later = "async (url) => { const image = new Image(); image.src = url; await image.decode(); }"
    tab.evaluate(later, address)  # decoded after the first one
    painted = """() => { const { width, height } = document.querySelector("canvas.region");
        const pen = document.querySelector("canvas.region").getContext("2d");
        return pen.getImageData(0, 0, width, height).data.some(Boolean); }"""
    assert not tab.evaluate(painted)
    tab.keyboard.press("Escape")
    generate(tab, "quick hills", pictures=1)
    wait_state(tab, "done")
    first, second = server.pool.view(task_of(tab)).spec.image_prompts
    assert (first.region, second.region) == (stored, None)


def test_a_region_is_painted_with_a_finger(visit):
    tab = visit(**PHONE).page
    open_drawer(tab)
    choose(tab, 1, ("a.png", "image/png", hills()))
    filled(tab, 1)
    tab.locator("#ip-slot-1 .ip-adjust").tap()
    box = tab.locator("#adjust canvas").bounding_box()
    tab.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    painted = "document.querySelector('#adjust canvas').getContext('2d')"
    tab.wait_for_function(f"() => {painted}.getImageData(128, 199, 1, 1).data[3] === 255")
    assert tab.evaluate(f"{painted}.getImageData(384, 199, 1, 1).data[3]") == 0
    buttons = "#adjust :is(button, input[type=range])"
    photograph_in_both_themes(tab, "image-prompt-region-phone", room=buttons)
    tab.locator("#adjust-done").tap()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")
