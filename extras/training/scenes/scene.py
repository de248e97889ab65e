"""What a picture is about (Scene), and what came of drawing it (Sample, SceneTruth).

A Scene is explicit and frozen: everything that a caption may mention is a field. Its `seed`
decides only what no caption speaks of: exact positions, small variations of shape, texture.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from extras.training.scenes import vocabulary as words

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""

SIZES: tuple[tuple[int, int], ...] = (
    (256, 256),
    (288, 224),
    (224, 288),
    (320, 192),
    (192, 320),
    (352, 192),
    (192, 352),
)
"""(width, height) of every shape of picture: about 65 000 pixels, sides multiples of 32."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One group of equal subjects, such as three small red boats."""

    subject: str
    color: str
    count: int = 1
    scale: str = "medium"

    def __post_init__(self) -> None:
        _check("subject", self.subject, words.SUBJECTS)
        _check("colour", self.color, words.COLORS)
        _check("scale", self.scale, words.SCALES)
        if not 1 <= self.count <= 3:
            raise ValueError(f"A group has one to three subjects, not {self.count}.")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture in words. With two things, the first stands `relation` of the second."""

    things: tuple[Thing, ...]
    place: str = "plain"
    place_color: str = ""
    time: str = "day"
    weather: str = "clear"
    style: str = "flat"
    relation: str = ""
    size: tuple[int, int] = (256, 256)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.things) > 2:
            raise ValueError("A scene has at most two groups of things.")
        if bool(self.relation) != (len(self.things) == 2):
            raise ValueError("A relation needs two groups of things, and two groups need one.")
        if self.relation:
            _check("relation", self.relation, words.RELATIONS)
        _check("place", self.place, words.PLACES)
        _check("time", self.time, words.TIMES)
        _check("weather", self.weather, words.WEATHERS)
        _check("style", self.style, words.STYLES)
        if (self.place == "plain") != bool(self.place_color):
            raise ValueError("Exactly the plain place has a colour.")
        if self.place_color:
            _check("colour", self.place_color, words.COLORS)
        if not words.PLACES[self.place].has_sky and (self.time, self.weather) != ("day", "clear"):
            raise ValueError(f"The place {self.place!r} has no sky, so no hour and no weather.")
        width, height = self.size
        if width % 32 or height % 32 or not 64 <= min(self.size) <= max(self.size) <= 2048:
            raise ValueError("The sides of a picture are multiples of 32 from 64 to 2048 pixels.")


@dataclass(frozen=True, eq=False)
class SceneTruth:
    """What is really in a picture.

    boxes: one tuple per thing with one box per instance, in the order of `scene.things`.
    outlines: the shapes of each instance in picture pixels times 16 (what the masks are made of).
    """

    scene: Scene
    boxes: tuple[tuple[Box, ...], ...]
    outlines: tuple[tuple[list[tuple[np.ndarray, int]], ...], ...] = field(repr=False)

    @property
    def attributes(self) -> frozenset[tuple[str, str]]:
        """(kind, value) pairs that hold for the picture: everything a caption may claim."""
        scene = self.scene
        found = {("place", scene.place), ("style", scene.style)}
        if scene.place_color:
            found.add(("place_color", scene.place_color))
        if words.PLACES[scene.place].has_sky:
            found |= {("time", scene.time), ("weather", scene.weather)}
        if scene.relation:
            found.add(("relation", scene.relation))
        for index, thing in enumerate(scene.things):
            found |= {
                (f"subject{index}", thing.subject),
                (f"color{index}", thing.color),
                (f"count{index}", str(thing.count)),
                (f"scale{index}", thing.scale),
            }
        return frozenset(found)

    def masks(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """Boolean (H, W) masks shaped like `boxes`: the whole silhouette of each instance."""
        width, height = self.scene.size
        return tuple(
            tuple(_mask(shapes, width, height) for shapes in instances)
            for instances in self.outlines
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """One page of the book. image: uint8 (H, W, 3) RGB. size: (width, height)."""

    image: np.ndarray
    caption: str
    truth: SceneTruth
    size: tuple[int, int]


def _mask(shapes: list[tuple[np.ndarray, int]], width: int, height: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    for points, line_width in shapes:
        if line_width:
            cv2.polylines(canvas, [points], False, 1, line_width, cv2.LINE_8, 4)
        else:
            cv2.fillPoly(canvas, [points], 1, cv2.LINE_8, 4)
    return canvas.astype(bool)


def _check(kind: str, value: str, allowed: object) -> None:
    if value not in allowed:  # type: ignore[operator]
        raise ValueError(f"The picture book knows no {kind} {value!r}.")
