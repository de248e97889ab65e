"""The page with the real worker: a tiny random checkpoint, and the model that ships, with words
and with pictures."""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from extras.preprocessors import canny_pyramid
from extras.training import picturebook
from extras.training.detector import load_detector
from extras.training.evaluate import followed
from extras.training.facts import readings, right
from extras.training.scenes.scene import Scene, Thing
from modules.gallery.inputs import InputStore
from tests.browser.conftest import SCREENSHOTS, generate, task_of, wait_next
from tests.browser.pictures import drop, encoded, filled, open_drawer, slide
from tests.support.page_server import REPOSITORY, RunningPage
from tests.support.tiny_checkpoint import write_tiny_sdxl

WORKER = "modules.async_worker:worker_main"
MINUTE_MS = 60_000
PAGES = (
    Scene(things=(Thing(subject="tree", color="green", scale="large"),), place="desert", seed=3,
          size=(128, 128)),
    Scene(things=(Thing(subject="fish", color="orange", scale="large"),), place="underwater",
          style="watercolor", seed=5, size=(128, 128)),
    Scene(things=(Thing(subject="star", color="yellow", scale="large"),), place_color="purple",
          style="crayon", seed=2, size=(128, 128)),
)  # fmt: skip


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


# --- Pictures that steer it ----------------------------------------------------------------


def page(scene: Scene) -> np.ndarray:
    return picturebook.draw_scene(scene).image


def dropped(tab: Any, *pictures: np.ndarray) -> None:
    """Open the slots and drop a picture into each."""
    open_drawer(tab)
    for number, picture in enumerate(pictures, start=1):
        name = f"{number}.png"
        drop(tab, f"#ip-slot-{number}", (name, "image/png", encoded(Image.fromarray(picture))))
        filled(tab, number)


def painted_after(tab: Any, server: RunningPage, prompt: str = "", seed: int = 1) -> np.ndarray:
    """Press Generate: the picture that comes, uint8 (H, W, 3)."""
    before = task_of(tab)
    generate(tab, prompt, pictures=1, seed=seed)
    wait_next(tab, before, "done")
    (path,) = server.settings.output_path.rglob(f"*{task_of(tab)}_0.png")
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def color(picture: np.ndarray) -> np.ndarray:
    """The mean of its pixels, in 0..255."""
    return picture.reshape(-1, 3).mean(axis=0)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """How far two pictures' colours lie apart on a grid of four by four, in 0..255."""
    small = [
        np.asarray(Image.fromarray(picture).resize((4, 4), Image.Resampling.BOX), np.float32)
        for picture in (one, other)
    ]
    return float(np.abs(small[0] - small[1]).mean())


