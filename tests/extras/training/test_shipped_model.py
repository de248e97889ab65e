"""The model in models/builtin: it loads whole, and paints what it is told to."""

import numpy as np
import pytest

from extras.training.base_parts import MODEL_FILE
from extras.training.painter import Order, Painter, PaintSettings
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from tests.support.page_server import REPOSITORY

BUILTIN = REPOSITORY / "models" / "builtin"
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


def test_words_decide_the_colour_of_the_ground(painter):
    """Each channel stands out most where its colour was asked for, by a tenth of the range."""
    orders = [
        Order(prompt=f"a cat on a {color} background", seed=seed, size=painter.sizes[0])
        for color in CHANNELS
        for seed in range(4)
    ]
    means = np.stack([image.mean(axis=(0, 1)) for image in painter.paint(orders)])
    excess = (means * 1.5 - means.sum(axis=1, keepdims=True) / 2).reshape(3, 4, 3).mean(axis=1)
    for number in range(3):
        assert excess[number, number] > np.delete(excess[:, number], number).max() + 25
