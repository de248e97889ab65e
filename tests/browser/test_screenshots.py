"""A picture of every state in every size and theme, for people to look at.

They land in tests/browser/screenshots, which git ignores. Each step waits until its state was
really reached, and the worker stays in it while its pictures are taken; so a state that cannot be
shown any more fails here.
"""

from collections.abc import Callable
from typing import Any

from PIL import Image

from modules.spec.task_spec import TaskSpec
from tests.browser.conftest import SCREENSHOTS, Window, generate, task_of, wait_state
from tests.browser.pictures import PHONE
from tests.support.page_server import RunningPage

SIZES = {"small": (1024, 768), "desktop": (1400, 900)}
LOOKS = [
    *(("phone", theme) for theme in ("light", "dark")),
    ("small", "light"),  # the layout alone is another one there
    *(("desktop", theme) for theme in ("light", "dark")),
]
"""Every other state is photographed in the opposite order: a page has the next look already."""
PROMPT = "evening hills over a quiet lake, soft light"
SETTLED = """() => [...document.images].every((image) => image.complete || image.loading === "lazy")
  && !document.querySelector("#frame .ghost")"""


def test_every_state_has_its_picture(visit, tmp_path):
    server = RunningPage(tmp_path, checkpoints=(), backoff=60.0)
    try:
        album = Album(visit, server)
        album.both(lambda page: page.wait_for_selector("#no-model:not([hidden])"))
        album.add("first-start", "idle")
        server.add_checkpoint("landscape.safetensors")
        album.both(lambda page: page.locator("#look-again").click())
        album.both(lambda page: page.wait_for_selector("#idle:not([hidden])"))
        album.both(lambda page: page.wait_for_selector("#said", state="hidden"))
        album.add("idle", "idle")
        one_task(album)
        other_ends(album)
        settings(album)
        waiting(album)
        server.close()
        album.both(lambda page: page.wait_for_selector("#server:not(:empty)", timeout=30_000))
        album.add("offline", "queued")
    finally:
        server.close()


class Album:
    """A desktop and a phone before the same tasks, and the pictures of what they show."""

    def __init__(self, visit: Callable[..., Window], server: RunningPage) -> None:
        self.server = server
        windows = visit(at=server), visit(at=server, **PHONE)
        for window in windows:
            window.forgive = "Failed to load resource|ERR_CONNECTION|ERR_INCOMPLETE|network"
        self.desktop, self.phone = (window.page for window in windows)
        self._looks = LOOKS
        SCREENSHOTS.mkdir(exist_ok=True)

    def both(self, step: Callable[[Any], Any]) -> None:
        step(self.desktop)
        step(self.phone)

    def wait_state(self, state: str) -> None:
        """The phone follows the desktop's task; wait until both are in `state`."""
        wait_state(self.desktop, state)
        address = f"#task={task_of(self.desktop)}"
        self.phone.evaluate("(address) => (location.hash = address)", address)
        wait_state(self.phone, state)

    def add(self, name: str, state: str) -> None:
        """Photograph the page as `name`; it is in `state` before, and has to be afterwards."""
        looks, self._looks = self._looks, self._looks[::-1]
        for size, theme in looks:
            page = self.phone if size == "phone" else self.desktop
            if size in SIZES:
                width, height = SIZES[size]
                page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=theme)
            page.wait_for_selector(f"html[data-theme={theme}]")
            page.wait_for_function(SETTLED)
            path = SCREENSHOTS / f"{name}-{size}-{theme}.jpeg"  # half the work of a PNG
            page.screenshot(path=path, quality=90, animations="disabled")
            assert page.locator("#stage").get_attribute("data-state") == state
            with Image.open(path) as picture:
                picture.thumbnail((64, 64))
                assert len(picture.getcolors(64 * 64)) > 100  # a blank one has one


def one_task(album: Album) -> None:
    """Loading, running with another task behind it, done, and the picture large."""
    generate(album.desktop, f"{PROMPT} loads holds-loading holds-second quick", pictures=3, seed=20)
    album.wait_state("loading")
    album.both(lambda page: page.wait_for_selector("#progress[data-unknown=false]"))
    album.add("loading", "loading")
    album.both(lambda page: generate(page, "for later quick", pictures=1, seed=20))
    album.desktop.wait_for_selector("#queue .chip .number:text-is('1')")
    album.phone.wait_for_selector("#queue .chip .number:text-is('2')")
    album.server.release(task_of(album.desktop))
    album.both(lambda page: page.wait_for_selector("#strip .place:nth-child(2).live img"))
    album.add("running", "running")
    album.both(lambda page: page.locator("#queue .chip button").click())
    album.both(lambda page: page.wait_for_selector("#queue .chip", state="detached"))
    album.server.release(task_of(album.desktop))
    album.wait_state("done")
    album.both(lambda page: page.wait_for_selector("#stage img.result"))
    album.both(lambda page: page.locator("#prompt textarea").fill(PROMPT))
    album.desktop.evaluate(
        "for (const part of document.querySelectorAll('#side *')) part.scrollTop = 0"
    )
    album.desktop.locator("#stage").hover()
    album.add("done", "done")
    album.both(lambda page: page.locator("#stage img").click())
    album.both(lambda page: page.wait_for_selector("#viewer", state="visible"))
    album.add("large", "done")
    album.both(lambda page: page.keyboard.press("Escape"))


def other_ends(album: Album) -> None:
    """Stopped with a part of the pictures, and failed."""
    generate(album.desktop, f"{PROMPT} holds-second quick", pictures=4, seed=40)
    album.desktop.wait_for_selector("#strip .place:nth-child(2).live img")
    album.desktop.locator("#stop").click()
    album.wait_state("stopped")
    album.both(lambda page: page.wait_for_selector("#stage img.result"))
    album.add("stopped", "stopped")
    stopped = album.desktop.url
    generate(album.desktop, f"{PROMPT} fails", pictures=1)
    album.wait_state("failed")
    album.both(lambda page: page.wait_for_selector("#error:not([hidden])"))
    album.add("failed", "failed")
    failed = album.desktop.url
    for address, state in ((stopped, "stopped"), (failed, "failed")):
        album.desktop.evaluate("address => location.assign(address)", address)
        wait_state(album.desktop, state)
        # another task does not keep what was said of this one
        shown = "hidden" if state == "stopped" else "visible"
        album.desktop.wait_for_selector("#error", state=shown)
    album.both(lambda page: page.locator("#error-close").click())


def settings(album: Album) -> None:
    """The panels beside the stage, or in the phone's sheet."""
    album.phone.locator("#advanced-label").click()
    for name in ("settings", "models", "advanced"):
        album.both(lambda page: page.locator(f"#tab-{name}").click())  # noqa: B023
        album.add(name, "failed")
    album.both(lambda page: page.locator("#tab-settings").click())
    album.phone.locator("#sheet-close").click()


def waiting(album: Album) -> None:
    """In the queue behind another task, then given back by a worker that has to be restarted."""
    before = album.server.pool.submit(TaskSpec(prompt="waits there"))
    generate(album.desktop, PROMPT)
    album.wait_state("queued")
    album.add("queued", "queued")
    album.desktop.locator("#stop").click()
    album.wait_state("stopped")
    generate(album.desktop, f"{PROMPT} crashes quick")
    album.wait_state("queued")
    album.server.pool.stop_task(before)
    told = "() => /is being restarted/.test(document.querySelector('#main').innerText)"
    album.both(lambda page: page.wait_for_function(told))
    album.add("restarting", "queued")
