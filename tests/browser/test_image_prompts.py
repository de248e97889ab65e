"""Image prompts as a visitor uses them: dropped, pasted, chosen, weighed, kept, sent, refused."""

import base64
import hashlib
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from modules.gallery.inputs import InputStore
from tests.browser.conftest import SCREENSHOTS, generate, ready, task_of, wait_state
from tests.support.drawn_face import draw_face
from tests.support.scene_worker import Size, landscape

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
TEXT = b"this is no picture"


def encoded(image, image_format="PNG", **options):
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def hills(seed=3, size=(300, 200)):
    return encoded(Image.fromarray(landscape(Size(*size), seed)))


def name_of(data):
    return hashlib.sha256(data).hexdigest()


def photograph(tab, name):
    """For people to look at; everything has faded in by then."""
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.ip-picture img[src]')].every(i => i.complete)"
    )
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def transfer(tab, files):
    """What a dragged or copied group of (name, type, bytes) carries."""
    packed = [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files]
    return tab.evaluate_handle(
        """async (files) => {
            const carried = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                carried.items.add(new File([bytes], name, { type }));
            }
            return carried;
        }""",
        packed,
    )


def drop(tab, where, *files):
    carried = transfer(tab, files)
    tab.dispatch_event(where, "dragover", {"dataTransfer": carried})
    tab.dispatch_event(where, "drop", {"dataTransfer": carried})


