"""What a visitor does with the page, in a real browser."""

import json
import re

from tests.browser.conftest import generate, ready, task_of, wait_next, wait_state
from tests.support.page_server import RunningPage


def test_a_prompt_becomes_pictures(visit, server):
    tab = visit().page
    for how in ("click", "Control+Enter", "Meta+Enter"):
        before = task_of(tab)
        tab.locator("#prompt textarea").fill("evening hills quick")
        if how == "click":
            tab.locator("#generate").click()
        else:
            tab.keyboard.press(how)
        wait_next(tab, before, "done")
        require_pictures(server, tab)


def require_pictures(server, tab):
    """The task that the tab follows became two pictures, the last of them on the stage."""
    tab.wait_for_selector(f"#stage img.result[src*='{task_of(tab)}']")
    assert tab.locator("#stage img").count() == 1
    view = server.pool.view(task_of(tab))
    assert view.spec.prompt == "evening hills quick"
    shown = tab.locator("#stage img").get_attribute("src")
    assert shown == view.images[-1].url
    natural = tab.evaluate("[...document.querySelectorAll('#stage img')].map(i => i.naturalWidth)")
    assert natural == [view.images[-1].width]
    assert tab.locator("#strip .place img").count() >= len(view.images) == 2
    tab.wait_for_function("() => document.querySelector('#strip .place img').naturalWidth > 0")
    sides = tab.evaluate(
        """() => [...document.querySelectorAll("#strip .place img")].flatMap(
             (image) => [image.naturalWidth, image.naturalHeight])"""
    )
    assert 0 < max(sides) <= 320  # thumbnails


def test_progress_and_preview_appear_before_the_result(visit, server):
    tab = visit().page
    generate(tab, "slow hills holds", pictures=2)
    tab.wait_for_selector("#stage img.preview")
    assert tab.locator("#stage img").get_attribute("src").startswith("data:image/jpeg")
    words = tab.locator("#progress-words").inner_text()
    assert re.fullmatch(r"picture 1 of 2 · step \d+/30 · \d+ s left", words)
    assert 0 < int(tab.locator("#progress").get_attribute("aria-valuenow")) < 100
    assert tab.locator("#strip .place").nth(1).is_disabled()  # the second picture's place
    assert tab.locator("#generate").inner_text() == "Add to queue"
    first = tab.locator("#stage img").get_attribute("src")
    server.release(task_of(tab))
    tab.wait_for_function("first => document.querySelector('#stage img').src !== first", arg=first)
    wait_state(tab, "done")
    assert tab.locator("#generate").inner_text() == "Generate"


def test_modes_tell_their_time_once_it_is_known_and_never_that_of_loading(visit, server):
    tab = visit().page
    about = "() => document.querySelector('#make').innerText.match(/about (\\d+) s/)?.[1]"

    def end():
        """Wait for the task's end; the forecast that the page asks for then, once it is shown."""
        task = task_of(tab)

        def is_anew(asked):
            return asked.url.endswith("/api/forecast") and server.pool.view(task).state == "done"

        with tab.expect_request(is_anew) as asked:
            wait_state(tab, "done")
        seconds = asked.value.response().json()["picture"]
        shown = f"() => ({about})() === '{max(1, round(seconds))}'"
        tab.wait_for_function(shown)
        return seconds

    tab.locator("#size label", has_text="768×1344").click()  # which no other test paints
    generate(tab, "hills", pictures=1)
    wait_state(tab, "running")
    before = end()
    times = "labels => labels.map(label => label.dataset.time)"
    shown = tab.locator("#performance label").evaluate_all(times)
    assert all(re.fullmatch(r"~\d+ (s|min \d+ s)", time) for time in shown), shown
    generate(tab, "quick hills that loads", pictures=1)
    wait_state(tab, "loading")
    assert end() < before + 1  # loading takes two


def test_nothing_is_said_twice(visit):
    tab, other = visit().page, visit().page

    def times(page, words):
        seen = [page.locator(part).inner_text().lower() for part in ("#stage", "#progress")]
        return sum(text.count(words) for text in seen)

    generate(tab, "everyone waits")
    wait_state(tab, "running")
    generate(other, "hills that loads", pictures=1)
    wait_state(other, "queued")
    said = times(tab, "starting"), times(other, "in the queue")
    tab.locator("#stop").click()
    wait_state(tab, "stopped")
    assert (*said, times(tab, "stopped before")) == (1, 1, 1)
    other.wait_for_function("() => / %$/.test(document.querySelector('#progress-words').innerText)")
    assert times(other, "landscape.safetensors") == 1
    other.locator("#stop").click()
    wait_state(other, "stopped")


