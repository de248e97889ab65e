"""A real Chromium before a real server, whose worker paints landscapes without an engine.

Every page is watched: a request to anywhere but the server, an error in the console or in a
script fails the test that caused it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.page_server import RunningPage

SCREENSHOTS = Path(__file__).parent / "screenshots"
PATIENCE_MS = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here drives a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """A served page with one checkpoint, shared by all tests that do not stop it."""
    page = RunningPage(tmp_path_factory.mktemp("page"))
    yield page
    page.close()


class Window:
    """One tab of a visitor of their own (no shared storage), with words for what they do."""

    def __init__(
        self, context: Any, server: RunningPage, address: str = "", forgive: str = ""
    ) -> None:
        """`address`: what is opened on the server, the page itself unless given. `forgive`: a
        pattern of the errors that the test brings about from now on; that a server which the
        test has closed refuses connections is forgiven anyway.
        """
        self.context, self.server, self.forgive = context, server, forgive
        self.url = url = server.url
        self.complaints: list[str] = []
        self._keeper = context.pages[0] if context.pages else context.new_page()
        if self._keeper.url == "about:blank":
            self._keeper.goto(url + "/healthz")
        self.page = self.new_tab(address)

    def new_tab(self, address: str = "") -> Any:
        """Another tab of the same visitor, with the page loaded."""
        tab = self.context.new_page()
        tab.set_default_timeout(PATIENCE_MS)
        tab.on("request", self._on_request)
        tab.on("console", self._on_console)
        tab.on("pageerror", lambda error: self._complain(f"script: {error}"))
        tab.goto(address or self.url)
        ready(tab)
        return tab

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self._complain(f"external request: {request.url}")

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._complain(f"console: {message.text} {message.location.get('url', '')}")

    def _complain(self, text: str) -> None:
        gone = self.server.closed and "ERR_CONNECTION" in text
        if not gone and not (self.forgive and re.search(self.forgive, text)):
            self.complaints.append(text)

    def close(self) -> list[str]:
        """End the visit, and forget all of it but what is cached; what is left open is the tab
        that keeps the compiled script. What went wrong on the way.
        """
        for tab in self.context.pages:
            if tab != self._keeper:
                tab.close()
        session = self.context.new_cdp_session(self._keeper)
        session.send("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        session.detach()
        return self.complaints


@pytest.fixture(scope="module")
def contexts(chromium: Any) -> dict[str, list[Any]]:
    """Browser contexts that nobody uses, by their options: they have the page in their cache."""
    return {}


@pytest.fixture
def visit(
    chromium: Any, server: RunningPage, contexts: dict[str, list[Any]]
) -> Iterator[Callable[..., Window]]:
    """Opens windows on the shared server, or on `at`; closes and checks them afterwards."""
    windows: list[tuple[str, Window]] = []

    def open_window(
        at: RunningPage | None = None, address: str = "", forgive: str = "", **options: Any
    ) -> Window:
        options = {
            "viewport": {"width": 1400, "height": 900},
            "color_scheme": "dark",
            "reduced_motion": "reduce",  # drawing what moves takes a sixth of a picture's time
        } | options
        kind = repr(sorted(options.items()))
        unused = contexts.setdefault(kind, [])
        context = unused.pop() if unused else chromium.new_context(**options)
        windows.append((kind, Window(context, at or server, address, forgive)))
        return windows[-1][1]

    yield open_window
    bad: list[str] = []
    for kind, window in windows:  # all of them, whatever one complains of
        bad += window.close()
        contexts[kind].append(window.context)
    assert not bad, "\n".join(bad)


def ready(tab: Any) -> None:
    """Wait until the page's script has taken over and the form holds what it held before."""
    tab.wait_for_selector("#generate span")
    tab.wait_for_function("() => document.querySelector('#make')?.children.length === 2")
    tab.wait_for_selector("html[data-restored]")


def generate(
    tab: Any, prompt: str, *, pictures: int | None = None, seed: int | None = None
) -> None:
    """Type and press Generate."""
    in_sheet = (pictures, seed) != (None, None) and not tab.locator("#side").is_visible()
    if in_sheet:
        tab.locator("#advanced-label").click()
    if pictures is not None:
        tab.locator("#image-number input[type=number]").fill(str(pictures))
    if seed is not None:
        tab.locator("#seed-random input").uncheck()
        tab.locator("#seed input").fill(str(seed))
    if in_sheet:
        tab.locator("#sheet-close").click()
    tab.locator("#prompt textarea").fill(prompt)
    tab.locator("#generate").click()


def wait_state(tab: Any, *states: str) -> None:
    """Wait until the stage is in one of `states`."""
    tab.wait_for_selector(",".join(f"#stage[data-state={state}]" for state in states))


def wait_next(tab: Any, before: str, state: str) -> None:
    """Wait until the tab follows another task than `before`, and that one has ended in `state`."""
    tab.wait_for_function("(before) => location.hash !== `#task=${before}`", arg=before)
    tab.wait_for_selector("#stop:disabled")
    wait_state(tab, state)


def require_thumb_room(tab: Any, selector: str) -> None:
    """What is shown of `selector` is 44 px or more each way, and nothing scrolls sideways."""
    sizes = tab.evaluate(
        """(selector) => [...document.querySelectorAll(selector)].filter((b) => b.offsetWidth)
          .map((b) => b.getBoundingClientRect()).map((b) => Math.min(b.width, b.height))""",
        selector,
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def task_of(tab: Any) -> str:
    """Id of the task that the tab follows."""
    return tab.evaluate("location.hash").removeprefix("#task=")
