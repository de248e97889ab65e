"""A picture of every state in every size and theme, for people to look at.

They land in tests/browser/screenshots, which git ignores. Each test also makes sure that the
state it shows was really reached.
"""

from pathlib import Path

import pytest

from tests.browser.conftest import SCREENSHOTS, generate, wait_state
from tests.support.page_server import RunningPage

SIZES = {
    "desktop": {"viewport": {"width": 1400, "height": 900}},
    "small": {"viewport": {"width": 1024, "height": 768}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
LOOKS = [(size, theme) for size in SIZES for theme in ("dark", "light")]
PROMPT = "evening hills over a quiet lake, soft light"


def shoot(tab, name: str, look: tuple[str, str]) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}-{look[0]}-{look[1]}.png"
    tab.screenshot(path=path, animations="disabled")
    assert path.stat().st_size > 5_000


@pytest.fixture(params=LOOKS, ids="-".join)
def look(request):
    return request.param


@pytest.fixture
def tab(visit, look):
    return visit(**SIZES[look[0]], color_scheme=look[1]).page


def test_idle(tab, look):
    wait_state(tab, "idle")
    shoot(tab, "idle", look)


def test_settings(tab, look):
    if look[0] == "phone":
        tab.locator("#advanced-label").click()
        tab.wait_for_timeout(350)
    shoot(tab, "settings", look)
    tab.locator("#tab-models").click()
    shoot(tab, "models", look)
    tab.locator("#tab-advanced").click()
    shoot(tab, "advanced", look)


def test_running_queue_and_done(tab, look):
    generate(tab, f"{PROMPT} loads", pictures=3, seed=20)
    wait_state(tab, "loading")
    tab.wait_for_function("() => document.querySelector('#progress').ariaValueNow > 20")
    shoot(tab, "loading", look)
    tab.wait_for_selector("#strip .place:nth-child(2).live img")
    generate(tab, "a second wish, for later quick", pictures=1)
    tab.wait_for_selector("#queue .chip .number:text-is('1')")
    tab.wait_for_timeout(600)
    shoot(tab, "running", look)
    tab.locator("#queue .chip button").click()
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    tab.wait_for_timeout(700)
    tab.locator("#stage").hover()
    tab.wait_for_timeout(250)
    shoot(tab, "done", look)
    tab.locator("#stage img").click()
    tab.wait_for_selector("#viewer img")
    shoot(tab, "large", look)


def test_stopped_with_partial_results(tab, look):
    generate(tab, PROMPT, pictures=4, seed=40)
    tab.wait_for_selector("#strip .place:nth-child(2).live img")
    tab.locator("#stop").click()
    wait_state(tab, "stopped")
    tab.wait_for_selector("#stage img.result")
    tab.wait_for_timeout(700)
    shoot(tab, "stopped", look)


def test_failed(tab, look):
    generate(tab, f"{PROMPT} fails")
    wait_state(tab, "failed")
    tab.wait_for_timeout(500)
    shoot(tab, "failed", look)


def test_waiting_behind_another_tab(visit, tab, look):
    other = visit().page
    generate(other, "waits there")
    wait_state(other, "running", "loading")
    generate(tab, PROMPT)
    wait_state(tab, "queued")
    tab.wait_for_timeout(500)
    shoot(tab, "queued", look)
    tab.locator("#stop").click()
    wait_state(tab, "stopped")
    other.locator("#stop").click()
    wait_state(other, "stopped")


def test_worker_restarting(tab, look):
    generate(tab, f"{PROMPT} crashes", pictures=1)
    tab.wait_for_function("() => /worker/i.test(document.querySelector('#main').innerText)")
    tab.wait_for_timeout(400)
    shoot(tab, "restarting", look)
    wait_state(tab, "done")


def test_first_start_and_offline(visit, look, tmp_path: Path):
    server = RunningPage(tmp_path, checkpoints=())
    try:
        window = visit(at=server, **SIZES[look[0]], color_scheme=look[1])
        window.forgive = "Failed to load resource|ERR_CONNECTION"
        window.page.wait_for_selector("#no-model:not([hidden])")
        shoot(window.page, "first-start", look)
        server.close()
        window.page.wait_for_selector("#server:not(:empty)", timeout=30_000)
        shoot(window.page, "offline", look)
    finally:
        server.close()
