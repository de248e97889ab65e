"""Fetching a model with the page: one press, progress, and the model is chosen."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.browser.conftest import ready, require_thumb_room
from tests.browser.test_layout import CONTRAST, PHONE, SMALL_TARGETS, overflow
from tests.support.file_server import FileServer, serve_file
from tests.support.page_server import RunningPage

BODY = b"\x02\0\0\0\0\0\0\0{}" + b"w" * 3_000_000
NAME = "big.safetensors"


@pytest.fixture
def source() -> Iterator[FileServer]:
    with serve_file(BODY, hold=2_000_000) as server:
        yield server


def page_over(tmp_path, source, checkpoints=()) -> RunningPage:
    """A page of its own, with a preset that wants a checkpoint and a LoRA of `source`."""
    known = {"sha256": hashlib.sha256(BODY).hexdigest(), "size": len(BODY)}
    files = [
        {"file": NAME, "folder": "checkpoints", "url": f"{source.url}{NAME}", **known},
        {"file": "ink.safetensors", "folder": "loras", "url": f"{source.url}ink"},
    ]
    settings = {"checkpoint": NAME, "loras": [{"name": "ink.safetensors", "weight": 0.5}]}
    for name, title in (("default", "Default"), ("other", "Other")):
        preset = {"title": title, "settings": settings | {"cfg_scale": 5.0}, "downloads": files}
        folder = tmp_path / "root" / "presets"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(preset))
    return RunningPage(tmp_path, checkpoints=checkpoints, root=tmp_path / "root")


def row(tab, place, name=NAME):
    return tab.locator(f"{place} .fetchable[data-file$='{name}']")


def chosen(tab, name):
    tab.wait_for_function(
        "(name) => document.querySelector('#checkpoint input').value.includes(name)", arg=name
    )


def test_one_press_in_the_empty_state_fetches_the_model_and_chooses_it(visit, tmp_path, source):
    server = page_over(tmp_path, source)
    try:
        window = visit(at=server)
        window.forgive = "ERR_CONNECTION"  # the server goes while the page still asks
        tab = window.page
        known = row(tab, "#no-model-downloads")
        known.get_by_role("button", name=f"Download {NAME}").click()
        tab.wait_for_function(
            "() => document.querySelector('#downloading').innerText === 'download 66 %'"
        )
        assert "2.0 MB of 3.0 MB" in known.locator(".fetch-words").inner_text()
        assert known.get_by_role("progressbar").get_attribute("aria-valuenow") == "66"
        assert tab.evaluate(CONTRAST, [".fetch-words"]) == []
        tab.reload()  # it belongs to the server
        ready(tab)
        stop = known.get_by_role("button", name="Stop the download")
        stop.click()
        tab.wait_for_selector("#no-model-downloads .fetch:visible")
        assert "2.0 MB are kept" in known.locator(".fetch-words").inner_text()
        source.hold = 0
        known.locator(".fetch").click()
        stop.wait_for()
        second = window.new_tab()
        source.go_on.set()
        tab.wait_for_selector("#idle:not([hidden])")
        chosen(tab, NAME)
        chosen(second, NAME)  # every tab hears of it
        assert source.asked[-1]["range"] == "bytes=2000000-"
        assert (server.checkpoint_folder / NAME).read_bytes() == BODY
        assert "has arrived" in tab.locator("#preset-note").inner_text()
        tab.locator("#tab-models").click()
        assert row(tab, "#models-downloads").count() == 0
        assert row(tab, "#models-downloads", "ink.safetensors").locator(".fetch").is_visible()
    finally:
        server.close()


def test_a_preset_s_note_offers_what_it_lacks_and_takes_it(visit, tmp_path, source):
    source.hold, source.statuses = None, [404]
    server = page_over(tmp_path, source, ("landscape.safetensors",))
    try:
        window = visit(at=server)
        window.forgive = "ERR_CONNECTION"
        tab = window.page
        tab.locator("#preset input").click()
        tab.get_by_role("option", name="Other").click()
        tab.wait_for_selector("#preset-note p:has-text('landscape.safetensors paints')")
        known = row(tab, "#preset-note")
        second = window.new_tab()
        known.locator(".fetch").click()
        tab.wait_for_selector("#preset-note .fetch-error:not(:empty)")
        assert "not at its address any more" in known.locator(".fetch-error").inner_text()
        assert tab.evaluate(CONTRAST, ["#preset-note .fetch-error", "#preset-note .fetch"]) == []
        known.locator(".fetch").click()
        chosen(tab, NAME)
        listed = f"#models-downloads .fetchable[data-file$='{NAME}']"
        second.wait_for_selector(listed, state="detached")
        assert "landscape" in second.locator("#checkpoint input").input_value()  # it did not ask
        row(tab, "#preset-note", "ink.safetensors").locator(".fetch").click()
        tab.wait_for_function(
            "() => document.querySelector('#lora-1 select')?.value === 'ink.safetensors'"
        )
        note = tab.locator("#preset-note").inner_text()
        assert "ink.safetensors has arrived." in note and "not there yet" not in note
        assert tab.locator("#preset-note .fetchable").count() == 0
        tab.locator("#preset-undo").click()
        tab.wait_for_function("() => !document.querySelector('#lora-1 select').value")
    finally:
        server.close()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_download_fits_a_phone(visit, tmp_path, source, theme):
    server = page_over(tmp_path, source)
    try:
        window = visit(at=server, color_scheme=theme, **PHONE)
        window.forgive = "ERR_CONNECTION"
        tab = window.page
        known = row(tab, "#no-model-downloads")
        known.locator(".fetch").wait_for()
        require_thumb_room(tab, ".fetch")
        assert tab.evaluate(CONTRAST, ["#no-model .fetch", "#no-model a"]) == []
        known.locator(".fetch").tap()
        known.locator(".fetch-stop").wait_for()
        tab.wait_for_selector("#no-model .fetch-words:has-text('of 3.0 MB')")
        require_thumb_room(tab, ".fetch-stop")
        assert tab.evaluate(CONTRAST, ["#no-model .fetch-words", "#downloading"]) == []
        assert (overflow(tab), tab.evaluate(SMALL_TARGETS)) == (0, [])
        known.locator(".fetch-stop").tap()
        known.locator(".fetch").wait_for()
    finally:
        server.close()


def test_who_may_not_download_is_told_who_may(visit, tmp_path, source):
    server = page_over(tmp_path, source)
    running = {"name": "loras/q.safetensors", "url": "", "state": "running", "phase": "fetching"}
    running |= {"done": 5_000_000, "total": None, "rate": 0, "seconds_left": None, "error": ""}
    views = {"allowed": False, "downloads": [running]}
    lora = {"file": "sub/x.safetensors", "folder": "", "url": "https://e.org/x"}

    def say(**changes):
        def change(route):
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | changes)

        return change

    try:
        window = visit(at=server)
        window.forgive = "ERR_CONNECTION"
        tab = window.page
        tab.route("**/api/status", say(downloads=views))
        tab.route("**/api/downloads", say(**views))
        tab.route("**/api/forecast", say(missing=lora))
        tab.reload()
        tab.wait_for_selector("#downloading:text-is('download 5.0 MB')")
        words = tab.locator("#models-downloads .fetch-words").all_text_contents()
        assert words == ["The owner of this Easel can download it.", ""]
        assert tab.locator("#no-model .fetch:visible").count() == 0
        assert tab.locator("#downloads .fetchable > span").first.text_content() == "q.safetensors"
        assert tab.locator("#downloads a").count() == 0
        link = tab.locator("#performance-note a")
        link.wait_for(state="attached")
        assert link.text_content() == "sub/x.safetensors"
        assert tab.locator("#performance-note .fetchable").count() == 0
    finally:
        tab.unroute_all(behavior="ignoreErrors")
        server.close()
