"""Styles, LoRAs and the prompt inspector, as a visitor uses them."""

import base64
import io
import json

from PIL import Image

from modules.prompt.plan import make_plan
from tests.browser.conftest import (
    SCREENSHOTS,
    generate,
    ready,
    require_thumb_room,
    task_of,
    wait_state,
)

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def photograph(tab, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.wait_for_timeout(350)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def chosen_styles(tab):
    return tab.locator("#style-chosen .name").all_inner_texts()


def test_styles_are_found_chosen_in_order_kept_and_sent(visit, server):
    folder = server.settings.root / "styles"
    folder.mkdir(exist_ok=True)
    (folder / "mine.csv").write_text('name,prompt,negative_prompt\nMy Haze,"soft haze",\n')
    window = visit()
    tab = window.page
    tab.locator("#tab-styles").click()
    listed = tab.locator("#style-list .style")
    tab.wait_for_selector("#style-list .style span:text-is('My Haze')")
    assert listed.first.inner_text() == "My Haze"  # the user's own come first
    assert listed.count() == 269
    assert chosen_styles(tab) == ["Polished", "Crisp"]  # of the default preset
    tab.locator("#clear-styles").click()
    photograph(tab, "styles-desktop")

    tab.locator("#style-search").fill("gothic cathedral")
    assert tab.locator("#style-list .style").first.inner_text() == "Gothic Cathedral"
    tab.keyboard.press("Enter")
    tab.locator("#style-search").fill("haze")
    tab.locator("#style-list .style span:text-is('My Haze')").click()
    tab.locator("#random-style").click()
    tab.locator("#style-search").fill("")
    assert chosen_styles(tab) == ["Gothic Cathedral", "My Haze", "Random style"]
    assert tab.locator("#random-style").get_attribute("aria-pressed") == "true"
    photograph(tab, "styles-chosen-desktop")

    assert tab.locator("#expand-prompt input").is_checked()
    tab.locator("#wildcards-in-order input").check()
    tab.wait_for_function("() => JSON.parse(sessionStorage['easel.form']).wildcards_in_order")
    tab.reload()
    ready(tab)
    tab.locator("#tab-styles").click()
    tab.wait_for_selector("#style-chosen :nth-child(3)")
    assert chosen_styles(tab) == ["Gothic Cathedral", "My Haze", "Random style"]
    generate(tab, "quick hills")
    tab.wait_for_function("() => location.hash")
    spec = server.pool.view(task_of(tab)).spec
    assert spec.styles == ("arch-gothic", "My Haze", "random")
    assert spec.expand_prompt
    assert spec.wildcards_in_order

    tab.locator("#style-chosen button").first.click()
    assert chosen_styles(tab) == ["My Haze", "Random style"]
    tab.locator("#clear-styles").click()
    assert chosen_styles(tab) == []
    assert tab.locator("#style-note").is_visible()
    tab.wait_for_function("() => JSON.parse(sessionStorage['easel.form']).styles === '[]'")


def test_a_faulty_file_of_styles_is_told_in_the_tab_until_it_is_mended(visit, server):
    path = server.settings.root / "styles" / "broken.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    tab = visit().page
    try:
        tab.locator("#tab-styles").click()
        tab.locator("#style-faults", has_text="'broken.json' is not valid JSON").wait_for()
    finally:
        path.unlink()
    tab.locator("#tab-styles").click()
    tab.wait_for_function("() => document.querySelector('#style-faults').textContent === ''")
    assert tab.locator("#style-faults").is_hidden()


def require_styles_fit(tab):
    """In the sheet of a phone."""
    tab.locator("#tab-styles").click()
    tab.wait_for_selector("#style-list .style")
    tab.locator("#clear-styles").click()
    tab.locator("#random-style").click()
    tab.locator("#style-list .style span:text-is('Gothic Cathedral')").click()
    photograph(tab, "styles-phone")
    require_thumb_room(tab, ":is(#styles, #style-list) button")
    box = "#styles-value :is(textarea, input)"
    held = json.loads(tab.evaluate(f"document.querySelector('{box}').value"))
    assert held == ["random", "arch-gothic"]


def put_lora(server, name, **metadata):
    """A LoRA file with nothing but a header."""
    folder = server.settings.models_path / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    entries = {key.replace("__", "."): value for key, value in metadata.items()}
    header = json.dumps({"__metadata__": entries}).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)
    return folder / name


