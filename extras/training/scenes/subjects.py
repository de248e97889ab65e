"""The table of subjects: a name from the vocabulary to the function that draws it."""

from collections.abc import Callable

from extras.training.scenes import subjects_living as living
from extras.training.scenes import subjects_made as made
from extras.training.scenes.brush import Brush

DRAW: dict[str, Callable[[Brush], None]] = {
    function.__name__: function
    for function in (
        made.house, made.castle, made.tent, living.tree, living.cactus, living.mushroom,
        living.flower, living.mountain, living.cat, living.dog, living.rabbit, living.bird,
        living.owl, living.penguin, living.fish, living.whale, living.turtle, living.butterfly,
        living.snail, made.boat, made.car, made.bus, made.rocket, made.balloon, made.kite,
        made.umbrella, made.star, made.heart, made.apple, made.cup, made.robot, made.snowman,
    )
}  # fmt: skip

UPRIGHT = frozenset({"house", "castle", "mountain", "snowman", "robot", "cup", "bus", "car"})
"""Subjects that never tilt."""
