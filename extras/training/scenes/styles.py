"""Rendering styles: how a display list becomes a picture.

A style is data: what it does to the colour of fills (`fill`) and outlines (`ink`), how wide the
outlines are, what the sky becomes (`wash`), and a `finish` over the whole picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from extras.training.scenes import textures
from extras.training.scenes.brush import FIXED, Haze, Mark, Shape, Wash, brightness, mix, times
from extras.training.scenes.vocabulary import RGB

PAPER: RGB = (253, 251, 245)
BOARD: RGB = (38, 58, 50)
NIGHT: RGB = (12, 9, 26)

Recolor = Callable[[RGB, bool], RGB]
"""(colour, belongs to a subject) -> colour."""


def _keep(color: RGB, _subject: bool) -> RGB:
    return color


def _vivid(color: RGB, top: int) -> RGB:
    """`color` with more saturation, its strongest channel brought to `top`."""
    mean = sum(color) / 3
    strong = [max(0.0, mean + (c - mean) * 1.5) for c in color]
    factor = top / max(1.0, max(strong))
    return tuple(min(255, round(c * factor)) for c in strong)


def _pen(color: RGB, subject: bool) -> RGB:
    """Ink on white paper: dark enough to read, the hue kept."""
    mean = sum(color) / 3
    strong = tuple(round(min(255, max(0, mean + (c - mean) * 1.35))) for c in color)
    limit = 132.0 if subject else 172.0
    luma = brightness(strong)
    factor = min(1.0, limit / max(1.0, luma))
    return times(strong, (factor, factor, factor))


def _light_tube(color: RGB, subject: bool) -> RGB:
    return _vivid(color, 255) if subject else times(_vivid(color, 255), (0.55, 0.55, 0.6))


def _chalk_line(color: RGB, subject: bool) -> RGB:
    line = mix(_vivid(color, 250), (255, 255, 255), 0.18)
    return line if subject else mix(BOARD, line, 0.62)


@dataclass(frozen=True)
class Style:
    """See the module's docstring. ink_width is in pixels of the finished picture."""

    fill: Recolor = _keep
    ink: Recolor | None = None
    ink_width: float = 0.0
    wash: Callable[[RGB], RGB] = lambda color: color
    finish: Callable[[np.ndarray, Random], np.ndarray] = lambda image, _rng: image
    lines_only: bool = False


def _watercolor(image: np.ndarray, rng: Random) -> np.ndarray:
    """Pigment that pools at edges and thins in spots, on toothed paper with a bare margin."""
    height, width = image.shape[:2]
    image = textures.wobble(image, 1.5, rng)
    soft = cv2.GaussianBlur(image, (0, 0), 2.2)
    pooled = cv2.subtract(cv2.addWeighted(image, 0.6, soft, 0.4, 0), cv2.absdiff(image, soft))
    cloud = textures.patch("cloud", height, width, rng)
    grain = textures.patch("grain", height, width, rng)
    margin = textures.edge_distance(height, width) / 6.0 - 0.8 + 0.45 * cloud
    density = (0.84 + 0.09 * cloud + 0.035 * grain) * np.clip(margin, 0.0, 1.0)
    return textures.on_ground(pooled, PAPER, density)


def _crayon(image: np.ndarray, rng: Random) -> np.ndarray:
    """Wax strokes that leave the paper's tooth bare."""
    height, width = image.shape[:2]
    image = textures.wobble(image, 1.1, rng)
    wax = textures.patch("wax", height, width, rng)
    grain = textures.patch("grain", height, width, rng)
    density = np.clip(0.86 + 0.15 * wax + 0.07 * grain, 0.3, 1.0)
    return textures.on_ground(image, PAPER, density)


def _chalk(image: np.ndarray, rng: Random) -> np.ndarray:
    """Dusty strokes on a board."""
    height, width = image.shape[:2]
    image = textures.wobble(image, 0.6, rng)
    grain = textures.patch("grain", height, width, rng)
    cloud = textures.patch("cloud", height, width, rng)
    density = np.clip(0.88 + 0.16 * grain + 0.05 * cloud, 0.4, 1.1)
    return textures.on_ground(image, BOARD, density)


def _pixels(image: np.ndarray, _rng: Random) -> np.ndarray:
    """Squares of four pixels, few shades."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    small = (small // 24) * 24 + 12
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _glow(image: np.ndarray, _rng: Random) -> np.ndarray:
    """Light that spills from bright lines."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    near = cv2.GaussianBlur(small, (0, 0), 1.0)
    far = cv2.GaussianBlur(small, (0, 0), 3.2)
    halo = cv2.addWeighted(near, 0.55, far, 0.75, 0)
    halo = cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(image, 1.0, halo, 0.75, 0)


STYLES: dict[str, Style] = {
    "flat": Style(),
    "cartoon": Style(
        ink=lambda color, subject: (34, 30, 44) if subject else times(color, (0.6, 0.6, 0.64)),
        ink_width=2.2,
    ),
    "watercolor": Style(finish=_watercolor),
    "crayon": Style(
        ink=lambda color, subject: times(color, (0.62, 0.62, 0.62) if subject else (0.8, 0.8, 0.8)),
        ink_width=2.4,
        finish=_crayon,
    ),
    "line art": Style(
        fill=lambda color, subject: mix(PAPER, color, 0.10 if subject else 0.04),
        ink=_pen,
        ink_width=1.9,
        wash=lambda color: mix(PAPER, color, 0.10),
        lines_only=True,
    ),
    "chalk": Style(
        fill=lambda color, subject: mix(BOARD, color, 0.38 if subject else 0.10),
        ink=_chalk_line,
        ink_width=2.4,
        wash=lambda color: mix(BOARD, color, 0.10),
        finish=_chalk,
        lines_only=True,
    ),
    "pixel art": Style(finish=_pixels),
    "neon": Style(
        fill=lambda color, subject: mix(NIGHT, color, 0.14 if subject else 0.05),
        ink=_light_tube,
        ink_width=2.1,
        wash=lambda color: mix(NIGHT, color, 0.10),
        finish=_glow,
        lines_only=True,
    ),
}