def test_a_lora_for_another_family_is_told_in_its_slot_and_in_the_inspector(visit, server):
    said = put_lora(server, "flux.safetensors", modelspec__architecture="flux-1-dev/lora")
    path = server.checkpoint_folder / "xl.safetensors"
    names = {
        "conditioner.embedders.1.model.x": {"shape": [1]},
        "model.diffusion_model.attn2.to_k.weight": {"shape": [320, 2048]},
    }
    header = json.dumps(names).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    tab = visit().page
    tab.locator("#tab-models").click()
    tab.locator("#checkpoint input").click()
    tab.locator("#checkpoint [role=option]", has_text="xl").click()
    tab.locator("#lora-1 select").select_option("flux.safetensors")
    words = "flux.safetensors is made for Flux, and xl.safetensors is SDXL"
    tab.wait_for_function(
        "words => document.querySelector('#lora-1 .bad')?.innerText.startsWith(words)", arg=words
    )
    tab.locator("#inspect-toggle").click()
    tab.wait_for_function(
        "words => document.querySelector('#inspect-notes .bad')?.innerText.startsWith(words)",
        arg=words,
    )
    tab.locator("#lora-1 input[type=checkbox]").uncheck()
    tab.wait_for_function("() => !document.querySelector('#inspect-notes .bad')")
    for file in (said, path):
        file.unlink()


def test_loras_are_chosen_weighed_kept_sent_and_missed(visit, server):
    drawn = io.BytesIO()
    Image.new("RGB", (6, 4), "teal").save(drawn, "PNG")
    picture = base64.b64encode(drawn.getvalue()).decode()
    ink = put_lora(
        server,
        "ink.safetensors",
        modelspec__architecture="stable-diffusion-xl-v1-base/lora",
        modelspec__title="Ink <b>wash",
        modelspec__trigger_phrase="inkwash, brush strokes",
        modelspec__thumbnail=f"data:image/png;base64,{picture}",
    )
    tab = visit().page
    tab.locator("#tab-models").click()
    tab.wait_for_selector("#lora-5 select")
    assert tab.locator("#lora-rows > .lora").count() == 5
    tab.locator("#lora-1 select").select_option("ink.safetensors")
    tab.wait_for_selector("#lora-1 .trigger")
    assert tab.locator("#lora-1 .lora-note").inner_text() == (
        "Ink <b>wash · made for SDXL\nTrigger words: inkwash brush strokes"
    )
    tip = tab.locator("#lora-1 input[type=number]").get_attribute("title")
    assert tip.startswith("How strongly it counts")
    preview = tab.locator("#lora-1 .lora-note img")
    assert preview.get_attribute("alt") == "Ink <b>wash"
    preview.evaluate("image => image.decode()")
    assert preview.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [6, 4]
    tab.locator("#prompt textarea").fill("quick hills")
    tab.locator("#lora-1 .trigger").first.click()
    assert tab.locator("#prompt textarea").input_value() == "quick hills, inkwash"

    put_lora(server, "late.safetensors")
    tab.locator("#refresh").click()
    tab.wait_for_selector("#lora-2 option[value='late.safetensors']", state="attached")
    tab.locator("#lora-2 select").select_option("late.safetensors")
    tab.locator("#lora-2 input[type=number]").fill("-0.5")
    tab.locator("#lora-1 input[type=number]").fill("0.75")
    tab.locator("#lora-2 input[type=checkbox]").uncheck()
    tab.locator("#lora-add").click()
    assert tab.locator("#lora-rows > .lora").count() == 6
    tab.wait_for_function("() => sessionStorage['easel.form']?.includes('0.75')")
    ink.unlink()
    tab.reload()
    ready(tab)
    tab.locator("#tab-models").click()
    tab.wait_for_selector("#lora-1 .lora-note.missing")
    assert "ink.safetensors is not in models/loras." in tab.locator("#lora-1").inner_text()
    assert tab.locator("#lora-1 input[type=number]").input_value() == "0.75"
    assert not tab.locator("#lora-2 input[type=checkbox]").is_checked()
    photograph(tab, "loras-desktop")

    tab.locator("#lora-1 select").select_option("")  # the second one moves up
    assert tab.locator("#lora-1 select").input_value() == "late.safetensors"
    tab.locator("#generate").click()
    tab.wait_for_function("() => location.hash")
    loras = server.pool.view(task_of(tab)).spec.loras
    assert [(use.name, use.weight, use.enabled) for use in loras] == [
        ("late.safetensors", -0.5, False)
    ]


def require_loras_fit(tab):
    """In the sheet of a phone, with one that tells its words."""
    tab.locator("#tab-models").click()
    tab.locator("#lora-1 select").select_option("ink.safetensors")
    tab.wait_for_selector("#lora-1 .trigger")
    photograph(tab, "loras-phone")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#loras :is(button, select, label, [type=number])')]"
        ".map(b => b.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