def test_a_forecast_is_told_in_hours_and_asked_with_the_refiner(visit):
    tab = visit().page

    def take_long(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"picture": 3725.0, "memory": 5.2e9})

    tab.route("**/api/forecast", take_long)
    tab.locator("#image-number input[type=number]").fill("4")
    tab.locator("#size label", has_text="832×1216").click()
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('about 4 h 8')")
    assert "4 h 8 min · 5.2 GB of memory" in tab.locator("#make").inner_text()
    tab.unroute_all(behavior="wait")
    tab.locator("#tab-advanced").click()
    tab.locator("#refiner-switch input[type=number]").fill("0.6")
    with tab.expect_request(lambda r: "forecast" in r.url and '_switch":7' in r.post_data) as asked:
        tab.locator("#overwrite-switch").locator("textarea, input").fill("7")
    sent = asked.value.post_data_json
    assert (sent["refiner"], sent["refiner_switch"], sent["image_prompts"]) == ("", 0.6, [])


def test_a_reload_goes_on_showing_the_running_task(visit, server):
    tab = visit().page
    generate(tab, "hills that stay holds", pictures=2)
    tab.wait_for_selector("#stage img.preview")
    task = task_of(tab)
    tab.reload()
    ready(tab)
    wait_state(tab, "running")
    assert task_of(tab) == task
    assert tab.locator("#prompt textarea").input_value() == "hills that stay holds"
    server.release(task)
    tab.wait_for_selector("#stage img.preview")
    wait_state(tab, "done")
    assert len(server.pool.view(task).images) == 2


def test_a_reload_keeps_the_settings_that_were_sent(visit):
    tab = visit().page
    tab.locator("#negative-prompt textarea").fill("fog")
    tab.locator("#size label", has_text="832×1216").click()
    generate(tab, "quick hills", pictures=3, seed=2**60 + 1)
    wait_state(tab, "done")
    tab.reload()
    ready(tab)
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('832')")
    assert tab.locator("#negative-prompt textarea").input_value() == "fog"
    assert tab.locator("#image-number input[type=number]").input_value() == "3"
    assert tab.locator("#seed").locator("input, textarea").input_value() == str(2**60 + 1)
    assert not tab.locator("#seed-random input").is_checked()
    assert "3 pictures · 832 × 1216 · 30 steps" in tab.locator("#make").inner_text()


def test_a_reload_keeps_what_was_not_sent_yet(visit):
    tab = visit().page
    tab.locator("#negative-prompt textarea").fill("fog")
    tab.locator("#size label", has_text="832×1216").click()
    tab.locator("#seed-random input").uncheck()
    tab.locator("#seed").locator("input, textarea").fill(str(2**60 + 1))
    tab.get_by_role("tab", name="Advanced").click()
    tab.locator("#width").locator("input, textarea").fill("100")  # a height is still to come
    tab.locator("#guidance input[type=number]").fill("6.5")
    tab.locator("#prompt textarea").fill("hills that nobody sent")
    tab.wait_for_function("() => sessionStorage['easel.form']?.includes('nobody sent')")
    for _ in range(2):  # the second time, nothing was touched in between
        tab.reload()
        ready(tab)
        tab.wait_for_function("() => document.querySelector('#prompt textarea').value")
        assert tab.locator("#prompt textarea").input_value() == "hills that nobody sent"
        tab.wait_for_function(
            "() => document.querySelector('#size input:checked')"
            "?.parentElement.textContent.includes('832')"
        )
        assert tab.locator("#negative-prompt textarea").input_value() == "fog"
        assert tab.locator("#seed").locator("input, textarea").input_value() == str(2**60 + 1)
        assert not tab.locator("#seed-random input").is_checked()
        assert tab.locator("#width").locator("input, textarea").input_value() == "100"
        assert tab.locator("#guidance input[type=number]").input_value() == "6.5"


def test_another_device_attaches_by_the_address(visit, server):
    tab = visit().page
    generate(tab, "hills for two holds", pictures=1)
    wait_state(tab, "running")
    phone = visit(
        address=tab.evaluate("location.href"),
        viewport={"width": 390, "height": 844},
        has_touch=True,
    ).page
    wait_state(phone, "running")
    assert phone.locator("#prompt textarea").input_value() == "hills for two holds"
    server.release(task_of(tab))
    wait_state(phone, "done")
    phone.wait_for_selector("#stage img.result")


