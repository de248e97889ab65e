"""Noise that gives paper, wax and pigment their look. Made once per process from fixed seeds."""

from functools import lru_cache
from random import Random

import cv2
import numpy as np

SIDE = 512


@lru_cache(maxsize=8)
def texture(kind: str) -> np.ndarray:
    """A (512, 512) float32 field, mean about 0, standard deviation 1. The same in any process.

    kind: "grain" fine paper tooth; "cloud" soft spots of about 40 pixels; "wax" diagonal strokes.
    """
    rng = np.random.default_rng({"grain": 11, "cloud": 12, "wax": 13}[kind])
    noise = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    if kind == "grain":
        noise = cv2.GaussianBlur(noise, (0, 0), 0.9)
    elif kind == "cloud":
        noise = cv2.GaussianBlur(noise, (0, 0), 14) + 0.35 * cv2.GaussianBlur(noise, (0, 0), 4)
    else:
        kernel = np.zeros((15, 15), np.float32)
        for k in range(15):
            kernel[14 - k, k] = 1.0
        noise = cv2.filter2D(noise, -1, cv2.GaussianBlur(kernel, (0, 0), 0.7))
    noise = (noise - noise.mean()) / noise.std()
    noise.setflags(write=False)
    return noise


def patch(kind: str, height: int, width: int, rng: Random) -> np.ndarray:
    """A (height, width) cut of a texture at a place that `rng` chooses."""
    field = texture(kind)
    if max(height, width) > 448:
        side = max(height, width) + 64
        field = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)
    top = rng.randrange(field.shape[0] - height)
    left = rng.randrange(field.shape[1] - width)
    return field[top : top + height, left : left + width]


@lru_cache(maxsize=16)
def edge_distance(height: int, width: int) -> np.ndarray:
    """(height, width) float32: pixels to the nearest border of the picture."""
    rows = np.minimum(np.arange(height), np.arange(height)[::-1])[:, None]
    columns = np.minimum(np.arange(width), np.arange(width)[::-1])[None]
    found = np.minimum(rows, columns).astype(np.float32)
    found.setflags(write=False)
    return found


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return columns.astype(np.float32), rows.astype(np.float32)


def wobble(image: np.ndarray, amount: float, rng: Random) -> np.ndarray:
    """`image` with its outlines shaken by about `amount` pixels, as an unsteady hand would."""
    height, width = image.shape[:2]
    columns, rows = _grid(height, width)
    x = columns + amount * patch("cloud", height, width, rng)
    y = rows + amount * patch("cloud", height, width, rng)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def on_ground(image: np.ndarray, ground: tuple[int, int, int], density: np.ndarray) -> np.ndarray:
    """`image` laid over a ground colour with `density` (H, W), 0 bare to 1 full (above: deeper)."""
    density = np.clip(density, 0.0, 1.99)
    weight = cv2.merge([cv2.convertScaleAbs(density, alpha=128.0)] * 3)
    deep = cv2.multiply(image, weight, scale=1 / 128)
    bare = cv2.bitwise_not(weight)
    cv2.subtract(bare, 127, bare)  # 128 - weight, not below 0
    full = np.empty_like(image)
    full[:] = ground
    return cv2.add(deep, cv2.multiply(full, bare, scale=1 / 128))
