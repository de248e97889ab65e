"""Pictures to maps that structure controls follow: pyramid Canny, and CPDS.

Both take uint8 (H, W, 3), RGB, and give uint8 (H, W) of the same size; any size from 1 × 1 up. They
are what the released control networks of these names were trained on.
"""

import cv2
import numpy as np

PYRAMID = tuple(k / 10 for k in range(2, 11))
CANNY_LOW, CANNY_HIGH = 64, 128
KEEP = 0.75  # of the edges found at the smaller scales, at each scale
BLUR_SIGMA = 0.8
SOLVE_SIDES = 900  # the grey's weights are solved on a copy whose sides sum up to no more
CONTRAST_SIGMA = 0.02
CONTRAST_ROUNDS = 15
CONTRAST_GAIN = 1e-4  # a round that changes the energy by less is the last one
AGREED = 0.05  # a step in one direction in all three channels has a sign for certain
CHANNELS = ((0, 1), (0, 2), (1, 2), (0, 0), (1, 1), (2, 2))
"""The squares and products among the nine terms of the grey; the first three are r, g and b."""


def canny_pyramid(
    x: np.ndarray,
    canny_low_threshold: float = CANNY_LOW,
    canny_high_threshold: float = CANNY_HIGH,
) -> np.ndarray:
    """Edges at nine scales, those that show at many of them the brightest.

    The thresholds are Canny's, 0 to 255 and in either order; lower ones find more.
    """
    x = _rgb(x)
    height, width = x.shape[:2]
    sum_of_scales: np.ndarray | None = None
    for k in PYRAMID:
        size = max(1, int(width * k)), max(1, int(height * k))
        small = x if k == 1.0 else cv2.resize(x, size, interpolation=cv2.INTER_AREA)
        found = [cv2.Canny(c, canny_low_threshold, canny_high_threshold) for c in cv2.split(small)]
        edges = cv2.merge(found).astype(np.float32)
        if sum_of_scales is None:
            sum_of_scales = edges
        else:
            larger = cv2.resize(sum_of_scales, size, interpolation=cv2.INTER_LINEAR)
            sum_of_scales = cv2.addWeighted(larger, KEEP, edges, 1.0 - KEEP, 0.0)
    total = cv2.transform(sum_of_scales, np.ones((1, 3), np.float32))
    return stretch(total.reshape(height, width), 1.0, 99.0)


def cpds(x: np.ndarray) -> np.ndarray:
    """Contrast-preserving grey plus how far the picture moves when that is its lightness."""
    x = _rgb(x)
    blurred = cv2.GaussianBlur(x, (0, 0), BLUR_SIGMA)
    grey, boosted = decolour(blurred)
    away = cv2.absdiff(blurred, boosted).astype(np.float32)
    squares = cv2.transform(away * away, np.ones((1, 3), np.float32))
    return stretch(grey.astype(np.float32) + cv2.sqrt(squares).reshape(grey.shape), 4.0, 96.0)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Float (H, W) → uint8, the two percentiles becoming 0 and 255; black where all are equal."""
    bottom, top = np.percentile(values, (low, high))
    if top <= bottom:
        bottom, top = float(values.min()), float(values.max())
    scale = 255.0 / max(float(top - bottom), 1e-6)
    return cv2.convertScaleAbs(np.maximum(values - np.float32(bottom), 0.0), alpha=scale)


def _rgb(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 or 0 in x.shape:
        raise ValueError(f"A picture here is uint8 (H, W, 3), got {x.dtype} {x.shape}.")
    return np.ascontiguousarray(x)


# --- Grey that keeps contrast -----------------------------------------------------------------


def decolour(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(grey uint8 (H, W), the picture with that lightness, uint8 (H, W, 3)).

    Lu, Xu and Jia 2012, "Contrast preserving decolorization": the grey is a polynomial of the
    colours whose steps between neighbours are as large as the perceived ones, in either direction
    unless all three channels agree on it. What cv2.decolor gives to within a level or so, at a
    tenth of its time, and for thin and for plain pictures, too, where that fails. Like it, this
    takes the channels for blue, green, red: the control networks' maps were made so.
    """
    weights = _solve(_small(x))
    grey = _polynomial(cv2.split(x.astype(np.float32) / 255.0), weights)
    low, high = float(grey.min()), float(grey.max())
    if high - low < 1e-4:
        grey8 = cv2.cvtColor(x, cv2.COLOR_BGR2GRAY)
    else:
        grey8 = cv2.convertScaleAbs(grey - low, alpha=255.0 / (high - low))
    lab = cv2.cvtColor(x, cv2.COLOR_BGR2LAB)
    lab[..., 0] = grey8
    return grey8, cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)