def test_two_tabs_never_mix_their_tasks(visit):
    window = visit()
    first, second = window.page, window.new_tab()
    generate(first, "first hills", pictures=2)
    generate(second, "second quick hills", pictures=1)
    wait_state(second, "queued", "running", "done")
    assert task_of(first) != task_of(second)
    wait_state(first, "done")
    wait_state(second, "done")
    for tab in (first, second):
        tab.wait_for_selector("#stage img.result")
        source = tab.locator("#stage img").get_attribute("src")
        assert source.startswith(f"/api/images/{task_of(tab)}/")
    assert first.locator("#stage img").get_attribute("alt") == "first hills"
    assert second.locator("#stage img").get_attribute("alt") == "second quick hills"


def test_more_windows_than_connections_all_follow(visit):
    window = visit()
    first = window.page
    generate(first, "everyone waits")
    wait_state(first, "running")
    address = f"{window.url}#task={task_of(first)}"
    tabs = [first, *(window.new_tab(address) for _ in range(6))]  # a browser has six
    assert all(tab.evaluate("!document.hidden") for tab in tabs)
    for tab in tabs:
        wait_state(tab, "running")
    tabs[-1].locator("#stop").click()
    for tab in tabs:
        wait_state(tab, "stopped")


def test_stop_keeps_what_is_finished_and_skip_ends_one_picture_only(visit, server):
    tab = visit().page
    generate(tab, "quick hills holds-second", pictures=4)
    tab.wait_for_selector("#stage img.preview")
    tab.wait_for_selector(f"#strip img[src^='/api/images/{task_of(tab)}/0']")
    answer = tab.evaluate(
        """() => {
          const start = performance.now();
          document.querySelector("#stop").click();
          return [document.querySelector("#progress-words").textContent, performance.now() - start];
        }"""
    )
    assert answer[0] == "stopping…"
    assert answer[1] < 100
    wait_state(tab, "stopped")
    images = server.pool.view(task_of(tab)).images
    assert 1 <= len(images) < 4
    assert f"{len(images)} of 4 pictures are kept" in tab.locator("#progress-words").inner_text()
    tab.wait_for_selector("#stage img.result")
    assert tab.locator("#stop").is_disabled()
    generate(tab, "quick hills holds", pictures=2)  # Skip ends one picture only
    tab.wait_for_selector("#stage img.preview")
    tab.locator("#skip").click()
    wait_state(tab, "done")
    assert [image.index for image in server.pool.view(task_of(tab)).images] == [1]


def test_a_failure_is_told_in_one_sentence(visit):
    tab = visit().page
    generate(tab, "this fails")
    wait_state(tab, "failed")
    said = tab.locator("#error").inner_text()
    assert "castle.safetensors" in said
    assert "Traceback" not in said
    generate(tab, "quick hills", pictures=1)  # and the next task runs
    wait_state(tab, "done")
    assert tab.locator("#error").is_hidden()


def test_markup_in_a_prompt_or_a_notice_stays_text(visit, server):
    notice = "No preset <b>here</b>."
    server.context.notices.put("test", notice)
    tab = visit().page
    try:
        tab.locator("#notices", has_text=notice).wait_for()
    finally:
        server.context.notices.drop("test")
    prompt = "<img src=x onerror=alert(1)> & <b>hills</b> quick"
    generate(tab, prompt, pictures=1)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    assert tab.locator("#stage img").get_attribute("alt") == prompt
    assert tab.locator("img[src=x]").count() == 0
    tab.wait_for_function("() => document.querySelector('#notices').textContent === ''")
    generate(tab, prompt + " waits")
    generate(tab, prompt)
    tab.wait_for_selector("#queue .chip")
    assert tab.locator("#queue b").count() == 0
    tab.locator("#queue .chip button").click()
    tab.locator("#stop").click()
    wait_state(tab, "stopped")