def judged(picture: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Whether the subject, its colour, the place and the style are those of the scene, as the
    detector sees them."""
    detector = load_detector(REPOSITORY / "extras" / "training", torch.device("cpu"))
    return right(readings(detector.tell(picture))[0], scene)


def strip(rows: Sequence[Sequence[np.ndarray]], side: int = 128) -> Image.Image:
    sheet = Image.new("RGB", (len(rows[0]) * (side + 8) - 8, len(rows) * (side + 8) - 8), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (x * (side + 8), y * (side + 8)))
    return sheet


def test_an_image_prompt_without_words_counts_by_its_weight(visit, fresh_clone):
    """docs/image-prompt-weights.png: each picture, then what is painted after it by weight."""
    tab = visit(at=fresh_clone).page
    dropped(tab, page(PAGES[0]))
    slide(tab, "#ip-stop-1", 1.0)
    for_docs = bool(os.environ.get("EASEL_WRITE_DOCS"))
    weights = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5) if for_docs else (0.0, 0.6, 1.5)
    rows = []
    for scene in PAGES:
        reference = page(scene)
        if scene is not PAGES[0]:
            drop(tab, "#ip-slot-1", ("next.png", "image/png", encoded(Image.fromarray(reference))))
            filled(tab, 1)
        made = []
        for weight in weights:
            slide(tab, "#ip-weight-1", weight)
            made.append(painted_after(tab, fresh_clone))
        assert not judged(made[0], scene)["subject"]  # at weight 0
        assert all(judged(made[-1], scene).values())
        far = [apart(picture, reference) for picture in made]
        assert max(far[weights.index(0.6) :]) < 0.6 * far[0]
        rows.append([reference, *made])
    strip(rows).save(shown_in("image-prompt-weights.png"))


def test_regions_are_styled_each_by_its_picture(visit, fresh_clone):
    tab = visit(at=fresh_clone).page
    colors = ("red", "blue")
    pictures = [page(Scene(things=(), place_color=c, size=(128, 128))) for c in colors]
    dropped(tab, *pictures)
    for number, half in enumerate(("Left half", "Right half"), start=1):
        slide(tab, f"#ip-stop-{number}", 1.0)
        slide(tab, f"#ip-weight-{number}", 1.5)
        tab.locator(f"#ip-slot-{number} .ip-adjust").click()
        tab.locator("#region-tools button", has_text=half).click()
        tab.locator("#adjust-done").click()
        tab.wait_for_selector(f"#ip-slot-{number} .ip-adjust.on")
    made = painted_after(tab, fresh_clone)
    left, right = color(made[:, :48]), color(made[:, -48:])
    for side, own, other in ((left, 0, 1), (right, 1, 0)):
        wanted, unwanted = (color(pictures[i]) for i in (own, other))
        assert np.abs(side - wanted).sum() < np.abs(side - unwanted).sum()


def test_a_painted_region_takes_the_picture_s_colour_and_the_rest_keeps_its_own(visit, fresh_clone):
    """docs/image-prompt-region-painted.png: the reference, and what is painted without and with
    it."""
    tab = visit(at=fresh_clone).page
    words = "a blue boat on the sea"
    free = painted_after(tab, fresh_clone, words)
    reference = page(Scene(things=(), place_color="red", size=(128, 128)))
    dropped(tab, reference)
    slide(tab, "#ip-stop-1", 1.0)
    slide(tab, "#ip-weight-1", 1.5)
    tab.locator("#ip-slot-1 .ip-adjust").click()
    tab.wait_for_selector("#adjust-frame[data-ready=true]")
    box = tab.locator("#adjust canvas").bounding_box()
    for y in (0.05, 0.15, 0.25, 0.35):
        tab.mouse.move(box["x"] + 4, box["y"] + y * box["height"])
        tab.mouse.down()
        tab.mouse.move(box["x"] + box["width"] - 4, box["y"] + y * box["height"], steps=4)
        tab.mouse.up()
    tab.locator("#adjust-done").click()
    tab.wait_for_selector("#ip-slot-1 .ip-adjust.on")
    led = painted_after(tab, fresh_clone, words)
    (prompt,) = fresh_clone.pool.view(task_of(tab)).spec.image_prompts
    store = InputStore(fresh_clone.settings.inputs_path)
    region = cv2.resize(store.read(prompt.region)[..., 0], (128, 128)) > 127
    margin = np.ones((17, 17), np.uint8)  # the autoencoder's pixels are eight wide
    inside = cv2.erode(region.astype(np.uint8), margin) > 0
    outside = cv2.dilate(region.astype(np.uint8), margin) == 0
    assert min(inside.mean(), outside.mean()) > 0.15
    strip([[reference, free, led]]).save(shown_in("image-prompt-region-painted.png"))

    def nearer(area: np.ndarray) -> float:
        """How much of the way from what is free to the reference's colour."""
        before, after = (np.abs(color(p[area]) - color(reference)).sum() for p in (free, led))
        return 1.0 - after / before

    assert nearer(inside) > 0.5
    assert abs(nearer(outside)) < 0.5 * nearer(inside)  # a picture is of one piece


def test_a_map_of_edges_is_followed(visit, fresh_clone):
    tab = visit(at=fresh_clone).page
    scene = PAGES[0]
    reference, words = page(scene), "a green tree in the desert"
    free = painted_after(tab, fresh_clone, words)
    dropped(tab, reference)
    tab.locator("#ip-type-1").select_option("canny")
    slide(tab, "#ip-stop-1", 1.0)
    led = painted_after(tab, fresh_clone, words)
    given = canny_pyramid(reference)
    assert followed(led, given) > 1.2 * followed(free, given)
