"""What a scene is about as a list of facts that a text can state, each true or not.

The facts are pairs and counts of one subject ("house", "house red", "house two", "house left"),
so that a network that knows them has bound each colour to its own thing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import Scene

Fact = tuple[str, ...]


@lru_cache(maxsize=1)
def fact_index() -> dict[Fact, int]:
    """Every fact and its place in a row of facts."""
    facts: list[Fact] = []
    for subject in words.SUBJECTS:
        facts.append((subject,))
        facts += [(subject, color) for color in words.COLORS]
        facts += [(subject, str(count)) for count in words.COUNTS]
        facts += [(subject, scale) for scale in words.SCALES]
        facts += [(subject, side) for side in words.RELATIONS]
    for kind, names in (("place", words.PLACES), ("ground", words.COLORS), ("time", words.TIMES),
                        ("weather", words.WEATHERS), ("style", words.STYLES)):  # fmt: skip
        facts += [(kind, name) for name in names]
    return {fact: place for place, fact in enumerate(facts)}


def scene_facts(scene: Scene) -> np.ndarray:
    """uint8 (len(fact_index()),): 1 where the fact holds for the scene."""
    found: list[Fact] = [("place", scene.place), ("style", scene.style)]
    if scene.place_color:
        found.append(("ground", scene.place_color))
    if words.PLACES[scene.place].has_sky:
        found += [("time", scene.time), ("weather", scene.weather)]
    sides = (scene.relation, words.OPPOSITE.get(scene.relation, ""))
    for thing, side in zip(scene.things, sides, strict=False):
        traits = (thing.color, str(thing.count), thing.scale, *([side] if side else []))
        found += [(thing.subject,), *((thing.subject, trait) for trait in traits)]
    index = fact_index()
    row = np.zeros(len(index), np.uint8)
    row[[index[fact] for fact in found]] = 1
    return row


def fact_loss(logits: Tensor, facts: Tensor) -> Tensor:
    """Cross-entropy of logits (B, F) against facts (B, F) in 0..1: of all facts, mean of a row."""
    entropy = F.binary_cross_entropy_with_logits(logits.float(), facts.float(), reduction="none")
    return entropy.sum(dim=1).mean()


# --- Reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What somebody takes a picture for.

    subjects: from the likeliest to the least; colors: of each subject, if it is there; place:
    such as "lake", or "plain" and the ground's colour, as "plain red".
    """

    subjects: tuple[str, ...]
    colors: dict[str, str]
    place: str
    style: str


def readings(logits: Tensor) -> list[Reading]:
    """One reading for each row of logits (B, F)."""
    values = logits.detach().float().cpu()
    index = fact_index()

    def best(kind: str, names: Iterable[str]) -> list[list[str]]:
        names = list(names)
        places = [index[(kind, name) if kind else (name,)] for name in names]
        order = values[:, places].argsort(dim=1, descending=True)
        return [[names[i] for i in row] for row in order.tolist()]

    subjects, grounds = best("", words.SUBJECTS), best("ground", words.COLORS)
    places, styles = best("place", words.PLACES), best("style", words.STYLES)
    colors = {name: best(name, words.COLORS) for name in words.SUBJECTS}
    return [
        Reading(
            subjects=tuple(subjects[i]),
            colors={name: rows[i][0] for name, rows in colors.items()},
            place=f"plain {grounds[i][0]}" if places[i][0] == "plain" else places[i][0],
            style=styles[i][0],
        )
        for i in range(len(values))
    ]


def place_of(scene: Scene) -> str:
    """The place of a scene as a Reading says it."""
    return f"plain {scene.place_color}" if scene.place == "plain" else scene.place


def right(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Whether a reading is right about "subject", "colour", "place" and "style" of a scene.

    With several groups of things, all subjects must be found among as many guesses, and all
    colours, each given its subject, be right. Without any, there is no "subject"; without the
    right subjects, there is no "colour", since nothing is there whose colour could be judged.
    """
    found = {"place": reading.place == place_of(scene), "style": reading.style == scene.style}
    if scene.things:
        true = {thing.subject for thing in scene.things}
        found["subject"] = set(reading.subjects[: len(true)]) == true
        if found["subject"]:
            found["colour"] = all(reading.colors[t.subject] == t.color for t in scene.things)
    return found


def shares(rows: Iterable[dict[str, bool]]) -> dict[str, tuple[float, int]]:
    """(share of the rows that are right, number of rows) for each key that occurs."""
    kept: dict[str, list[bool]] = {}
    for row in rows:
        for key, value in row.items():
            kept.setdefault(key, []).append(value)
    return {key: (sum(values) / len(values), len(values)) for key, values in kept.items()}