def test_a_wrong_size_gets_the_sentence_of_the_schema_and_a_chosen_one_its_place(visit, server):
    tab = visit().page
    tab.get_by_role("tab", name="Advanced").click()
    tab.locator("#width input").fill("1001")
    tab.locator("#height input").fill("1000")
    generate(tab, "hills")
    tab.wait_for_selector("#error:not([hidden])")
    assert tab.locator("#error-text").inner_text() == "Width must be a multiple of 8."
    assert tab.locator("#stage").get_attribute("data-state") == "idle"
    tab.locator("#error-close").click()
    assert tab.locator("#error").is_hidden()
    tab.locator("#width input").fill("512")
    tab.locator("#height input").fill("512")
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('512 × 512')")
    tab.locator("#tab-settings").click()
    tab.locator("#size label", has_text="832×1216").click()
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('832 × 1216')")
    assert tab.locator("#width input").input_value() == ""
    generate(tab, "quick hills", pictures=1)
    wait_state(tab, "done")
    image = server.pool.view(task_of(tab)).images[0]
    assert (image.width, image.height) == (832, 1216)


def test_a_second_press_queues_and_is_followed_next(visit, server):
    window = visit()
    tab = window.page
    generate(tab, "waits here")
    wait_state(tab, "running", "loading")
    first = task_of(tab)
    generate(tab, "quick hills after", pictures=1)
    tab.wait_for_selector("#queue .chip .number:text-is('1')")
    assert "quick hills after" in tab.locator("#queue").inner_text()
    assert task_of(tab) == first
    window.forgive = "ERR_FAILED"
    tab.route("**/api/tasks/*/stop", lambda route: route.abort())
    tab.locator("#queue .chip button").click()
    tab.wait_for_selector("#error:not([hidden])")
    assert tab.locator("#queue .chip").count() == 1  # it waits still
    tab.unroute("**/api/tasks/*/stop")
    window.forgive = ""
    tab.locator("#prompt textarea").fill("")
    tab.locator("#stop").click()
    wait_state(tab, "done")
    assert task_of(tab) != first
    assert tab.locator("#prompt textarea").input_value() == ""  # emptied to write another
    assert server.pool.view(first).state == "stopped"
    tab.wait_for_selector("#stage img.result")
    assert tab.locator("#stage img").get_attribute("alt") == "quick hills after"
    assert tab.locator("#queue .chip").count() == 0


def test_quick_presses_are_all_taken_in_and_can_be_taken_out(visit, server):
    tab = visit().page
    generate(tab, "waits here")
    wait_state(tab, "running", "loading")
    before = server.store.queue_length()
    tab.locator("#prompt textarea").fill("quick hills")
    tab.evaluate(
        "() => { for (let i = 0; i < 3; i++) document.querySelector('#generate').click(); }"
    )
    tab.wait_for_function("() => document.querySelectorAll('#queue .chip').length === 3")
    assert server.store.queue_length() == before + 3
    waiting = json.loads(tab.evaluate("sessionStorage['easel.waiting']"))
    assert len(waiting) == 3
    for left in (2, 1, 0):
        tab.locator("#queue .chip button").first.click()
        tab.wait_for_function(
            "(left) => document.querySelectorAll('#queue .chip').length === left", arg=left
        )
    view = "(id) => fetch(`/api/tasks/${id}`).then((answer) => answer.json())"
    stopped = f"Promise.all(ids.map({view})).then((all) => all.every((v) => v.state === 'stopped'))"
    tab.wait_for_function(f"(ids) => {stopped}", arg=waiting)
    assert all(server.pool.view(task).state == "stopped" for task in waiting)
    tab.locator("#stop").click()
    wait_state(tab, "stopped")


def test_the_worker_dies_and_the_page_says_so(visit):
    tab = visit().page
    generate(tab, "hills where it crashes", pictures=1)
    tab.wait_for_function(
        "() => /worker/i.test(document.querySelector('#main').innerText)", timeout=15_000
    )
    assert tab.locator("#main").inner_text().count("The worker was killed") == 1
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")


def test_a_picture_gives_its_settings_and_seed_and_opens_large(visit, server):
    window = visit(permissions=["clipboard-read", "clipboard-write"])
    tab = window.page
    generate(tab, "quick hills", pictures=2, seed=2**62 + 3)
    wait_state(tab, "done")
    tab.wait_for_selector("#stage img.result")
    tab.locator("#stage").hover()
    tab.locator("#copy-settings").click()
    tab.wait_for_selector("#said:not([hidden])")
    copied = json.loads(tab.evaluate("navigator.clipboard.readText()"))
    assert copied["prompt"] == "quick hills"
    assert copied["seed"] == 2**62 + 4
    assert (copied["image_count"], copied["first_index"]) == (1, 1)
    tab.locator("#seed-random input").check()
    tab.locator("#use-seed").click()
    assert tab.locator("#seed").locator("input, textarea").input_value() == str(2**62 + 4)
    assert not tab.locator("#seed-random input").is_checked()
    with tab.expect_download() as download:
        tab.locator("#download").click()
    assert download.value.suggested_filename.endswith(".png")
    tab.locator("#strip .place").first.click()
    tab.wait_for_selector("#stage img[src$='/0']")
    tab.locator("#stage img").click()
    assert tab.locator("#viewer img").get_attribute("src").endswith("/0")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#viewer img").get_attribute("src").endswith("/1")
    tab.keyboard.press("Escape")
    assert tab.locator("#viewer").is_hidden()
    tab.wait_for_selector("#stage img[src$='/1']")
    for key in ("Enter", " "):
        tab.locator("#stage img").press(key)
        tab.wait_for_selector("#viewer[open]")
        tab.keyboard.press("Escape")
        assert tab.locator("#viewer").is_hidden()


