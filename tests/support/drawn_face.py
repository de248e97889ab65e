"""A drawn portrait that face detectors take for one."""

import cv2
import numpy as np

SKIN, HAIR = (224, 180, 150), (60, 40, 30)


def _shade(factor: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, int(channel * factor)) for channel in SKIN)
    return red, green, blue


# (x, y, half width, half height, colour), from the middle, of a picture 300 wide; eyes mirrored.
SHAPES = [
    (0, -20, 85, 105, HAIR),
    (0, 130, 60, 60, _shade(0.8)),
    (0, 5, 72, 92, SKIN),
    *[
        (side * x, y, a, b, colour)
        for x, y, a, b, colour in (
            (29, -12, 19, 11, _shade(0.72)),
            (29, -30, 19, 4, HAIR),
            (29, -10, 13, 7, (245, 245, 245)),
            (29, -10, 6, 6, HAIR),
        )
        for side in (-1, 1)
    ],
    (0, 12, 7, 26, _shade(1.06)),
    (0, 32, 15, 6, _shade(0.72)),
    (0, 55, 24, 8, (150, 70, 70)),
    (0, 80, 20, 8, _shade(0.9)),
]
EYES = ((-29.0, -10.0), (29.0, -10.0))


def draw_face(size: int = 300, tilt: float = 0.0) -> np.ndarray:
    """uint8 (size, size, 3); tilt: degrees, against the clock."""
    large = size * 4
    unit = large / 300.0
    image = np.full((large, large, 3), (120, 150, 170), np.uint8)
    for x, y, a, b, colour in SHAPES:
        middle = (int(large / 2 + x * unit), int(large / 2 + y * unit))
        axes = (int(a * unit), int(b * unit))
        cv2.ellipse(image, middle, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 2.2 * unit)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(image, _turn(size, tilt), (size, size), borderMode=cv2.BORDER_REPLICATE)


def eyes_of(size: int = 300, tilt: float = 0.0) -> np.ndarray:
    """(2, 2): where the eyes of `draw_face` are, the left one as seen first."""
    points = np.array(EYES) * (size / 300.0) + size / 2
    return cv2.transform(points[None], _turn(size, tilt))[0]


def _turn(size: int, tilt: float) -> np.ndarray:
    return cv2.getRotationMatrix2D((size / 2, size / 2), tilt, 1.0)
