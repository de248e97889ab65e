"""What a scene is about as a list of facts that a text can state, each true or not.

The facts are pairs and counts of one subject ("house", "house red", "house two", "house left"),
so that a network that knows them has bound each colour to its own thing.
"""

from functools import lru_cache

import numpy as np

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
