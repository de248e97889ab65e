"""The display list: shapes in picture coordinates, which every style renders in its own way.

A subject is drawn in its unit square, x and y from -0.5 to 0.5, y down, standing on y = 0.5.
Colours are named by role there ("body", "shade", "light", ...), so that one drawing serves all
colours. Points are kept as int32 times 16 of the finished picture's pixels.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from extras.training.scenes.vocabulary import COLORS, RGB

Points = list[tuple[float, float]]
FIXED = 16.0


class Shape(NamedTuple):
    """One filled polygon, or an open line if `width` (pixels) is not 0. owner -1: the place."""

    points: np.ndarray
    color: RGB
    width: float = 0.0
    owner: int = -1
    ink: bool = True  # False: never outlined (soft things: shadows, clouds, glints)


class Wash(NamedTuple):
    """A vertical gradient from `top` to `bottom` over the rows from `start` to `end` (0 to 1)."""

    top: RGB
    bottom: RGB
    start: float = 0.0
    end: float = 1.0


class Haze(NamedTuple):
    """A veil of one colour over everything drawn so far, from 0 (none) to 1 (opaque)."""

    color: RGB
    strength: float


Mark = Shape | Wash | Haze


@lru_cache(maxsize=4096)
def mix(first: RGB, second: RGB, part: float) -> RGB:
    """The colour `part` (0 to 1) of the way from `first` to `second`."""
    return tuple(round(a + (b - a) * part) for a, b in zip(first, second, strict=True))


@lru_cache(maxsize=4096)
def times(color: RGB, factors: tuple[float, float, float]) -> RGB:
    """`color` with each channel multiplied and clipped to 0..255."""
    return tuple(min(255, max(0, round(c * f))) for c, f in zip(color, factors, strict=True))


def brightness(color: RGB) -> float:
    """Luma of `color`, 0 to 255."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


@lru_cache(maxsize=8)
def _circle(count: int) -> np.ndarray:
    angles = np.arange(count) * (2 * math.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ring(cx: float, cy: float, rx: float, ry: float, count: int = 28) -> np.ndarray:
    """An ellipse as (count, 2) points."""
    return _circle(count) * (rx, ry) + (cx, cy)


@lru_cache(maxsize=512)
def _smooth(points: tuple[tuple[float, float], ...], closed: bool) -> np.ndarray:
    """A Catmull-Rom curve through `points`, five steps a segment."""
    p = np.asarray(points)
    if closed:
        before, start, end, after = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    else:
        padded = np.concatenate([p[:1], p, p[-1:]])
        before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, 5, endpoint=False)[None, :, None]
    b, s, e, a = (v[:, None, :] for v in (before, start, end, after))
    curve = 0.5 * (
        2 * s + (e - b) * t + (2 * b - 5 * s + 4 * e - a) * t**2 + (3 * (s - e) + a - b) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def subject_inks(color: str, light: tuple[float, float, float], wobble: int) -> dict[str, RGB]:
    """Colours by role for a subject of `color` under `light` (a factor per channel)."""
    body = tuple(min(255, max(0, c + wobble)) for c in COLORS[color])
    if color == "black":
        roles = {"body": body, "shade": (22, 22, 28), "light": (84, 84, 98)}
    elif color == "white":
        roles = {"body": body, "shade": (206, 212, 224), "light": (255, 255, 255)}
    else:
        roles = {
            "body": body,
            "shade": times(body, (0.72, 0.70, 0.76)),
            "light": mix(body, (255, 255, 255), 0.38),
        }
    roles |= {
        "dark": (36, 34, 46),
        "cream": (252, 243, 222),
        "paper": (255, 255, 255),
        "glass": (176, 220, 242),
        "lamp": (255, 226, 128),
        "wood": (122, 82, 54),
        "leaf": (88, 160, 76),
        "stem": (70, 130, 70),
        "blush": (246, 150, 150),
        "beak": (244, 166, 52),
        "metal": (176, 184, 196),
    }
    if color in ("white", "yellow"):
        roles["cream"] = (238, 228, 206)
    lit = {name: times(value, light) for name, value in roles.items()}
    lit["lamp"] = roles["lamp"]  # lamps shine at night too
    return lit


class Brush:
    """Draws one subject into a display list.

    cx, cy: centre of the unit square in pixels; scale: its side in pixels; tilt: radians.
    """

    def __init__(
        self,
        marks: list[Mark],
        *,
        owner: int,
        center: tuple[float, float],
        scale: float,
        flip: bool,
        tilt: float,
        inks: dict[str, RGB],
    ) -> None:
        self.marks, self.owner, self.inks = marks, owner, inks
        self.scale = scale
        cos, sin = math.cos(tilt) * scale * FIXED, math.sin(tilt) * scale * FIXED
        self._turn = np.array([[cos, sin], [-sin, cos]])
        if flip:
            self._turn[0] *= -1
        self._shift = np.array(center) * FIXED

    def _add(self, points: np.ndarray, ink: str, width: float, outlined: bool) -> None:
        placed = np.rint(points @ self._turn + self._shift).astype(np.int32)
        stroke = max(1.0, width * self.scale) if width else 0.0
        self.marks.append(Shape(placed, self.inks[ink], stroke, self.owner, outlined))

    def poly(self, points: Points, ink: str, *, outlined: bool = True) -> None:
        """A filled polygon."""
        self._add(np.asarray(points), ink, 0.0, outlined)

    def blob(self, points: Points, ink: str, *, outlined: bool = True) -> None:
        """A filled closed curve through `points`."""
        self._add(_smooth(tuple(points), True), ink, 0.0, outlined)

    def oval(
        self, cx: float, cy: float, rx: float, ry: float, ink: str, *, tilt: float = 0.0,
        outlined: bool = True,
    ) -> None:  # fmt: skip
        """A filled ellipse, turned by `tilt` radians."""
        points = ring(0, 0, rx, ry)
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            points = points @ np.array([[cos, sin], [-sin, cos]])
        self._add(points + (cx, cy), ink, 0.0, outlined)

    def rect(self, x0: float, y0: float, x1: float, y1: float, ink: str) -> None:
        """A filled rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ink)

    def pillow(self, x0: float, y0: float, x1: float, y1: float, r: float, ink: str) -> None:
        """A filled rectangle with corners rounded by `r`."""
        corners = _circle(20) * r
        centers = ((x1 - r, y1 - r), (x0 + r, y1 - r), (x0 + r, y0 + r), (x1 - r, y0 + r))
        parts = [corners[np.arange(5 * i, 5 * i + 6) % 20] + c for i, c in enumerate(centers)]
        self._add(np.concatenate(parts), ink, 0.0, True)

    def line(self, points: Points, width: float, ink: str) -> None:
        """An open line; `width` in unit coordinates."""
        self._add(np.asarray(points), ink, width, True)

    def curve(self, points: Points, width: float, ink: str) -> None:
        """An open smooth line through `points`."""
        self._add(_smooth(tuple(points), False), ink, width, True)

    def eye(self, x: float, y: float, r: float = 0.028) -> None:
        """A dark dot with a glint."""
        self.oval(x, y, r, r, "dark", outlined=False)
        self.oval(x + r * 0.35, y - r * 0.35, r * 0.35, r * 0.35, "paper", outlined=False)