def paste(tab, *files):
    tab.evaluate(
        """(clipboardData) => document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        transfer(tab, files),
    )


def choose(tab, number, *files):
    with tab.expect_file_chooser() as chooser:
        tab.locator(f"#ip-slot-{number} .ip-picture").click()
    chooser.value.set_files(
        [{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files]
    )


def filled(tab, count):
    """Wait until so many slots show their pictures."""
    tab.wait_for_function(
        """(count) => {
            const shown = [...document.querySelectorAll(".ip-slot:not(.empty) img")];
            return shown.length === count && shown.every((img) => img.complete && img.naturalWidth);
        }""",
        arg=count,
    )


def kept(tab, count):
    """Wait until the form holds so many image prompts for a reload."""
    tab.wait_for_function(
        """(count) => {
            const form = JSON.parse(sessionStorage["easel.form"] ?? "{}");
            return JSON.parse(form.image_prompts ?? "[]").length === count;
        }""",
        arg=count,
    )


def slide(tab, slider, value):
    tab.locator(slider).fill(str(value))


def sent(server, tab):
    """Press Generate: the request that arrives."""
    before = tab.evaluate("location.hash")
    generate(tab, "quick hills")
    tab.wait_for_function("(before) => location.hash !== before", arg=before)
    return server.pool.view(task_of(tab)).spec


def open_drawer(tab):
    tab.locator("#input-image-toggle").click()
    tab.wait_for_selector("#ip-slot-4")


def test_pictures_are_dropped_pasted_chosen_weighed_kept_and_sent(visit, server):
    tab = visit().page
    open_drawer(tab)
    assert tab.locator(".ip-slot.empty").count() == 4
    photograph(tab, "image-prompts-empty-desktop")
    one, two, three = hills(1), hills(2, (200, 300)), hills(3)
    drop(tab, "#ip-slot-1", ("one.png", "image/png", one))
    filled(tab, 1)
    tab.locator("#prompt textarea").focus()
    paste(tab, ("two.png", "image/png", two))
    filled(tab, 2)
    choose(tab, 3, ("three.png", "image/png", three))
    filled(tab, 3)
    assert tab.locator("#ip-stop-1").input_value() == "0.5"
    assert tab.locator("#ip-weight-1").input_value() == "0.6"
    usual = {"canny": ("0.5", "1"), "cpds": ("0.5", "1"), "face": ("0.9", "0.75")}
    for kind, (stop, weight) in usual.items():
        tab.locator("#ip-type-2").select_option(kind)
        assert tab.locator("#ip-stop-2").input_value() == stop
        assert tab.locator("#ip-weight-2").input_value() == weight
    slide(tab, "#ip-stop-1", 0.8)
    slide(tab, "#ip-weight-1", 1.25)
    assert tab.locator("#ip-slot-1 output").all_inner_texts() == ["0.80", "1.25"]
    tab.wait_for_selector("#make:has-text('3 image prompts')")
    assert tab.locator("#input-image-count").inner_text() == "3"
    kept(tab, 3)
    photograph(tab, "image-prompts-desktop")

    tab.reload()
    ready(tab)
    filled(tab, 3)
    assert tab.locator("#ip-type-2").input_value() == "face"
    tab.locator("#ip-slot-3 .ip-remove").click()
    filled(tab, 2)
    first, second = sent(server, tab).image_prompts
    assert (first.image, first.type, first.stop, first.weight) == (
        name_of(one),
        "image_prompt",
        0.8,
        1.25,
    )
    assert (second.image, second.type, second.stops_at, second.weighs) == (
        name_of(two),
        "face",
        0.9,
        0.75,
    )


def test_the_keyboard_reaches_everything(visit):
    tab = visit().page
    tab.locator("#input-image-toggle").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#ip-slot-1")
    drop(tab, "#stage", ("a.png", "image/png", hills()))  # anywhere on the page
    filled(tab, 1)
    tab.locator("#ip-slot-1 .ip-picture").focus()
    reached = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert reached == [
        "ip-adjust text-button",
        "ip-remove",
        "ip-type-1",
        "ip-stop-1",
        "ip-weight-1",
    ]
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#ip-weight-1").input_value() == "0.61"
    tab.keyboard.press("Escape")
    assert tab.locator("#input-image").is_hidden()
    assert tab.evaluate("document.activeElement.id") == "input-image-toggle"


def test_more_slots_are_added_up_to_the_limit(visit):
    tab = visit().page
    open_drawer(tab)
    for number in range(5, 17):
        tab.locator("#ip-add").click()
        assert tab.evaluate("document.activeElement.parentElement.id") == f"ip-slot-{number}"
    assert tab.locator("#ip-add").is_disabled()
    same = hills()
    files = [(f"{n}.png", "image/png", same) for n in range(18)]
    drop(tab, "#ip-slot-1", *files)
    filled(tab, 16)
    assert "16 image prompts at most" in tab.locator("#ip-hint").inner_text()
    tab.locator("#ip-slot-16 .ip-remove").click()
    filled(tab, 15)


def vast():
    """A PNG of 30,000 × 30,000 white pixels, in a few kB."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * 3_750
    data = b"".join(packer.compress(row) for _ in range(30_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_bad_pictures_get_a_sentence_and_cost_nothing(visit):
    window = visit()
    window.forgive = "status of 422"
    tab = window.page
    open_drawer(tab)
    good = hills()
    drop(
        tab,
        "#ip-slot-1",
        ("good.png", "image/png", good),
        ("notes.txt", "text/plain", TEXT),
        ("vast.png", "image/png", vast()),
    )
    tab.wait_for_selector("#ip-slot-3 .trouble")
    assert tab.locator("#ip-slot-2 .ip-note").inner_text() == (
        "notes.txt: The file is no picture that can be read; choose a PNG, JPEG, WebP, GIF or BMP."
    )
    assert "vast.png: The picture has more than the 80 megapixels" in (
        tab.locator("#ip-slot-3 .ip-note").inner_text()
    )
    filled(tab, 1)
    photograph(tab, "image-prompts-refused-desktop")

    choose(tab, 1, ("cut.png", "image/png", good[:300]))  # the old picture stays
    tab.wait_for_selector("#ip-slot-1 .trouble")
    assert "cut.png" in tab.locator("#ip-slot-1 .ip-note").inner_text()
    filled(tab, 1)
    assert tab.locator(".trouble").count() == tab.locator("#ip-slot-1 .trouble").count() == 1

    drop(tab, "#prompt", ("b.png", "image/png", hills(4)))
    filled(tab, 2)
    assert tab.locator(".trouble").count() == 0


def test_a_file_that_is_too_large_is_not_sent(visit):
    tab = visit().page
    open_drawer(tab)
    tab.evaluate(
        """() => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(26 * 2 ** 20)], "big.png"));
            const event = new DragEvent("drop", { dataTransfer: carried, bubbles: true });
            document.querySelector("#ip-slot-1").dispatchEvent(event);
        }"""
    )
    tab.wait_for_selector("#ip-slot-1 .trouble")
    assert "big.png: The picture has more than the 25 MB" in tab.locator("#ip-slot-1").inner_text()


def test_turned_and_narrow_pictures_are_shown_as_they_are_seen(visit):
    tab = visit().page
    open_drawer(tab)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = encoded(Image.fromarray(landscape(Size(300, 100), 5)), "JPEG", exif=turned)
    narrow = encoded(Image.new("RGB", (1, 5000), "teal"))
    drop(tab, "#ip-slot-1", ("t.jpg", "image/jpeg", upright), ("n.png", "image/png", narrow))
    filled(tab, 2)
    size = "document.querySelector('#ip-slot-%d img')"
    assert tab.evaluate(f"[{size % 1}.naturalWidth, {size % 1}.naturalHeight]") == [100, 300]
    tab.wait_for_selector("#ip-slot-2 .ip-note:has-text('Only the middle')")
    photograph(tab, "image-prompts-odd-desktop")


def test_missing_files_are_named_where_they_are_needed_and_block_nothing(visit, server):
    tab = visit().page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()))
    tab.wait_for_selector("#ip-slot-1 .needed")
    assert tab.locator("#ip-slot-1 .needed").all_inner_texts() == [
        "ip-adapter-plus_sdxl_vit-h.bin 1.0 GB, into models/ipadapter",
        "clip_vision_vit_h.safetensors 1.3 GB, into models/clip_vision",
    ]
    assert tab.locator("#ip-type-1 option").all_inner_texts() == [
        *("Image Prompt", "PyraCanny", "CPDS", "FaceSwap")
    ]
    photograph(tab, "image-prompts-missing-desktop")
    folder = server.settings.models_path / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"my-{kind}.safetensors" for kind in ("canny", "depth")]
    try:
        for file in files:
            file.write_bytes(b"x")
        tab.locator("#ip-slot-1 .ip-note button").click()
        tab.wait_for_selector("#ip-type-1 option[value=depth]", state="attached")
        tab.locator("#ip-type-1").select_option("canny")
        assert tab.locator("#ip-slot-1 .ip-note").inner_text() == ""
    finally:
        for file in files:
            file.unlink()
    tab.locator("#ip-slot-1 .ip-remove").click()
    assert sent(server, tab).image_prompts == ()


