"""Looks that the picture book's own styles do not have, for style LoRAs: a page is drawn over."""

from collections.abc import Callable
from random import Random

import cv2
import numpy as np

from extras.training.scenes import textures

BLUE, CHALK = (28, 74, 148), (236, 243, 252)
SEPIA_PAPER, SEPIA_INK = (243, 228, 197), (74, 44, 22)
GRID = 16  # pixels between the lines of a blueprint's sheet
DOT = 4.0  # pixels between a print's dots


def blueprint(image: np.ndarray, rng: Random) -> np.ndarray:
    """White lines on a blue sheet with a faint grid; lighter things show as a paler blue."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    edges = np.zeros((height, width), np.float32)
    for channel in cv2.split(cv2.GaussianBlur(image, (0, 0), 0.8)):
        across = cv2.Sobel(channel, cv2.CV_32F, 1, 0, ksize=3)
        down = cv2.Sobel(channel, cv2.CV_32F, 0, 1, ksize=3)
        edges = np.maximum(edges, cv2.magnitude(across, down))
    lines = np.clip(edges / 150.0 - 0.15, 0.0, 1.0)
    shade = 0.12 * grey.astype(np.float32) / 255.0
    left, top = rng.randrange(GRID), rng.randrange(GRID)
    shade[top::GRID] += 0.10
    shade[:, left::GRID] += 0.10
    return _between(BLUE, CHALK, np.maximum(lines, shade))


def halftone(image: np.ndarray, rng: Random) -> np.ndarray:
    """An old print: brown dots, the larger the darker, on toned paper."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    tone = cv2.GaussianBlur(grey, (0, 0), 0.7)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = 2 * np.pi / DOT / np.sqrt(2.0)
    start = rng.uniform(0.0, DOT)
    wave = np.cos((rows + columns + start) * turn) * np.cos((rows - columns) * turn)
    ink = np.clip((0.5 + 0.42 * wave - tone) * 3.0 + 0.5, 0.0, 1.0)
    worn = 1.0 - 0.05 * np.abs(textures.patch("cloud", height, width, rng))
    return _between(SEPIA_PAPER, SEPIA_INK, ink * worn)


def _between(
    ground: tuple[int, int, int], line: tuple[int, int, int], share: np.ndarray
) -> np.ndarray:
    """uint8 (H, W, 3) from one colour, where share (H, W) is 0, to the other, where it is 1."""
    low, high = np.float32(ground), np.float32(line)
    return np.rint(low + (high - low) * share[..., None]).clip(0, 255).astype(np.uint8)


FINISHES: dict[str, tuple[Callable[[np.ndarray, Random], np.ndarray], tuple[str, ...]]] = {
    "blueprint": (blueprint, ("blueprint", "blueprint drawing", "white lines on blueprint paper")),
    "halftone": (halftone, ("sepia halftone", "sepia halftone print", "old sepia print")),
}
"""How each is made, and its words."""
DRAWN_FROM = "flat"
"""The style of the pages that are drawn over."""
