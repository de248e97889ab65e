"""The maps against renderings of their descriptions, and for pictures of every shape."""

import cv2
import numpy as np
import pytest

from extras.preprocessors import canny_pyramid, cpds, decolour, stretch


def scene(height=180, width=240, seed=0):
    """Coloured shapes, a gradient and some noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(20, 200, width)[None]
    image[..., 1] = np.linspace(180, 40, height)[:, None]
    image[..., 2] = 90
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.circle(image, (int(x), int(y)), int(rng.integers(10, 40)), colour, -1)
    return cv2.GaussianBlur(image, (3, 3), 0.8)


def pyramid_in_float64(image, low, high):
    """Nine scales, each channel's edges, a quarter of each added to what there was."""
    total = None
    for k in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        width, height = int(image.shape[1] * k), int(image.shape[0] * k)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        edges = np.stack([cv2.Canny(small[..., c].copy(), low, high) for c in range(3)], -1) / 255.0
        before = edges if total is None else cv2.resize(total, (width, height))
        total = 0.75 * before + 0.25 * edges
    summed = total.sum(-1)
    bottom, top = np.percentile(summed, (1, 99))
    return np.clip((summed - bottom) / (top - bottom) * 255.0, 0, 255)


@pytest.mark.parametrize("thresholds", [(64, 128), (20, 60), (150, 240)])
def test_canny_pyramid_is_what_its_description_says(thresholds):
    image = scene()
    found = canny_pyramid(image, *thresholds)
    wanted = pyramid_in_float64(image, *thresholds)
    assert found.shape == image.shape[:2]
    assert np.abs(found.astype(np.float64) - wanted).max() <= 1.0


def test_lower_thresholds_find_more():
    image = scene()
    assert canny_pyramid(image, 10, 30).mean() > canny_pyramid(image, 150, 250).mean()


def test_an_edge_is_where_it_is_in_the_picture():
    image = np.zeros((120, 200, 3), np.uint8)
    image[:, 100:] = 220
    found = canny_pyramid(image)
    assert abs(int(found.sum(0).argmax()) - 100) <= 2
    assert found[:, :60].max() == 0
    assert found[:, 140:].max() == 0


def test_decolour_is_as_opencv_s_to_a_level_or_so():
    image = scene()
    grey, boosted = decolour(image)
    wanted_grey, wanted_boosted = cv2.decolor(image)
    assert np.abs(grey.astype(int) - wanted_grey.astype(int)).mean() < 2.0
    assert np.abs(boosted.astype(int) - wanted_boosted.astype(int)).mean() < 2.0


def test_cpds_is_what_its_description_says():
    image = scene()
    blurred = cv2.GaussianBlur(image, (0, 0), 0.8)
    grey, boosted = cv2.decolor(blurred)
    away = np.sqrt(np.square(blurred.astype(float) - boosted.astype(float)).sum(-1))
    wanted = grey + away
    bottom, top = np.percentile(wanted, (4, 96))
    wanted = np.clip((wanted - bottom) / (top - bottom) * 255.0, 0, 255)
    found = cpds(image).astype(float)
    assert np.abs(found - wanted).mean() < 4.0
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.995


def test_colours_of_equal_lightness_stay_apart_in_grey():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = (226, 84, 60)  # about as light as the other half
    image[:, 32:] = (60, 150, 84)
    plain = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int)
    assert abs(plain[0, 0] - plain[0, 63]) < 15
    grey, _ = decolour(image)
    assert abs(int(grey[0, 0]) - int(grey[0, 63])) > 100


@pytest.mark.parametrize("function", [canny_pyramid, cpds])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 3), (64, 64)])
@pytest.mark.parametrize("kind", ["noise", "plain"])
def test_every_shape_gives_a_map_of_its_size(function, shape, kind):
    image = np.full((*shape, 3), 77, np.uint8)
    if kind == "noise":
        image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = function(image)
    assert found.dtype == np.uint8
    assert found.shape == shape


@pytest.mark.parametrize("function", [canny_pyramid, cpds])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(function, image):
    with pytest.raises(ValueError, match="uint8"):
        function(image)


def test_stretch_maps_percentiles_and_survives_plain_input():
    values = np.arange(101, dtype=np.float32).reshape(1, 101)
    found = stretch(values, 1.0, 99.0)
    assert (found[0, 1], found[0, 50], found[0, 99]) == (0, 128, 255)
    assert not stretch(np.full((3, 3), 9.0, np.float32), 1.0, 99.0).any()
