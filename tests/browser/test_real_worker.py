"""The page with the real worker: a tiny random checkpoint, and the model that ships."""

import os
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.browser.conftest import SCREENSHOTS, generate, task_of, wait_next
from tests.support.page_server import REPOSITORY, RunningPage
from tests.support.tiny_checkpoint import write_tiny_sdxl

WORKER = "modules.async_worker:worker_main"
MINUTE_MS = 60_000


def test_a_checkpoint_offers_its_sizes_and_paints(visit, tmp_path):
    server = RunningPage(tmp_path, worker=WORKER, checkpoints=())
    try:
        metadata = {"easel.area": "4096", "easel.ratios": '["1:1"]'}
        write_tiny_sdxl(server.checkpoint_folder / "tiny.safetensors", metadata=metadata)
        tab = visit(at=server).page
        # The page asks for the checkpoint's sizes once it stands.
        sizes = "Array.from(document.querySelectorAll('#size label'), label => label.innerText)"
        tab.wait_for_function(f"() => {sizes}.join() === '64×64'")
        assert tab.locator("#more-sizes").is_hidden()
        tab.locator("#performance label", has_text="Custom").click()
        tab.locator("#steps:not(.forced) input[type=number]").fill("3")
        generate(tab, "a red house by a blue lake", pictures=1, seed=7)
        tab.wait_for_selector("#stage[data-state=done]", timeout=3 * MINUTE_MS)
        tab.wait_for_selector("#stage img.result")
        (image,) = server.pool.view(task_of(tab)).images
        assert (image.width, image.height, image.seed) == (64, 64, 7)
        assert tab.evaluate("document.querySelector('#stage img').naturalWidth") == 64
        assert len(list(server.settings.output_path.rglob("*.png"))) == 1
    finally:
        server.close()


@pytest.fixture(scope="module")
def fresh_clone(tmp_path_factory):
    """A served page with no model but the one that ships, and the worker that paints with it."""
    folder = tmp_path_factory.mktemp("clone")
    server = RunningPage(folder, worker=WORKER, checkpoints=(), root=REPOSITORY)
    yield server
    server.close()


def shown_in(name: str) -> Path:
    """Where a picture for people goes: into docs with EASEL_WRITE_DOCS=1."""
    SCREENSHOTS.mkdir(exist_ok=True)
    return (REPOSITORY / "docs" if os.environ.get("EASEL_WRITE_DOCS") else SCREENSHOTS) / name


def test_the_page_for_the_readme(visit, fresh_clone):
    """docs/page.png is this picture of the built-in model's work; EASEL_WRITE_DOCS=1 renews it."""
    tab = visit(at=fresh_clone).page
    pictures = 4 if os.environ.get("EASEL_WRITE_DOCS") else 1
    generate(tab, "a green mushroom on a pink background", pictures=pictures, seed=1)
    tab.wait_for_selector("#stage[data-state=done]", timeout=10 * MINUTE_MS)
    tab.wait_for_selector("#stage img.result")
    tab.mouse.move(0, 0)
    tab.wait_for_selector("#queue-count:empty", state="attached")
    target = shown_in("page.png")
    tab.screenshot(path=target)
    assert target.stat().st_size > 20_000


def test_two_words_and_three_styles_give_three_pictures(visit, fresh_clone):
    """What a newcomer does first; docs/styles.png shows the pictures."""
    tab = visit(at=fresh_clone).page
    tab.locator("#tab-styles").click()
    pictures = []
    for style in ("Watercolor", "Crayon", "Neon"):
        before = task_of(tab)
        tab.locator("#style-search").fill(f"Picture Book {style}")
        tab.locator(f"#style-list .style span:text-is('Picture Book {style}')").click()
        tab.locator("#tab-settings").click()
        generate(tab, "purple castle", pictures=1, seed=4)
        tab.locator("#tab-styles").click()
        tab.locator("#clear-styles").click()
        wait_next(tab, before, "done")
        view = fresh_clone.pool.view(task_of(tab))
        assert view.spec.styles == (f"picturebook-{style.lower()}",)
        (image,) = view.images
        assert image.seed == 4
        (path,) = fresh_clone.settings.output_path.rglob(f"*{task_of(tab)}_0.png")
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    sheet = Image.new("RGB", (3 * 264 - 8, 256), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((256, 256), Image.Resampling.BICUBIC), (number * 264, 0))
    sheet.save(shown_in("styles.png"))
    for one, other in combinations(pictures, 2):
        apart = ImageStat.Stat(ImageChops.difference(one, other)).mean
        assert sum(apart) / 3 > 20  # of 255
