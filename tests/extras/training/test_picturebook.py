"""The picture book: the same seed gives the same page, and the truth about it is true."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from extras.training import picturebook
from extras.training.picturebook import SIZES, Scene, Thing
from extras.training.scenes import places, subjects, vocabulary
from extras.training.scenes.scene import SceneTruth

ROOT = Path(__file__).parents[3]
DIGEST = (
    "import hashlib; from extras.training import picturebook as p; h = hashlib.sha256();"
    "[h.update(s.image.tobytes() + s.caption.encode()) for s in map(p.draw, range(12))];"
    "print(h.hexdigest())"
)


@pytest.fixture(scope="module")
def pages() -> list[picturebook.Sample]:
    return [picturebook.draw(seed) for seed in range(200, 320)]


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    here = hashlib.sha256()
    for seed in reversed(range(12)):  # order must not matter
        picturebook.draw(seed)
    for seed in range(12):
        sample = picturebook.draw(seed)
        here.update(sample.image.tobytes() + sample.caption.encode())
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert there.stdout.strip() == here.hexdigest()


def test_different_seeds_give_different_pictures(pages):
    assert len({page.image.tobytes() for page in pages}) == len(pages)


def test_the_vocabulary_is_as_large_as_promised():
    assert len(vocabulary.SUBJECTS) >= 24
    assert len(vocabulary.COLORS) >= 10
    assert len(vocabulary.PLACES) >= 8
    assert len(vocabulary.STYLES) >= 6
    assert set(subjects.DRAW) == set(vocabulary.SUBJECTS)
    assert set(places.DRAW) | {"plain"} == set(vocabulary.PLACES)


def test_every_word_of_the_vocabulary_is_drawn():
    seen = Counter()
    for seed in range(2500):
        scene = picturebook.scene_from_seed(seed)
        seen.update(SceneTruth(scene, (), ()).attributes)
        seen[("size", scene.size)] += 1
    kinds = {
        "place": vocabulary.PLACES, "style": vocabulary.STYLES, "time": vocabulary.TIMES,
        "weather": vocabulary.WEATHERS, "subject0": vocabulary.SUBJECTS,
        "subject1": vocabulary.SUBJECTS, "color0": vocabulary.COLORS, "size": SIZES,
        "place_color": vocabulary.COLORS, "relation": vocabulary.RELATIONS,
        "scale0": vocabulary.SCALES, "count0": ("1", "2", "3"),
    }  # fmt: skip
    missing = [(kind, name) for kind, names in kinds.items() for name in names
               if not seen[(kind, name)]]  # fmt: skip
    assert not missing


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_fit_the_network_and_the_area(size):
    sample = picturebook.draw(5, size=size)
    assert sample.image.shape == (size[1], size[0], 3)
    assert sample.image.dtype == np.uint8
    assert size[0] % 32 == 0 and size[1] % 32 == 0
    assert 0.9 < size[0] * size[1] / 65536 < 1.1


def test_there_are_at_least_five_ratios():
    assert len({width / height for width, height in SIZES}) >= 5


def test_masks_agree_with_boxes(pages):
    for page in pages:
        for boxes, masks in zip(page.truth.boxes, page.truth.masks(), strict=True):
            for (left, top, right, bottom), mask in zip(boxes, masks, strict=True):
                rows, columns = np.where(mask)
                assert rows.size > 60
                assert left - 1 <= columns.min() <= left + 2
                assert top - 1 <= rows.min() <= top + 2
                assert right - 3 <= columns.max() <= right
                assert bottom - 3 <= rows.max() <= bottom


def test_groups_have_their_count_and_fit_the_picture(pages):
    for page in pages:
        width, height = page.size
        for thing, boxes in zip(page.truth.scene.things, page.truth.boxes, strict=True):
            assert len(boxes) == thing.count
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height


def _middle(boxes: tuple, axis: int) -> float:
    return float(np.mean([box[axis] + box[axis + 2] for box in boxes]) / 2)


def test_relations_hold_in_the_boxes(pages):
    checked = 0
    for page in pages:
        relation = page.truth.scene.relation
        if relation:
            axis = 0 if relation in ("left", "right") else 1
            first, second = (_middle(boxes, axis) for boxes in page.truth.boxes)
            assert (first < second) == (relation in ("left", "above"))
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("color", vocabulary.COLORS)
def test_the_body_has_its_colour(color):
    other = "white" if color != "white" else "blue"
    for subject in ("house", "heart", "cat", "car"):
        thing = Thing(subject=subject, color=color, scale="large")
        scene = Scene(things=(thing,), place="plain", place_color=other, seed=3)
        sample = picturebook.draw_scene(scene)
        inside = sample.image[sample.truth.masks()[0][0]].astype(int)
        far = np.abs(inside - np.array(vocabulary.COLORS[color])).max(axis=1)
        assert np.mean(far < 16) > 0.3, subject


def test_shapes_are_anti_aliased():
    """Along each row of a flat house's roof, the first pixel of it is between ground and roof."""
    thing = Thing(subject="house", color="red", scale="large")
    page = picturebook.draw_scene(
        Scene(things=(thing,), place="plain", place_color="white", seed=3)
    )
    _, top, _, bottom = page.truth.boxes[0][0]
    height = bottom - top
    green = page.image[top + height // 10 : top + 4 * height // 10, :, 1].astype(int)
    ground = green[:, 0]
    edge = (np.abs(green - ground[:, None]) > 8).argmax(axis=1)
    rows = np.arange(len(green))
    first, roof = green[rows, edge], green[rows, edge + 4]
    assert len(rows) > 40
    assert np.mean((roof + 8 < first) & (first < ground - 8)) > 0.9


def test_no_bright_seams_at_the_borders_of_a_dark_picture():
    """Smooth ground has no bright or dark lines where bands and shapes meet."""
    scene = Scene(things=(), place="plain", place_color="black", seed=1)
    image = picturebook.draw_scene(scene).image.astype(int)
    assert np.abs(np.diff(image, axis=0)).max() <= 4
    assert np.abs(np.diff(image, axis=1)).max() <= 1
    night = Scene(things=(), place="desert", time="night", weather="fog", seed=2)
    bright = picturebook.draw_scene(night).image.astype(int).sum(axis=2).mean(axis=1)
    steps = np.diff(bright)
    assert not np.any((np.abs(steps[:-1]) > 30) & (steps[:-1] * steps[1:] < -400))


def test_styles_look_different():
    thing = Thing(subject="house", color="red")
    means = {}
    for style in vocabulary.STYLES:
        scene = Scene(things=(thing,), place="meadow", style=style, seed=4)
        means[style] = picturebook.draw_scene(scene).image.astype(float)
    names = list(means)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(means[first] - means[second]).mean() > 2.0, (first, second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"things": (), "place": "plain"},
        {"things": (), "place": "moon"},
        {"things": (), "place": "space", "time": "night"},
        {"things": (), "place": "sea", "size": (250, 256)},
        {"things": (), "place": "sea", "relation": "left"},
    ],
)
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(ValueError):
        Scene(**wrong)


def test_impossible_things_are_refused():
    with pytest.raises(ValueError, match="knows no subject"):
        Thing(subject="dragon", color="red")
    with pytest.raises(ValueError, match="one to three"):
        Thing(subject="cat", color="red", count=4)
