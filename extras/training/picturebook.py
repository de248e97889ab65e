"""The picture book: endless captioned pictures, each a pure function of its seed.

    sample = picturebook.draw(7)
    sample.image      uint8 (H, W, 3) RGB, about 65 000 pixels in one of seven shapes
    sample.caption    "two small red boats on the sea at sunset, watercolor"
    sample.truth      boxes, masks and attributes of what was drawn

Needs numpy and OpenCV only; no file, no network, no clock.
"""

from random import Random

import numpy as np

from extras.training.captions import caption
from extras.training.scenes import layout, places, subjects
from extras.training.scenes.brush import FIXED, Brush, Mark, Shape, mix, ring, subject_inks
from extras.training.scenes.compose import (
    alphabet_scene,
    pair_scene,
    primer_scene,
    scene_from_seed,
)
from extras.training.scenes.scene import SIZES, Box, Sample, Scene, SceneTruth, Thing
from extras.training.scenes.stage import SUBJECT_LIGHT, Stage
from extras.training.scenes.styles import render

__all__ = ["SIZES", "Sample", "Scene", "SceneTruth", "Thing", "alphabet_scene", "draw",
           "draw_scene", "pair_scene", "primer_scene", "scene_from_seed"]  # fmt: skip

_WATER = frozenset({"sea", "lake"})


def draw(seed: int, *, size: tuple[int, int] | None = None) -> Sample:
    """The picture of a seed, in the seed's own shape or in `size` (width, height)."""
    return draw_scene(scene_from_seed(seed, size=size))


def draw_scene(scene: Scene) -> Sample:
    """The picture of a scene."""
    stage = Stage(
        scene.size, time=scene.time, weather=scene.weather, rng=Random(f"place {scene.seed}")
    )
    if scene.place == "plain":
        places.plain(stage, scene.place_color)
    else:
        places.DRAW[scene.place](stage)
        stage.fog_bank()
    rng = Random(f"things {scene.seed}")
    outlines: list[list[list[tuple[np.ndarray, int]]]] = [[] for _ in scene.things]
    for owner, spot in enumerate(layout.spots(scene, rng, stage.horizon)):
        if spot.grounded:
            stage.marks.append(_footing(scene, stage, spot))
        marks: list[Mark] = []
        thing = scene.things[spot.thing]
        brush = Brush(
            marks,
            owner=owner,
            center=spot.center,
            scale=spot.side,
            flip=spot.flip,
            tilt=spot.tilt,
            inks=subject_inks(thing.color, SUBJECT_LIGHT[scene.time], rng.randint(-7, 7)),
        )
        subjects.DRAW[thing.subject](brush)
        stage.marks += marks
        outlines[spot.thing].append(
            [(mark.points, round(mark.width)) for mark in marks if isinstance(mark, Shape)]
        )
    stage.falling()
    image = render(
        stage.marks,
        scene.size,
        scene.style,
        Random(f"finish {scene.seed}"),
        plain=scene.place == "plain",
    )
    truth = SceneTruth(
        scene=scene,
        boxes=tuple(tuple(_box(s, scene.size) for s in group) for group in outlines),
        outlines=tuple(tuple(group) for group in outlines),
    )
    return Sample(image, caption(scene, Random(f"caption {scene.seed}")), truth, scene.size)


def _footing(scene: Scene, stage: Stage, spot: layout.Spot) -> Shape:
    """The soft shadow, or the ripple on water, below something that stands."""
    x, y = spot.center
    color = stage.lit((200, 226, 242)) if scene.place in _WATER else stage.lit((70, 84, 78))
    if scene.place == "snow":
        color = stage.lit((196, 210, 230))
    elif scene.place in ("desert", "beach"):
        color = stage.lit((200, 160, 100))
    elif scene.place == "room":
        color = (140, 98, 70)
    elif scene.place not in _WATER:
        color = mix(color, stage.lit((110, 170, 90)), 0.55)
    points = ring(x, y + spot.side * 0.485, spot.side * 0.46, spot.side * 0.05)
    return Shape(np.rint(points * FIXED).astype(np.int32), color, ink=False)


def _box(shapes: list[tuple[np.ndarray, int]], size: tuple[int, int]) -> Box:
    """The bounds of an instance, clipped to the picture."""
    low = np.min([s.min(axis=0) - width * 8 for s, width in shapes], axis=0) / FIXED
    high = np.max([s.max(axis=0) + width * 8 for s, width in shapes], axis=0) / FIXED
    left, top = (max(0, int(np.floor(v))) for v in low)
    right, bottom = (min(side, int(np.ceil(v)) + 1) for v, side in zip(high, size, strict=True))
    return left, top, right, bottom
