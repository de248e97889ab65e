"""The model in models/builtin: it loads whole, and paints what it is told to."""

import cv2
import numpy as np
import pytest

from extras.training import picturebook
from extras.training.base_parts import MODEL_FILE
from extras.training.evaluate import over
from extras.training.painter import Order, Painter, PaintSettings
from extras.training.scenes.scene import Scene, Thing
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from tests.support.page_server import REPOSITORY

BUILTIN = REPOSITORY / "models" / "builtin"
BLUEPRINT = "easel-mini-blueprint.safetensors"
HALFTONE = "easel-mini-halftone.safetensors"
CHANNELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def painter() -> Painter:
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
    return Painter(BUILTIN, PaintSettings(steps=10), policy)


def test_nothing_is_missing_or_left_over(painter):
    for part in (painter.model.model, painter.clip, painter.vae):
        assert part.load_report == LoadReport()


def test_all_files_together_are_small():
    sizes = {file.name: file.stat().st_size for file in BUILTIN.glob("*.safetensors")}
    assert MODEL_FILE in sizes
    assert sum(sizes.values()) <= 80_000_000


def stands_out(painter: Painter, prompts: dict[str, str]) -> np.ndarray:
    """(len(prompts), 3): how far each channel is above the others on pictures of each prompt."""
    orders = [
        Order(prompt=prompt, seed=seed, size=painter.sizes[0])
        for prompt in prompts.values()
        for seed in range(4)
    ]
    means = np.stack([image.mean(axis=(0, 1)) for image in painter.paint(orders)])
    excess = means * 1.5 - means.sum(axis=1, keepdims=True) / 2
    return excess.reshape(len(prompts), 4, 3).mean(axis=1)


GROUNDS = {color: f"a cat on a {color} background" for color in CHANNELS}


@pytest.mark.parametrize("few_steps", [False, True])
def test_words_decide_the_colour_of_the_ground(painter, few_steps):
    """Each channel stands out most where its colour was asked for, by a tenth of the range."""
    excess = stands_out(painter.in_few_steps() if few_steps else painter, GROUNDS)
    for number in range(3):
        assert excess[number, number] > np.delete(excess[:, number], number).max() + 25


def test_the_look_of_blueprints_is_blue(painter):
    prompts = {"plain": "a cat", "red": GROUNDS["red"]}
    blue = CHANNELS.index("blue")
    looks = [stands_out(p, prompts)[:, blue] for p in (painter, painter.with_lora(BLUEPRINT))]
    assert (looks[1] > looks[0] + 20).all()


def test_the_look_of_halftones_is_brown(painter):
    """Of toned paper and brown ink, also where the ground would be blue."""
    prompts = {"plain": "a cat", "blue": GROUNDS["blue"]}
    looks = [stands_out(p, prompts) for p in (painter, painter.with_lora(HALFTONE))]
    red, blue = CHANNELS.index("red"), CHANNELS.index("blue")
    assert (looks[1][:, red] > looks[1][:, blue] + 20).all()
    assert looks[1][1, blue] < looks[0][1, blue] - 20


def test_inpainting_paints_what_is_asked_inside_the_mask_and_keeps_the_rest(painter):
    cat = Thing(subject="cat", color="black")
    scene = Scene(things=(cat,), place="plain", place_color="white", size=painter.sizes[0])
    page = picturebook.draw_scene(scene)
    mask = over(page.truth.boxes[0], page.size)
    prompt = "a red heart on a white background, flat illustration"
    orders = [
        Order(prompt=prompt, seed=seed, size=page.size, page=page.image, mask=mask)
        for seed in range(3)
    ]
    back = painter.round_trip(page.image[None])[0].numpy() * 255.0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((17, 17), np.uint8)) == 0
    for image in painter.paint(orders):
        change = image - back
        assert np.abs(change[outside]).mean() < 6
        assert np.abs(change[outside]).max() < 20
        red, green, blue = change[mask].mean(axis=0)
        assert red > max(green, blue) + 40