def test_the_arrows_pass_over_a_picture_that_is_not_in_the_outputs_folder(visit):
    window = visit()
    tab = window.page
    window.forgive = "404"
    tab.route("**/api/images/*/1?thumb=1", lambda route: route.fulfill(status=404))
    generate(tab, "quick hills", pictures=3)
    wait_state(tab, "done")
    tab.wait_for_selector("#strip .lost", state="attached")
    tab.locator("#strip .place").first.click()
    tab.wait_for_selector("#stage img[src$='/0']")
    tab.locator("#stage img").click()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#viewer img").get_attribute("src").endswith("/2")


def test_the_theme_can_be_switched_and_the_side_column_hidden(visit):
    tab = visit(color_scheme="light").page
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    tab.locator("#theme-toggle").click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate("document.body.classList.contains('dark')")
    tab.reload()
    ready(tab)
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    wide = tab.locator("#stage").bounding_box()["width"]
    tab.locator("#advanced-toggle").uncheck()
    tab.wait_for_function(
        "wide => document.querySelector('#stage').offsetWidth > wide + 300", arg=wide
    )
    assert tab.locator("#side").is_hidden()
    tab.locator("#advanced-toggle").check()
    assert tab.locator("#preset").is_visible()


def test_a_mode_greys_what_it_decides_and_a_preset_sets_it(visit):
    tab = visit().page
    tab.wait_for_selector("#steps.forced")  # the default preset is Speed
    assert "Steps 30" in tab.locator("#performance-note").inner_text()
    tab.locator("#performance label", has_text="Lightning").click()
    tab.wait_for_selector("#guidance.forced", state="attached")
    assert tab.locator("#negative-prompt").evaluate("box => box.inert && box.matches('.forced')")
    note = tab.locator("#performance-note").inner_text()
    assert "Steps 4" in note and "Guidance 1" in note
    assert "sdxl_lightning_4step_lora.safetensors" in note and "models/loras" in note
    assert "4 steps" in tab.locator("#make").inner_text()
    guidance = tab.locator("#guidance input[type=number]")
    assert guidance.input_value() == "4"  # it waits for another mode
    tab.locator("#performance label", has_text="Custom").click()
    tab.wait_for_selector("#steps:not(.forced)")
    assert tab.locator(".forced").count() == 0
    assert tab.locator("#performance-note").inner_text() == ""
    tab.locator("#steps input[type=number]").fill("9")
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('9 steps')")
    tab.locator("#preset input").click()
    tab.get_by_role("option", name="Default").click()
    tab.wait_for_function("() => document.querySelector('#make').innerText.includes('30 steps')")
    tab.locator("#preset input").click()
    tab.get_by_role("option", name="Fast").click()
    tab.wait_for_function("() => !document.querySelector('#make').innerText.includes('30 steps')")
    assert tab.locator("#prompt textarea").input_value() == ""
    require_few_steps(tab)


FEW_STEPS = (
    "sharpness guidance adaptive-cfg adm-positive adm-negative adm-end refiner refiner-switch "
    "sampler scheduler steps"
)
GREYED = """() => [...document.querySelectorAll('.forced')].filter((box) => box.inert).map((box) =>
  [box.id, box.querySelector('[data-testid=block-info]').dataset.forced ?? ''])"""


