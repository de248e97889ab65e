"""Image prompts as a visitor uses them: dropped, pasted, chosen, weighed, kept, sent, refused."""

import json
import struct
import zlib

from PIL import Image

from tests.browser.conftest import generate, ready, task_of, wait_state
from tests.browser.pictures import (
    PHONE,
    choose,
    drop,
    encoded,
    filled,
    hills,
    kept,
    name_of,
    open_drawer,
    paste,
    photograph,
    photograph_in_both_themes,
    sent,
    slide,
    transfer,
)
from tests.support.drawn_face import draw_face
from tests.support.scene_worker import Size, landscape

TEXT = b"this is no picture"


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

    sent = []
    tab.on("request", lambda request: sent.append((request.method, request.url)))
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
    assert not [url for method, url in sent if method == "POST" and "/api/inputs" in url]


def generate_during_upload(tab):
    """Press Generate while a picture is on its way; the route that holds it."""
    held = []
    tab.route("**/api/inputs", lambda route: held.append(route))  # noqa: PLW0108
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills(8)))
    tab.wait_for_selector("#ip-slot-1[aria-busy=true] .words:has-text('reading')")
    generate(tab, "quick hills", pictures=1)
    tab.wait_for_selector("#generate[aria-busy=true]")
    return held[0]


def test_generate_waits_for_a_picture_that_is_on_its_way(visit, server):
    tab = visit().page
    upload = generate_during_upload(tab)
    assert tab.evaluate("location.hash") == ""
    upload.continue_()
    tab.wait_for_function("() => location.hash")
    (prompt,) = server.pool.view(task_of(tab)).spec.image_prompts
    assert prompt.image == name_of(hills(8))


def test_nothing_is_sent_without_a_picture_that_was_refused_meanwhile(visit, server):
    window = visit()
    window.forgive = "422"
    tab = window.page
    generate_during_upload(tab).fulfill(
        status=422, json={"error": {"code": "E_SPEC", "message": "No room."}}
    )
    tab.wait_for_selector("#error:not([hidden])")
    assert "nothing was sent" in tab.locator("#error-text").inner_text()
    assert "No room." in tab.locator("#ip-slot-1").inner_text()
    assert tab.evaluate("location.hash") == ""
    tab.wait_for_selector("#generate:not([aria-busy])")
    generate(tab, "quick hills", pictures=1)  # the picture is given up
    wait_state(tab, "done")
    assert server.pool.view(task_of(tab)).spec.image_prompts == ()


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
    assert "narrow" not in tab.locator("#ip-slot-2 .ip-note").inner_text()  # it counts whole
    tab.locator("#ip-type-2").select_option("cpds")
    tab.wait_for_selector("#ip-slot-2 .ip-note:has-text('Only a part of so narrow')")
    photograph(tab, "image-prompts-odd-desktop")


def test_missing_files_are_named_where_they_are_needed_and_block_nothing(visit, server):
    tab = visit().page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", ("a.png", "image/png", hills()))
    tab.wait_for_selector("#ip-slot-1 .needed")
    assert tab.locator("#ip-slot-1 .needed > :is(a, small)").all_inner_texts() == [
        *("ip-adapter-plus_sdxl_vit-h.bin", "1.0 GB, into models/ipadapter"),
        *("clip_vision_vit_h.safetensors", "1.3 GB, into models/clip_vision"),
        *("fooocus_ip_negative.safetensors", "66 kB, into models/ipadapter"),
    ]
    tab.wait_for_selector("#ip-slot-1 .needed .fetch:has-text('Download (1.0 GB)')")
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
        tab.locator("#ip-slot-1 .ip-note .text-button").click()
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


def test_many_pictures_fit_on_a_small_screen(visit):
    tab = visit(viewport={"width": 1024, "height": 768}, color_scheme="light").page
    open_drawer(tab)
    drop(tab, "#ip-slot-1", *((f"{n}.png", "image/png", hills(n)) for n in range(6)))
    filled(tab, 6)
    tab.wait_for_selector("#ip-slot-6 .needed")
    photograph(tab, "image-prompts-small")
    assert tab.locator("#stage").bounding_box()["height"] >= 160
    drawer = tab.locator("#input-image").bounding_box()
    assert drawer["y"] + drawer["height"] <= 768
    tab.locator("#ip-weight-6").scroll_into_view_if_needed()
    slide(tab, "#ip-weight-6", 0.2)
    assert tab.locator("#ip-slot-6 output").nth(1).inner_text() == "0.20"


def test_the_drawer_fits_on_a_phone(visit):
    window = visit(**PHONE)
    window.forgive = "status of 422"
    tab = window.page
    open_drawer(tab)
    photograph_in_both_themes(tab, "image-prompts-empty-phone")
    face = encoded(Image.fromarray(draw_face()))
    choose(tab, 1, ("a.png", "image/png", hills()), ("b.png", "image/png", face))
    filled(tab, 2)
    choose(tab, 3, ("notes.txt", "text/plain", TEXT))
    tab.wait_for_selector("#ip-slot-3 .trouble")
    inside = "#input-image :is(button, select, input[type=range], a)"
    photograph_in_both_themes(tab, "image-prompts-phone", room=f"{inside}, #input-image-toggle")
    tab.locator("#input-image-close").click()
    assert tab.locator("#input-image").is_hidden()
    assert tab.locator("#generate").is_visible()