PLAIN_WASH = {"line art": (PAPER, 0.34), "chalk": (BOARD, 0.34), "neon": (NIGHT, 0.24)}
"""The ground of a style and how much of a plain background's colour shows through it."""


def render(
    marks: list[Mark], size: tuple[int, int], style_name: str, rng: Random, *, plain: bool = False
) -> np.ndarray:
    """Paint a display list: uint8 (H, W, 3) RGB."""
    style = STYLES[style_name]
    wash = style.wash
    if plain and style_name in PLAIN_WASH:
        ground, part = PLAIN_WASH[style_name]
        wash = lambda color: mix(ground, color, part)  # noqa: E731 - one line says it best
    width, height = size
    zoom = 1 if style_name == "pixel art" else 2
    canvas = np.empty((height * zoom, width * zoom, 3), np.uint8)
    owner = -1
    for position, mark in enumerate(marks):
        if isinstance(mark, Wash):
            _wash(canvas, mark, wash)
        elif isinstance(mark, Haze):
            _veil(canvas, mark, style, wash)
        else:
            if mark.owner != owner:
                owner = mark.owner
                if owner >= 0 and style.ink is None:
                    _rim(canvas, marks, position, zoom)
            _paint(canvas, mark, style, zoom)
    if zoom > 1:
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return style.finish(canvas, rng)


def _paint(canvas: np.ndarray, mark: Shape, style: Style, zoom: int) -> None:
    subject = mark.owner >= 0
    shift = 3 if zoom == 2 else 4
    if mark.width:
        color = style.ink(mark.color, subject) if style.lines_only else mark.color
        thick = mark.width if not style.lines_only else min(mark.width, 2.6)
        cv2.polylines(
            canvas, [mark.points], False, color, max(1, round(thick * zoom)), cv2.LINE_AA, shift
        )
        return
    dot = style.lines_only and not subject and not mark.ink and _is_dot(mark, zoom)
    color = style.ink(mark.color, False) if dot else style.fill(mark.color, subject)
    if style.lines_only and not mark.ink and not dot:
        color = mix(color, style.ink(mark.color, subject), 0.45 if subject else 0.10)
    cv2.fillPoly(canvas, [mark.points], color, cv2.LINE_AA, shift)
    if style.ink is not None and mark.ink:
        line = style.ink_width if subject else style.ink_width * 0.7
        cv2.polylines(
            canvas, [mark.points], True, style.ink(mark.color, subject),
            max(1, round(line * zoom)), cv2.LINE_AA, shift,
        )  # fmt: skip


def _is_dot(mark: Shape, zoom: int) -> bool:
    """Whether a shape is so small that line styles draw it as one touch of the pen."""
    spread = np.ptp(mark.points, axis=0)
    return int(spread.max()) < 14 * FIXED * zoom / 2


def _wash(canvas: np.ndarray, mark: Wash, recolor: Callable[[RGB], RGB]) -> None:
    height = canvas.shape[0]
    start, end = round(mark.start * height), round(mark.end * height)
    if end <= start:
        return
    top, bottom = (np.array(recolor(c), np.float32) for c in (mark.top, mark.bottom))
    part = np.linspace(0, 1, end - start, dtype=np.float32)[:, None]
    column = (top + (bottom - top) * part + 0.5).astype(np.uint8)
    # resize repeats a column several times faster than numpy's broadcast of three channels
    size = (canvas.shape[1], end - start)
    cv2.resize(column[:, None], size, canvas[start:end], interpolation=cv2.INTER_NEAREST)


def _veil(canvas: np.ndarray, mark: Haze, style: Style, recolor: Callable[[RGB], RGB]) -> None:
    color = recolor(mark.color) if style.lines_only else mark.color
    add = tuple(c * mark.strength for c in color)
    cv2.convertScaleAbs(canvas, canvas, 1 - mark.strength, 0)
    cv2.add(canvas, (*add, 0.0), canvas)


def _rim(canvas: np.ndarray, marks: list[Mark], position: int, zoom: int) -> None:
    """A thin contrasting edge around an instance that would melt into what is behind it."""
    owner = marks[position].owner
    shapes = []
    for mark in marks[position:]:
        if not isinstance(mark, Shape) or mark.owner != owner:
            break
        if mark.ink:
            shapes.append(mark)
    points = np.concatenate([shape.points for shape in shapes])
    scale = zoom / 16.0
    left, top = np.maximum(points.min(axis=0) * scale, 0).astype(int)
    right, bottom = (points.max(axis=0) * scale).astype(int) + 1
    behind = cv2.mean(canvas[top:bottom:4, left:right:4])[:3]
    body = max(shapes, key=lambda shape: 0 if shape.width else cv2.contourArea(shape.points))
    if sum(abs(a - b) for a, b in zip(behind, body.color, strict=True)) > 110:
        return
    rim = mix(body.color, (255, 255, 255), 0.72)
    if brightness(behind) > 150:
        rim = times(body.color, (0.58, 0.58, 0.64))
    shift = 3 if zoom == 2 else 4
    for shape in shapes:
        thick = (shape.width or 0.0) + 2.6
        cv2.polylines(canvas, [shape.points], not shape.width, rim, round(thick * zoom),
                      cv2.LINE_AA, shift)  # fmt: skip
