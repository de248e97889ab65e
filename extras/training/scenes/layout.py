"""Where the instances of a scene stand: centres, sizes, turns. Pure arithmetic on the rng."""

from random import Random
from typing import NamedTuple

from extras.training.scenes.scene import Scene, Thing
from extras.training.scenes.subjects import UPRIGHT
from extras.training.scenes.vocabulary import SUBJECTS

FLIPPABLE = frozenset(
    {"cat", "dog", "rabbit", "bird", "fish", "whale", "turtle", "snail", "boat", "car", "bus",
     "cup", "kite", "tent", "apple", "cactus", "mountain"}
)  # fmt: skip
SCALE_PARTS = {"small": (0.26, 0.33), "medium": (0.43, 0.54), "large": (0.66, 0.78)}
FLOATING_PLACES = frozenset({"space", "plain", "underwater"})


class Spot(NamedTuple):
    """One instance: its thing's index, centre and side in pixels, flip and tilt (radians)."""

    thing: int
    center: tuple[float, float]
    side: float
    flip: bool
    tilt: float
    grounded: bool


class Area(NamedTuple):
    """A rectangle of the picture in pixels that a group may use."""

    left: float
    top: float
    right: float
    bottom: float


def spots(scene: Scene, rng: Random, horizon: float) -> list[Spot]:
    """Places for every instance of `scene`, in drawing order (far to near)."""
    areas = _areas(scene)
    found: list[Spot] = []
    for index, (thing, area) in enumerate(zip(scene.things, areas, strict=True)):
        found += _group(scene, index, thing, area, rng, horizon)
    return found


def _areas(scene: Scene) -> list[Area]:
    width, height = scene.size
    whole = Area(0, 0, width, height)
    if len(scene.things) < 2:
        return [whole] * len(scene.things)
    if scene.relation in ("left", "right"):
        middle = width * _share(scene)
        first, second = Area(0, 0, middle, height), Area(middle, 0, width, height)
    else:
        first, second = Area(0, 0, width, height * 0.5), Area(0, height * 0.5, width, height)
    return [first, second] if scene.relation in ("left", "above") else [second, first]


def _share(scene: Scene) -> float:
    """The left group's share of the width: more room for more subjects."""
    first, second = (thing.count for thing in scene.things)
    share = {(1, 1): 0.5, (1, 2): 0.4, (1, 3): 0.34, (2, 1): 0.6, (3, 1): 0.66}.get(
        (first, second), 0.5
    )
    return share if scene.relation == "left" else 1 - share


def _group(
    scene: Scene, index: int, thing: Thing, area: Area, rng: Random, horizon: float
) -> list[Spot]:
    """A row of equal instances inside `area`; three in a tall picture stand as a triangle."""
    width, height = area.right - area.left, area.bottom - area.top
    low, high = SCALE_PARTS[thing.scale]
    side = rng.uniform(low, high) * min(scene.size)
    rows = [thing.count]
    if thing.count == 3 and width < 0.8 * height and width < 240:
        rows = [1, 2]
    most = max(rows)
    side = min(side, 0.92 * width / most, 0.88 * height / len(rows))
    grounded = _grounded(scene, thing) and len(rows) == 1
    found = []
    upper = area.top + side * 0.54
    lower = area.bottom - side * 0.54
    base_y = _height(scene, thing, rng, horizon, upper, lower, side, grounded)
    step = min(width / most, side * rng.uniform(1.06, 1.3)) if most > 1 else 0.0
    step = max(step, min(width / most, side * 1.02))
    reach = max(0.0, (width - side * 1.06 - step * (most - 1)) / 2)
    middle = (area.left + area.right) / 2 + rng.uniform(-0.8, 0.8) * reach
    if len(rows) == 2:
        base_y = min(max(base_y, area.top + side * 1.08), area.bottom - side * 1.08)
    for row, count in enumerate(rows):
        for k in range(count):
            x = middle + (k - (count - 1) / 2) * step
            y = base_y + (row - (len(rows) - 1) / 2) * side * 1.06
            y += rng.uniform(-0.06, 0.06) * side if thing.count > 1 else 0.0
            flip = thing.subject in FLIPPABLE and rng.random() < 0.5
            tilt = 0.0 if thing.subject in UPRIGHT else rng.gauss(0.0, 0.03 if grounded else 0.07)
            center = (x, min(max(y, side * 0.5), scene.size[1] - side * 0.5))
            found.append(Spot(index, center, side, flip, tilt, grounded))
    return found


def _grounded(scene: Scene, thing: Thing) -> bool:
    if scene.place in FLOATING_PLACES:
        return False
    habit = SUBJECTS[thing.subject].habit
    return habit == "ground" or (habit == "water" and scene.place in ("sea", "lake"))


def _height(
    scene: Scene, thing: Thing, rng: Random, horizon: float, upper: float, lower: float,
    side: float, grounded: bool,
) -> float:  # fmt: skip
    """The y of a group's centre between `upper` and `lower`."""
    if upper >= lower:
        return (upper + lower) / 2
    if scene.relation in ("above", "below"):
        return rng.uniform(upper + (lower - upper) * 0.2, upper + (lower - upper) * 0.8)
    height = scene.size[1]
    if grounded:
        stand = height * rng.uniform(min(0.88, horizon + 0.2), 0.93)
        return min(max(stand - side * 0.5, upper), lower)
    if scene.place in FLOATING_PLACES or SUBJECTS[thing.subject].habit != "air":
        return rng.uniform(upper + (lower - upper) * 0.3, upper + (lower - upper) * 0.7)
    return rng.uniform(upper, upper + (lower - upper) * 0.5)
