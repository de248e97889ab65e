"""The login in a real Chromium: the page works under its content policy once one is in."""

import pytest

from modules.spec.flags import TaskState
from tests.modules.api.support import serve

pytestmark = pytest.mark.browser


@pytest.fixture
def window(chromium):
    page = chromium.new_page()
    yield page
    page.close()


def test_from_the_login_to_a_running_task(tmp_path, window):
    complaints: list[str] = []
    asked: list[str] = []
    window.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    window.on("pageerror", lambda error: complaints.append(str(error)))
    window.on("request", lambda request: asked.append(request.url))
    with serve(tmp_path, page="modules.ui.app", auth="anna:open sesame") as running:
        window.goto(running.url)
        assert window.url.startswith(f"{running.url}/login")
        window.fill("#user", "anna")
        window.fill("#password", "wrong")
        window.click("#login")
        assert "wrong" in window.inner_text("[role=alert]")
        complaints.clear()  # the browser notes the 401
        window.fill("#user", "anna")
        window.fill("#password", "open sesame")
        window.click("#login")
        window.wait_for_selector("#stage[data-state=idle]", timeout=30_000)
        assert window.url.rstrip("/") == running.url
        window.fill("#prompt textarea", "a red house")
        window.click("#generate")
        window.wait_for_selector("#stage[data-state=queued]", timeout=30_000)
        task_id = next(iter(running.pool.views))
        running.pool.change(task_id, state=TaskState.RUNNING, position=0)
        window.wait_for_selector("#stage[data-state=running]", timeout=10_000)
        [(spec, owner)] = running.pool.submitted
        assert (spec.prompt, owner) == ("a red house", "anna")
        assert window.locator("#log-out").get_attribute("title") == "Log out anna"
        window.click("#log-out")
        # Not its "load", which can come before it is waited for, and never comes again.
        window.wait_for_url("**/login*", wait_until="commit")
        window.wait_for_selector("#user")
        window.goto(running.url)
        assert "/login" in window.url
        assert window.evaluate("sessionStorage.length") == 0  # nothing for the next one to see
        complaints[:] = [text for text in complaints if "401" not in text]
        window.goto("about:blank")
    assert complaints == []
    outside = [
        url for url in asked if not url.startswith((running.url, "data:", "blob:", "about:"))
    ]
    assert outside == []