def _small(x: np.ndarray) -> np.ndarray:
    """A copy in float32, 0..1, whose sides sum up to SOLVE_SIDES at most."""
    height, width = x.shape[:2]
    pixels = x.astype(np.float32) / 255.0
    factor = SOLVE_SIDES / (height + width)
    if factor >= 1.0:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR).reshape(size[1], size[0], 3)


def _polynomial(channels: tuple[np.ndarray, ...], w: np.ndarray) -> np.ndarray:
    """w[0] r + w[1] g + w[2] b + w[3] rg + w[4] rb + w[5] gb + w[6] r² + w[7] g² + w[8] b²."""
    r, g, b = channels
    w = w.astype(np.float32)
    total = r * (w[0] + w[3] * g + w[4] * b + w[6] * r)
    total += g * (w[1] + w[5] * b + w[7] * g)
    total += b * (w[2] + w[8] * b)
    return total


def _steps(planes: np.ndarray) -> np.ndarray:
    """Differences of neighbours across and down: (H, W, n) → (n, pairs), float32."""
    planes = np.moveaxis(planes, -1, 0)
    across = np.diff(planes, axis=2).reshape(len(planes), -1)
    down = np.diff(planes, axis=1).reshape(len(planes), -1)
    return np.concatenate([across, down], axis=1)


def _solve(x: np.ndarray) -> np.ndarray:
    """The nine weights, by fixed-point iteration from the mean of the channels."""
    w = np.array([1 / 3] * 3 + [0.0] * 6)
    products = np.stack([x[..., i] * x[..., j] for i, j in CHANNELS], axis=-1)
    terms = _steps(np.concatenate([x, products], axis=-1))
    lab = _steps(cv2.cvtColor(x, cv2.COLOR_BGR2LAB))
    wanted = np.sqrt(np.einsum("np,np->p", lab, lab)) / np.float32(100.0)
    if not wanted.any():
        return w
    r, g, b = terms[:3]
    up = (r > AGREED) & (g > AGREED) & (b > AGREED)
    down = (r < -AGREED) & (g < -AGREED) & (b < -AGREED)
    sure = up.astype(np.float32) - down.astype(np.float32)
    undecided = sure == 0.0
    gram = (terms @ terms.T).astype(np.float64)
    now = w.astype(np.float32) @ terms
    energy = _energy(now, wanted)
    for _ in range(CONTRAST_ROUNDS):
        # Of two bells around ±wanted, the share of the upper less that of the lower.
        sign = np.where(undecided, np.tanh(now * wanted / np.float32(CONTRAST_SIGMA**2)), sure)
        goal = terms @ (sign * wanted)
        w = np.linalg.lstsq(gram, goal.astype(np.float64), rcond=1e-9)[0]
        now = w.astype(np.float32) @ terms
        before, energy = energy, _energy(now, wanted)
        if abs(energy - before) < CONTRAST_GAIN:
            break
    return w


def _energy(now: np.ndarray, wanted: np.ndarray) -> float:
    """How unlikely these steps are, as steps of the wanted size in either direction.

    The mean of -log(exp(-(now - wanted)²/σ) + exp(-(now + wanted)²/σ)).
    """
    size = np.abs(now)
    near = np.square(size - wanted) / np.float32(CONTRAST_SIGMA)
    other = cv2.exp(size * wanted * np.float32(-4.0 / CONTRAST_SIGMA)).reshape(size.shape)
    return float(near.mean() - cv2.log(other + np.float32(1.0)).mean())
