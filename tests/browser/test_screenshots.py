"""A picture of every state in every size and theme, for people to look at.

They land in tests/browser/screenshots, which git ignores. Each step waits until its state was
really reached, so a state that cannot be shown any more fails here. With EASEL_WRITE_DOCS=1 the
README's picture is taken anew.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS, generate, task_of, wait_state
from tests.support.page_server import RunningPage

SIZES = {
    "desktop": {"viewport": {"width": 1400, "height": 900}},
    "small": {"viewport": {"width": 1024, "height": 768}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
DOCS = Path(__file__).parents[2] / "docs"
README_PICTURE = "done-desktop-dark.png"
PROMPT = "evening hills over a quiet lake, soft light"


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", SIZES)
def test_every_state_has_its_picture(visit, tmp_path, size, theme):
    server = RunningPage(tmp_path, checkpoints=())
    try:
        window = visit(at=server, color_scheme=theme, **SIZES[size])
        window.forgive = "Failed to load resource|ERR_CONNECTION"
        album = Album(server, window.page, f"{size}-{theme}")
        album.page.wait_for_selector("#no-model:not([hidden])")
        album.add("first-start")
        server.add_checkpoint("landscape.safetensors")
        album.page.locator("#look-again").click()
        album.page.wait_for_selector("#said", state="hidden")
        album.add("idle")
        one_task(album)
        other_ends(album)
        waiting(album, visit(at=server).page)
        settings(album, in_sheet=size == "phone")
        server.close()
        album.page.wait_for_selector("#server:not(:empty)", timeout=30_000)
        album.add("offline")
    finally:
        server.close()


class Album:
    """The pictures of one look."""

    def __init__(self, server: RunningPage, page: Any, look: str) -> None:
        self.server, self.page = server, page
        self._look = look
        SCREENSHOTS.mkdir(exist_ok=True)

    def add(self, state: str) -> None:
        """Photograph the page as `state`, once everything has faded in."""
        self.page.wait_for_timeout(600)
        path = SCREENSHOTS / f"{state}-{self._look}.png"
        self.page.screenshot(path=path, animations="disabled")
        assert path.stat().st_size > 5_000
        if path.name == README_PICTURE and os.environ.get("EASEL_WRITE_DOCS"):
            shutil.copyfile(path, DOCS / "page.png")


def settings(album: Album, *, in_sheet: bool) -> None:
    page = album.page
    if in_sheet:
        page.locator("#advanced-label").click()
    for name in ("settings", "models", "advanced"):
        page.locator(f"#tab-{name}").click()
        album.add(name)
    page.locator("#tab-settings").click()
    if in_sheet:
        page.locator("#sheet-close").click()


def one_task(album: Album) -> None:
    """Loading, running with another task behind it, done, and the picture large."""
    page = album.page
    generate(page, f"{PROMPT} loads holds-second", pictures=3, seed=20)
    wait_state(page, "loading")
    album.add("loading")
    generate(page, "a second wish, for later quick", pictures=1)
    page.wait_for_selector("#queue .chip .number:text-is('1')")
    page.wait_for_selector("#strip .place:nth-child(2).live img")
    album.add("running")
    page.locator("#queue .chip button").click()
    album.server.release(task_of(page))
    wait_state(page, "done")
    page.wait_for_selector("#stage img.result")
    page.locator("#prompt textarea").fill(PROMPT)
    page.evaluate("for (const part of document.querySelectorAll('#side *')) part.scrollTop = 0")
    page.locator("#stage").hover()
    album.add("done")
    page.locator("#stage img").click()
    album.add("large")
    page.keyboard.press("Escape")


def other_ends(album: Album) -> None:
    """Stopped with a part of the pictures, failed, and a worker that has to be restarted."""
    page = album.page
    generate(page, f"{PROMPT} holds-second", pictures=4, seed=40)
    page.wait_for_selector("#strip .place:nth-child(2).live img")
    page.locator("#stop").click()
    wait_state(page, "stopped")
    page.wait_for_selector("#stage img.result")
    album.add("stopped")
    generate(page, f"{PROMPT} fails", pictures=1)
    wait_state(page, "failed")
    album.add("failed")
    generate(page, f"{PROMPT} crashes quick")
    page.wait_for_function("() => /worker/i.test(document.querySelector('#main').innerText)")
    album.add("restarting")
    wait_state(page, "done")


def waiting(album: Album, other: Any) -> None:
    """In the queue behind the task of another visitor."""
    generate(other, "waits there")
    wait_state(other, "running", "loading")
    generate(album.page, PROMPT)
    wait_state(album.page, "queued")
    album.add("queued")
    album.page.locator("#stop").click()
    wait_state(album.page, "stopped")
    other.locator("#stop").click()
    wait_state(other, "stopped")
    other.close()