def require_few_steps(tab):
    """Every mode of few steps greys all that it decides, with its values."""
    lcm = {"sampler": "lcm", "scheduler": "lcm", "steps": "8"}
    lightning = {"sampler": "euler", "scheduler": "sgm_uniform", "steps": "4"}
    hyper = {"sampler": "dpmpp_sde_gpu", "scheduler": "karras", "steps": "4"}
    turbo = {"sampler": "euler_ancestral", "scheduler": "turbo", "steps": "4"}
    modes = {"Extreme Speed": lcm, "Lightning": lightning, "Hyper-SD": hyper, "Turbo": turbo}
    for title, values in modes.items():
        tab.locator("#performance label", has_text=title).click()
        tab.wait_for_function(
            "value => document.querySelector('#scheduler [data-testid=block-info]')"
            ".dataset.forced === `· ${value} in this mode`",
            arg=values["scheduler"],
        )
        greyed = dict(tab.evaluate(GREYED))
        assert greyed.keys() == {*FEW_STEPS.split(), "negative-prompt"}, title
        values |= {"guidance": "1", "sharpness": "0", "adm-end": "0", "refiner": "none"}
        told = {name: f"· {value} in this mode" for name, value in values.items()}
        assert {name: greyed[name] for name in told} == told
        note = tab.locator("#performance-note").inner_text()
        assert note.startswith("This mode decides what is greyed: "), title


def test_a_mode_of_ones_own_is_on_the_page_and_goes_with_the_request(visit, tmp_path):
    (tmp_path / "performance").mkdir()
    forced = {"cfg_scale": 3.0, "sampler": "euler"}
    mode = {"title": "My draft", "steps": 7, "forced": forced}
    (tmp_path / "performance" / "draft.json").write_text(json.dumps(mode))
    server = RunningPage(tmp_path)
    try:
        tab = visit(at=server).page
        tab.locator("#performance label", has_text="My draft").click()
        tab.wait_for_function(
            "() => document.querySelector('#performance-note').innerText.includes('Steps 7')"
        )
        assert dict(tab.evaluate(GREYED)).keys() == {"guidance", "sampler", "steps"}
        generate(tab, "quick hills", pictures=1)
        wait_state(tab, "done")
        resolved = server.store.get(task_of(tab)).resolved
        assert (resolved.steps, resolved.cfg_scale, resolved.sampler) == (7, 3.0, "euler")
    finally:
        server.close()


def wait_note(tab, words):
    """Until the note of the presets has `words`."""
    tab.wait_for_function(
        "words => document.querySelector('#preset-note').innerText.includes(words)", arg=words
    )


def test_a_preset_of_ones_own_and_the_way_back(visit, server):
    tab = visit().page
    tab.locator("#tab-advanced").click()
    tab.locator("#guidance input[type=number]").fill("6.5")
    tab.locator("#tab-settings").click()
    tab.locator("#prompt textarea").fill("my words")
    tab.locator("#preset-manage > button").click()
    tab.locator("#preset-name textarea, #preset-name input").fill("My look")
    tab.locator("#preset-save").click()
    wait_note(tab, "My look is saved.")
    assert tab.locator("#preset input").input_value() == "My look"
    assert server.context.presets["My look"].settings["cfg_scale"] == 6.5
    tab.locator("#preset-compare").click()
    wait_note(tab, "Everything is as the preset has it.")
    tab.locator("#tab-advanced").click()
    tab.locator("#sharpness input[type=number]").fill("3")
    tab.locator("#tab-settings").click()
    tab.locator("#preset-compare").click()
    wait_note(tab, "Changed: Sharpness 2.0 → 3.0.")
    tab.locator("#preset-name textarea, #preset-name input").fill("Our look")
    tab.locator("#preset-rename").click()
    wait_note(tab, "Our look is saved.")
    assert tab.locator("#preset input").input_value() == "Our look"
    assert tab.locator("#sharpness input[type=number]").input_value() == "3"
    assert "My look" not in server.context.presets
    tab.locator("#preset input").click()
    tab.get_by_role("option", name="Default").click()
    wait_note(tab, "6.5 →")
    assert tab.locator("#guidance input[type=number]").input_value() == "4"
    tab.locator("#preset-undo").click()
    tab.wait_for_function("() => document.querySelector('#guidance input').value === '6.5'")
    assert tab.locator("#prompt textarea").input_value() == "my words"
    assert tab.locator("#preset input").input_value() == "Our look"
    tab.reload()
    tab.wait_for_function("() => document.querySelector('#preset input')?.value === 'Our look'")
    tab.locator("#preset-manage > button").click()
    assert tab.locator("#preset-note").get_attribute("aria-live") == "polite"
    tab.locator("#preset-delete").click()
    tab.locator("#preset-gone").click()
    wait_note(tab, "The preset is deleted.")
    assert "Our look" not in server.context.presets
