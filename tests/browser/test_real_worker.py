"""The page with the real worker: a tiny random checkpoint, and the picture in the README."""

import os
from pathlib import Path

import pytest

from tests.browser.conftest import SCREENSHOTS, generate, task_of
from tests.support.page_server import REPOSITORY, RunningPage
from tests.support.tiny_checkpoint import write_tiny_sdxl

WORKER = "modules.async_worker:worker_main"
BUILTIN = sorted((REPOSITORY / "models" / "builtin").glob("*.safetensors"))
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


def test_the_page_for_the_readme(visit, tmp_path):
    """docs/page.png is this picture of the built-in model's work; EASEL_WRITE_DOCS=1 renews it."""
    if not BUILTIN:
        pytest.skip("no built-in model in models/builtin to paint with")
    server = RunningPage(tmp_path, worker=WORKER, checkpoints=(), root=REPOSITORY)
    try:
        tab = visit(at=server).page
        generate(tab, "a green mushroom on a pink background", pictures=4, seed=1)
        tab.wait_for_selector("#stage[data-state=done]", timeout=10 * MINUTE_MS)
        tab.wait_for_selector("#stage img.result")
        tab.mouse.move(0, 0)
        tab.wait_for_timeout(3000)
        SCREENSHOTS.mkdir(exist_ok=True)
        target = SCREENSHOTS / "page.png"
        if os.environ.get("EASEL_WRITE_DOCS"):
            target = REPOSITORY / "docs" / "page.png"
        tab.screenshot(path=target)
        assert Path(target).stat().st_size > 20_000
    finally:
        server.close()
