"""Styles, LoRAs and the prompt inspector, as a visitor uses them."""

import json

from tests.browser.conftest import SCREENSHOTS, generate, ready, task_of

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
    tab.wait_for_selector("#style-list .style:text-is('My Haze')")
    assert listed.first.inner_text() == "My Haze"  # the user's own come first
    assert listed.count() == 263
    photograph(tab, "styles-desktop")

    tab.locator("#style-search").fill("gothic cathedral")
    assert tab.locator("#style-list .style").first.inner_text() == "Gothic Cathedral"
    tab.keyboard.press("Enter")
    tab.locator("#style-search").fill("haze")
    tab.locator("#style-list .style:text-is('My Haze')").click()
    tab.locator("#random-style").click()
    tab.locator("#style-search").fill("")
    assert chosen_styles(tab) == ["Gothic Cathedral", "My Haze", "Random style"]
    assert tab.locator("#random-style").get_attribute("aria-pressed") == "true"
    photograph(tab, "styles-chosen-desktop")

    tab.wait_for_function("() => sessionStorage['easel.form']?.includes('random')")
    tab.reload()
    ready(tab)
    tab.locator("#tab-styles").click()
    tab.wait_for_selector("#style-chosen :nth-child(3)")
    assert chosen_styles(tab) == ["Gothic Cathedral", "My Haze", "Random style"]
    generate(tab, "quick hills")
    tab.wait_for_function("() => location.hash")
    styles = server.pool.view(task_of(tab)).spec.styles
    assert styles == ("arch-gothic", "My Haze", "random")

    tab.locator("#style-chosen button").first.click()
    assert chosen_styles(tab) == ["My Haze", "Random style"]
    tab.locator("#clear-styles").click()
    assert chosen_styles(tab) == []
    assert tab.locator("#style-note").is_visible()
    tab.wait_for_function("() => JSON.parse(sessionStorage['easel.form']).styles === '[]'")


def test_styles_fit_on_a_phone(visit):
    tab = visit(**PHONE).page
    tab.locator("#advanced-label").click()
    tab.locator("#tab-styles").click()
    tab.wait_for_selector("#style-list .style")
    tab.locator("#random-style").click()
    tab.locator("#style-list .style:text-is('Gothic Cathedral')").click()
    photograph(tab, "styles-phone")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#styles button')].filter(b => b.offsetWidth)"
        ".map(b => b.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 44
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    box = "#styles-value :is(textarea, input)"
    held = json.loads(tab.evaluate(f"document.querySelector('{box}').value"))
    assert held == ["random", "arch-gothic"]
