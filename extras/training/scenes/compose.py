"""From a seed to a Scene: what is combined with what, and how often."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import SIZES, Scene, Thing

_STYLE_WEIGHTS = {"flat": 22, "cartoon": 14, "watercolor": 14, "crayon": 10, "line art": 10,
                  "chalk": 8, "pixel art": 11, "neon": 11}  # fmt: skip
_KIND_WEIGHTS = {"one": 52, "some": 16, "two": 30, "none": 2}
SIZE_WEIGHTS = (34.0, 12, 12, 11, 11, 10, 10)
"""How often each of SIZES is taken."""
_PRIMER_STYLES = {"flat": 44, "cartoon": 28, "watercolor": 8, "crayon": 3, "line art": 4,
                  "chalk": 3, "pixel art": 5, "neon": 5}  # fmt: skip
_PRIMER_PLAIN = 0.4
# The colour of the ground in each place: a subject of that colour is drawn there less often.
_GROUND_COLORS = {"meadow": {"green"}, "forest": {"green"}, "hills": {"green", "gray"},
                  "lake": {"green", "blue"}, "sea": {"blue"}, "underwater": {"blue"},
                  "beach": {"yellow"}, "desert": {"orange", "yellow"}, "snow": {"white"},
                  "city": {"gray"}, "space": {"black"}, "room": {"brown"}}  # fmt: skip


def scene_from_seed(seed: int, *, size: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed. The same seed gives the same scene in any process, for any `size`."""
    return _scene(Random(f"scene {seed}"), _KIND_WEIGHTS, seed, size)


def pair_scene(seed: int, *, size: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed in which there are always two groups of things."""
    return _scene(Random(f"pair {seed}"), {"two": 100}, seed, size)


def _scene(rng: Random, kinds: Mapping[str, int], seed: int, size: tuple[int, int] | None) -> Scene:
    drawn_size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
    style = rng.choices(list(_STYLE_WEIGHTS), list(_STYLE_WEIGHTS.values()))[0]
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    subject = rng.choice(list(words.SUBJECTS))
    place = _place(rng, subject)
    if kind == "none":
        place = rng.choice(list(_GROUND_COLORS))
    has_sky = words.PLACES[place].has_sky
    time = rng.choices(("day", "sunset", "night"), (56, 18, 26))[0] if has_sky else "day"
    weather = (
        rng.choices(("clear", "rain", "snow", "fog"), (70, 11, 11, 8))[0] if has_sky else "clear"
    )
    things: tuple[Thing, ...] = ()
    if kind == "two":
        other = rng.choice([name for name in words.SUBJECTS if name != subject])
        counts = rng.choices(((1, 1), (2, 1), (1, 2), (1, 3)), (76, 9, 9, 6))[0]
        things = (
            _thing(rng, subject, style, place, counts[0]),
            _thing(rng, other, style, place, counts[1]),
        )
    elif kind != "none":
        count = 1 if kind == "one" else rng.choice((2, 2, 3))
        things = (_thing(rng, subject, style, place, count, alone=count == 1),)
    taken = {thing.color for thing in things}
    return Scene(
        things=things,
        place=place,
        place_color=_backdrop(rng, taken) if place == "plain" else "",
        time=time,
        weather=weather,
        style=style,
        relation=rng.choice(list(words.RELATIONS)) if kind == "two" else "",
        size=size or drawn_size,
        seed=seed,
    )


def alphabet_scene(seed: int, *, size: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed in the alphabet, for a network that knows no shapes yet.

    One large subject, flat on a plain ground: its name and the two colours are nearly all that
    there is to see.
    """
    rng = Random(f"alphabet {seed}")
    drawn_size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
    thing = _thing(rng, rng.choice(list(words.SUBJECTS)), "flat", "plain", 1)
    return Scene(
        things=(replace(thing, scale="large"),),
        place="plain",
        place_color=_backdrop(rng, {thing.color}),
        size=size or drawn_size,
        seed=seed,
    )


def primer_scene(seed: int, *, size: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed in the primer, for a network that has seen little yet.

    One subject, most often large, often on a plain ground, in clear weather, mostly by day: what
    is told of it is seen.
    """
    rng = Random(f"primer {seed}")
    drawn_size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
    style = rng.choices(list(_PRIMER_STYLES), list(_PRIMER_STYLES.values()))[0]
    subject = rng.choice(list(words.SUBJECTS))
    place = "plain" if rng.random() < _PRIMER_PLAIN else _place(rng, subject)
    has_sky = words.PLACES[place].has_sky
    thing = _thing(rng, subject, style, place, 1)
    return Scene(
        things=(replace(thing, scale=rng.choices(("medium", "large"), (25, 75))[0]),),
        place=place,
        place_color=_backdrop(rng, {thing.color}) if place == "plain" else "",
        time=rng.choices(("day", "sunset", "night"), (70, 12, 18))[0] if has_sky else "day",
        style=style,
        size=size or drawn_size,
        seed=seed,
    )


def _place(rng: Random, subject: str) -> str:
    home = words.SUBJECTS[subject].home
    if home and rng.random() < 0.34:
        return rng.choice(home)
    if rng.random() < 0.2:
        return "plain"
    return rng.choice(list(words.PLACES))


def _thing(
    rng: Random, subject: str, style: str, place: str, count: int, *, alone: bool = False
) -> Thing:
    """A group of subjects. Only what stands alone is large: groups share the picture's room."""
    faint = words.FAINT_COLORS.get(style, frozenset()) | (
        _GROUND_COLORS.get(place, set()) if rng.random() < 0.7 else set()
    )
    color = rng.choice([name for name in words.COLORS if name not in faint])
    scale = rng.choices(("small", "medium", "large"), (16, 58, 26 if alone else 0))[0]
    return Thing(subject=subject, color=color, count=count, scale=scale)


def _backdrop(rng: Random, taken: set[str]) -> str:
    return rng.choice([name for name in words.COLORS if name not in taken])