LONG = "a red house by a blue lake at night, (soft lantern light:1.3), " * 7


def test_the_inspector_shows_what_will_be_painted(visit, server):
    put_lora(server, "brush.safetensors")
    tab = visit().page
    tab.locator("#prompt textarea").fill("red car <lora:nowhere:0.5>")
    tab.wait_for_selector("#inspect-count.bad:text-is('1')")  # told while it is closed
    before = tab.locator("#stage").bounding_box(), tab.locator("#prompt").bounding_box()
    tab.locator("#inspect-toggle").click()
    tab.wait_for_selector("#inspect-notes li.bad")
    assert "nowhere is not in models/loras" in tab.locator("#inspect-notes").inner_text()
    assert before == (tab.locator("#stage").bounding_box(), tab.locator("#prompt").bounding_box())

    tab.locator("#negative-prompt textarea").fill("soft lantern light")
    tab.locator("#prompt textarea").fill(LONG + "[[dawn, dusk, noon]] {fog|rain} <lora:brush:0.5>")
    tab.wait_for_selector("#inspect-prompts .prompt-line:nth-child(4)")
    tab.wait_for_selector(".chunk:has-text('chunk 2')")
    summary = tab.locator("#inspect-summary").inner_text()
    assert summary.startswith("2 pictures · 3 combinations")
    notes = tab.locator("#inspect-notes").inner_text()
    assert "asks for 'soft lantern light', which the negative prompt rules out" in notes
    assert "these are an example" in notes
    assert fact(tab, "LoRAs") == "brush at 0.5"
    assert tab.locator(".weighted").first.get_attribute("data-weight") == "×1.3"
    tab.locator(".prompt-line").nth(1).click()
    tab.wait_for_selector("#inspect-picture h3:text-is('Picture 2')")
    assert "dusk" in tab.locator("#inspect-picture").inner_text()
    photograph(tab, "inspector-desktop")

    tab.locator("#prompt textarea").fill("[[" + "a," * 4_000 + "]] [[b, c, d]]")
    tab.wait_for_selector("#inspect-notes li.bad:has-text('more than 10,000 combinations')")
    assert tab.locator(".prompt-line").count() == 0
    tab.keyboard.press("Escape")
    assert tab.locator("#inspector").is_hidden()
    assert tab.locator("#stage").get_attribute("data-state") == "idle"


def fact(tab, name):
    """What the inspector tells under `name`."""
    return tab.locator(f"#inspect-picture dt:text-is('{name}') + dd").inner_text()


def test_the_inspector_tells_the_added_words_and_the_time(visit, server):
    tab = visit().page
    generate(tab, "quick cat garden", pictures=2, seed=5)  # how long one takes is known then
    wait_state(tab, "done")
    tab.locator("#prompt textarea").fill("cat in garden")
    tab.locator("#inspect-toggle").click()
    tab.wait_for_selector("#inspect-picture dt:text-is('Added words')")
    books = server.context.shelf.books()
    spec = server.store.get(task_of(tab)).spec.model_copy(update={"prompt": "cat in garden"})
    added = make_plan(spec, books).pictures[0].expansion
    assert len(added.split(", ")) == 6
    assert fact(tab, "Added words") == added
    assert fact(tab, "Styles") == "Polished, Crisp"
    texts = tab.locator("#inspect-picture h4:text-is('Painted from') ~ .text-box").all_inner_texts()
    assert any(text.startswith(f"cat in garden, {added}") for text in texts)
    tab.wait_for_function(
        r"() => / · about \d+ /.test(document.querySelector('#inspect-summary').innerText)"
    )
    tab.locator("#expand-prompt input").evaluate("box => box.click()")
    tab.wait_for_selector("#inspect-picture dt:text-is('Added words')", state="detached")


def require_inspector_fits(tab):
    """Over the page of a phone."""
    tab.locator("#prompt textarea").fill(LONG + "[[dawn, dusk]] __nowhere__")
    tab.locator("#inspect-toggle").click()
    tab.wait_for_selector(".prompt-line")
    photograph(tab, "inspector-phone")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#inspector button, #inspect-toggle')]"
        ".map(b => b.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("#inspect-close").click()
    assert tab.locator("#inspector").is_hidden()


def test_the_panels_fit_on_a_phone(visit, server):
    put_lora(server, "ink.safetensors", ss_tag_frequency='{"a": {"inkwash": 3, "brush": 2}}')
    tab = visit(**PHONE).page
    require_inspector_fits(tab)
    tab.locator("#advanced-label").click()
    require_styles_fit(tab)
    require_loras_fit(tab)
