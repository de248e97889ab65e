"""Faces in a picture, and one of them cropped upright for FaceSwap.

The detectors are OpenCV's Haar cascades, which come inside its package and need no download.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CROP = 512
LEFT_EYE, RIGHT_EYE = (193.0, 240.0), (319.0, 240.0)
"""Where the eyes (left as seen) come to lie in a crop of CROP × CROP, as in the FFHQ data set that
face adapters are trained on."""
EYES_IN_BOX = ((0.31, 0.39), (0.69, 0.39))
"""Where a frontal face has them in the detector's box, for faces whose eyes are not found."""
BORDER = (135, 133, 132)
SMALLEST = 0.05  # of the shorter side
SMALLEST_SIDE = 24  # what the cascades take
NEIGHBOURS = 5
SEARCHES = ((0.0, 1024), (25.0, 512), (-25.0, 512), (45.0, 512), (-45.0, 512))
"""By how many degrees a picture is turned, one after the other, until a face stands upright, and
the longer side that it is searched at."""


@dataclass(frozen=True, slots=True)
class Face:
    """A face. box: left, top, width, height in pixels; eyes: two points, or None if not found."""

    box: tuple[float, float, float, float]
    eyes: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def points(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Both eyes, guessed from the box if they were not found."""
        if self.eyes is not None:
            return self.eyes
        left, top, width, height = self.box
        first, second = ((left + x * width, top + y * height) for x, y in EYES_IN_BOX)
        return first, second

    def moved(self, matrix: np.ndarray) -> "Face":
        """After a similarity of the plane, (2, 3). Of what is turned no box is upright, so that
        its eyes are kept, found or guessed."""
        left, top, width, height = self.box
        scale = math.hypot(*matrix[:, 0])
        middle = matrix @ (left + width / 2, top + height / 2, 1.0)
        w, h = scale * width, scale * height
        box = (float(middle[0]) - w / 2, float(middle[1]) - h / 2, w, h)
        is_turned = abs(matrix[1, 0]) > 1e-9
        eyes = self.points if is_turned else self.eyes
        if eyes is None:
            return Face(box)
        first, second = (matrix @ (*eye, 1.0) for eye in eyes)
        return Face(box, ((float(first[0]), float(first[1])), (float(second[0]), float(second[1]))))


_searching = threading.Lock()  # a classifier keeps what it works on in itself


@cache
def _cascade(name: str) -> "cv2.CascadeClassifier":
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / f"haarcascade_{name}.xml"))


def find_faces(image: np.ndarray) -> list[Face]:
    """The frontal faces of a uint8 (H, W, 3) picture, the largest first; none gives [].

    Tilted ones are looked for only where none is upright.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    for tilt, longest in SEARCHES:
        factor = min(1.0, longest / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        if min(size) < SMALLEST_SIDE:
            continue
        small = cv2.equalizeHist(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
        least = max(SMALLEST_SIDE, int(SMALLEST * min(size)))
        turn, side = _turning(size, tilt)
        turned = cv2.warpAffine(small, turn, (side, side), borderValue=128) if tilt else small
        back = cv2.invertAffineTransform(turn) / factor
        if faces := [face.moved(back) for face in _upright(turned, least)]:
            return sorted(faces, key=lambda face: -face.box[2] * face.box[3])
    return []


def _turning(size: tuple[int, int], tilt: float) -> tuple[np.ndarray, int]:
    """What turns a picture (width, height) by `tilt` degrees into the middle of a square, (2, 3),
    and the side of that, in which no corner is lost. Without a tilt it stays where it is."""
    width, height = size
    if not tilt:
        return np.eye(2, 3), max(size)
    side = math.ceil(math.hypot(width, height))
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -tilt, 1.0)
    turn[:, 2] += (side - width) / 2, (side - height) / 2
    return turn, side


def _upright(grey: np.ndarray, least: int) -> list[Face]:
    """The faces that stand upright, so many pixels wide at least."""
    boxes = _search(
        "frontalface_alt2",
        grey,
        scaleFactor=1.1,
        minNeighbors=NEIGHBOURS,
        minSize=(least, least),
    )
    return [Face(tuple(map(float, box)), _eyes(grey, [int(n) for n in box])) for box in boxes]


def _search(name: str, grey: np.ndarray, **how: Any) -> Sequence[Sequence[int]]:
    """Boxes (left, top, width, height) of what the cascade `name` finds."""
    with _searching:
        return _cascade(name).detectMultiScale(grey, **how)


def _eyes(
    grey: np.ndarray, box: list[int]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The likeliest pair in the upper part of a face: one on each side, about level."""
    left, top, width, height = box
    part = grey[top : top + int(height * 0.6), left : left + width]
    least = (max(8, width // 10),) * 2
    found = _search("eye", part, scaleFactor=1.05, minNeighbors=4, minSize=least)
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in found]
    best, smallest = None, 0.35  # radians; a frontal face is never tilted more in a box
    for a in middles:
        for b in middles:
            apart = b[0] - a[0]
            if not (a[0] < width / 2 < b[0] and 0.25 * width < apart < 0.65 * width):
                continue
            tilt = abs(math.atan2(b[1] - a[1], apart))
            if tilt < smallest:
                best, smallest = (a, b), tilt
    if best is None:
        return None
    first, second = ((float(left + x), float(top + y)) for x, y in best)
    return first, second


def crop_face(image: np.ndarray, face: Face, size: int = CROP) -> np.ndarray:
    """The face turned upright, uint8 (size, size, 3), eyes where FFHQ has them.

    What lies outside of the picture is an even grey.
    """
    scale = size / CROP
    goal = np.array([LEFT_EYE, RIGHT_EYE], np.float64) * scale
    start = np.array(face.points, np.float64)
    # A similarity is one complex number: both eyes move to their places.
    (ax, ay), (bx, by) = start[1] - start[0], goal[1] - goal[0]
    turn = complex(bx, by) / complex(ax, ay)
    matrix = np.array([[turn.real, -turn.imag, 0.0], [turn.imag, turn.real, 0.0]])
    matrix[:, 2] = goal[0] - matrix[:, :2] @ start[0]
    # warpAffine takes single pixels, so that a large face is made small first, by means.
    if (small := abs(turn)) < 1.0:
        image = cv2.resize(image, None, fx=small, fy=small, interpolation=cv2.INTER_AREA)
        matrix[:, :2] /= small
    return cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER,
    )  # fmt: skip
