"""The page when the server is away, has no model, or forgot a task."""

from tests.browser.conftest import generate, ready, task_of, wait_next, wait_state
from tests.support.page_server import RunningPage

AWAY = "Failed to load resource|ERR_CONNECTION|ERR_INCOMPLETE|network"
"""What the browser says of a server that is gone."""


def test_the_page_says_that_the_server_is_away_and_comes_back(visit, tmp_path):
    server = RunningPage(tmp_path)
    try:
        window = visit(at=server)
        tab = window.page
        window.forgive = "ERR_FAILED"
        tab.route("**/api/images/*/*?thumb=1", lambda route: route.abort())
        generate(tab, "hills", pictures=3)
        tab.wait_for_selector("#strip .lost", state="attached")
        tab.unroute("**/api/images/*/*?thumb=1")
        tab.wait_for_selector("#stage img.preview")
        task = task_of(tab)
        window.forgive = AWAY
        server.close()
        tab.wait_for_selector("#server:not(:empty)", timeout=30_000)
        assert "does not answer" in tab.locator("#server").inner_text()
        generate(tab, "nothing is sent")
        tab.wait_for_selector("#error:not([hidden])")
        assert "nothing was sent" in tab.locator("#error-text").inner_text()
        server.start()
        tab.wait_for_selector("#server:empty", state="attached", timeout=30_000)
        assert tab.locator("#error").is_hidden()  # what it said is not so any more
        wait_state(tab, "done")
        assert task_of(tab) == task
        assert len(server.pool.view(task).images) == 3
        tab.wait_for_function("() => document.querySelectorAll('#strip .place img').length === 3")
        assert tab.locator("#strip .lost").count() == 0  # asked for again
        window.forgive = ""

        window.forgive = AWAY
        server.close()
        generate(tab, "quick hills that must not get lost")  # before the page knows
        tab.wait_for_selector("#error:not([hidden])")
        assert "nothing was sent" in tab.locator("#error-text").inner_text()
        assert tab.locator("#prompt textarea").input_value() == "quick hills that must not get lost"
        assert tab.locator(".toast-body").count() == 0
        server.start()
        tab.wait_for_selector("#server:empty", state="attached", timeout=30_000)
        assert task_of(tab) == task
        tab.locator("#generate").click()
        wait_next(tab, task, "done")
    finally:
        server.close()


def test_a_picture_that_did_not_come_is_asked_for_again(visit):
    window = visit(forgive="ERR_FAILED")
    tab = window.page
    tab.route("**/api/images/*/0", lambda route: route.abort(), times=2)
    generate(tab, "quick hills", pictures=1)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    tab.wait_for_selector("#strip .place[aria-current='true']")


def test_the_side_waits_for_the_restored_form_but_not_for_ever(visit):
    window = visit()
    tab = window.page
    for answered in (True, False):
        held = []
        tab.route("**/run/predict", lambda route: held.append(route))  # noqa: B023, PLW0108
        tab.reload()
        tab.wait_for_function("() => document.querySelector('#make')?.children.length === 2")
        assert tab.locator("#side").evaluate("(side) => side.inert")
        if answered:
            held[0].continue_()
            ready(tab)
        else:
            window.forgive = "500"
            held[0].fulfill(status=500, body="{}")
        patience = 1_000 if answered else 8_000  # after four seconds it opens whatever happened
        tab.wait_for_function("() => !document.querySelector('#side').inert", timeout=patience)
        tab.unroute("**/run/predict")
        before = task_of(tab)
        generate(tab, "quick hills", pictures=1)
        wait_next(tab, before, "done")


def test_an_unknown_task_or_an_answer_that_is_none_leaves_a_usable_page(visit, server):
    window = visit(address=f"{server.url}/#task=abcdefgh", forgive="404")
    tab = window.page
    tab.wait_for_selector("#error:not([hidden])")
    assert "not known" in tab.locator("#error-text").inner_text()
    window.forgive = ""
    assert tab.evaluate("location.hash") == ""
    generate(tab, "quick hills", pictures=1)
    wait_state(tab, "done")
    assert tab.locator("#error").is_hidden()
    before = task_of(tab)
    window.forgive = "500"
    tab.route("**/run/predict", lambda route: route.fulfill(status=500, body="{}"))
    generate(tab, "hills")
    tab.wait_for_selector("#error:not([hidden])", timeout=5_000)
    assert "may be on their way" in tab.locator("#error-text").inner_text()
    tab.unroute("**/run/predict")
    window.forgive = ""
    generate(tab, "quick hills", pictures=1)
    wait_next(tab, before, "done")
    assert tab.locator("#error").is_hidden()


def test_without_a_model_the_page_says_what_to_put_where_and_keeps_it_in_sight(visit, tmp_path):
    server = RunningPage(tmp_path, worker="modules.async_worker:worker_main", checkpoints=())
    try:
        window = visit(at=server)
        tab = window.page
        tab.wait_for_selector("#no-model:not([hidden])")
        said = tab.locator("#no-model").inner_text()
        assert "models/checkpoints" in said
        known = tab.locator("#no-model li", has_text="sd_xl_base_1.0.safetensors")
        assert "6.9 GB · save into models/checkpoints" in known.inner_text()
        link = known.locator("a").get_attribute("href")
        assert link.startswith("https://")
        assert link.endswith("/sd_xl_base_1.0.safetensors")
        assert str(tmp_path) not in tab.content()
        tab.locator("#look-again").click()
        tab.wait_for_selector("#look-result:not(:empty)")
        generate(tab, "hills")
        wait_state(tab, "failed")
        tab.wait_for_selector("#error:not([hidden])")
        assert "no model" in tab.locator("#error-text").inner_text()
        assert tab.locator("#no-model").is_visible()
        server.add_checkpoint("late.safetensors")
        tab.locator("#look-again").click()
        wait_state(tab, "idle")
        tab.wait_for_selector("#idle:not([hidden])")
        assert tab.locator("#error").is_hidden()
        assert tab.locator("#prompt textarea").input_value() == "hills"
        tab.get_by_role("tab", name="Models").click()
        tab.wait_for_function(
            "() => document.querySelector('#checkpoint input').value.includes('late.safetensors')"
        )
        window.forgive = "ERR_CONNECTION"  # the server goes while the page still asks
    finally:
        server.close()
