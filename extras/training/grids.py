"""Pictures side by side."""

import math
from collections.abc import Sequence

import numpy as np

GAP = 6


def tile(images: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
    """uint8 (H, W, 3) pictures of one size in rows of `columns`, on white."""
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