def test_a_picture_that_is_gone_is_said_and_the_rest_is_sent(visit, server):
    window = visit()
    window.forgive = "status of 422"
    tab = window.page
    open_drawer(tab)
    gone = hills(77)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", gone))
    filled(tab, 1)
    kept(tab, 1)
    digest = name_of(gone)
    (server.settings.inputs_path / digest[:2] / digest).unlink()
    generate(tab, "quick hills")
    tab.wait_for_selector("#error:not([hidden])")
    assert "The picture of image prompt 1 is not stored here" in (
        tab.locator("#error-text").inner_text()
    )
    assert tab.locator("#ip-slot-1").is_visible()


def test_a_finished_picture_becomes_an_image_prompt(visit, server):
    tab = visit().page
    generate(tab, "quick hills", pictures=1, seed=6)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    painted = server.store.image(task_of(tab), 0).sha256
    tab.locator("#stage").hover()
    photograph(tab, "picture-bar-desktop")
    tab.locator("#use-image").click()
    filled(tab, 1)
    tab.locator("#stage img.result").click()
    photograph(tab, "viewer-desktop")
    tab.locator("#viewer .use-image").click()
    filled(tab, 2)
    assert tab.locator("#viewer").is_hidden()
    carried = transfer(tab, [])  # as a browser fills it for a picture of the page itself
    tab.dispatch_event("#strip .place img", "dragstart", {"dataTransfer": carried})
    tab.dispatch_event("#ip-slot-3", "dragover", {"dataTransfer": carried})
    tab.wait_for_selector("#drop-hint", state="visible")
    tab.dispatch_event("#ip-slot-3", "drop", {"dataTransfer": carried})
    filled(tab, 3)
    tab.wait_for_selector("#drop-hint", state="hidden")
    entries = json.loads(tab.locator("#image-prompts-value :is(textarea, input)").input_value())
    assert [entry["image"] for entry in entries] == [painted] * 3


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


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_region_is_painted_with_a_finger(visit, theme):
    tab = visit(**PHONE, color_scheme=theme).page
    open_drawer(tab)
    choose(tab, 1, ("a.png", "image/png", hills()))
    filled(tab, 1)
    tab.locator("#ip-slot-1 .ip-adjust").tap()
    box = tab.locator("#adjust canvas").bounding_box()
    tab.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    painted = "document.querySelector('#adjust canvas').getContext('2d')"
    tab.wait_for_function(f"() => {painted}.getImageData(128, 199, 1, 1).data[3] === 255")
    assert tab.evaluate(f"{painted}.getImageData(384, 199, 1, 1).data[3]") == 0
    photograph(tab, f"image-prompt-region-phone-{theme}")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#adjust :is(button, input[type=range])')]"
        ".filter(b => b.offsetWidth)"
        ".map(b => b.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("#adjust-done").tap()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_drawer_fits_on_a_phone(visit, theme):
    window = visit(**PHONE, color_scheme=theme)
    window.forgive = "status of 422"
    tab = window.page
    open_drawer(tab)
    photograph(tab, f"image-prompts-empty-phone-{theme}")
    face = encoded(Image.fromarray(draw_face()))
    choose(tab, 1, ("a.png", "image/png", hills()), ("b.png", "image/png", face))
    filled(tab, 2)
    choose(tab, 3, ("notes.txt", "text/plain", TEXT))
    tab.wait_for_selector("#ip-slot-3 .trouble")
    photograph(tab, f"image-prompts-phone-{theme}")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#input-image :is(button, select, input[type=range], a), "
        "#input-image-toggle')].filter(b => b.offsetWidth)"
        ".map(b => b.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("#input-image-close").click()
    assert tab.locator("#input-image").is_hidden()
    assert tab.locator("#generate").is_visible()
