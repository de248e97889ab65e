"""What the trainer's command lines take: numbers in bounds, and options of some stages alone."""

import argparse
import math
from collections.abc import Callable

from extras.training.errors import TrainingError


def whole(low: int, high: int | None = None, *, step: int = 1) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `low` (to `high`), multiples of `step`."""
    bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
    wanted = f"a multiple of {step} {bounds}" if step > 1 else f"a whole number {bounds}"

    def read(text: str) -> int:
        value: int | None
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or value % step or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"it must be {wanted}, not {text!r}")
        return value

    return read


def number(low: float, *, above: bool = False) -> Callable[[str], float]:
    """A type for argparse: finite numbers from `low` on; above: `low` itself is none of them."""
    wanted = f"a number above {low:g}" if above else f"a number of {low:g} or more"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (above and value == low):
            raise argparse.ArgumentTypeError(f"it must be {wanted}, not {text!r}")
        return value

    return read


BASE = ("base",)
WITH_WINDOW = ("base", "detector", "tower", "lora", "fewstep", "ip", "control")
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "--adapter": ("ip", "control"),
    "--book": BASE,
    "--levels": ("base", "ip"),
    "--align": ("base", "tower", "ip"),
    "--emphasis": ("base", "tower", "ip"),
    "--keep-pages": BASE,
    "--objective": BASE,
    "--weighting": BASE,
    "--loss": BASE,
    "--offset-noise": BASE,
    "--frozen-text": BASE,
    "--optimizer": ("vae", "decoder", "base", "tower", "ip", "control"),
    "--checkpointing": BASE,
    "--compile": ("vae", "decoder", "base", "detector", "tower"),
    "--side": ("vae", "decoder"),
    "--capacity": WITH_WINDOW,
    "--reuse": WITH_WINDOW,
    "--rank": ("lora", "fewstep", "control"),
    "--start-from": ("decoder", "base", "lora", "fewstep", "ip", "control"),
    "--pictures": ("lora",),
    "--trigger": ("lora",),
    "--title": ("lora",),
    "--finish": ("lora",),
    "--output": ("decoder", "base", "detector", "lora", "fewstep", "ip", "control"),
    "--size": ("vae", "text", "base", "detector", "tower", "ip"),
}
"""The stages that an option is for; the others would do nothing with it."""


SEVERAL_PAGES = ("vae", "decoder")
"""The stages that may have pages of several areas; a model of pictures has one."""


def refuse_foreign(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raises TrainingError for an option that the stage asked for would ignore."""
    if len(args.page) > 1 and args.stage not in SEVERAL_PAGES:
        raise TrainingError(
            f"--page takes several sizes for the stages {' and '.join(SEVERAL_PAGES)} alone: give "
            f"one for the stage {args.stage}."
        )
    for option, stages in ONLY_FOR.items():
        name = option[2:].replace("-", "_")
        if args.stage in stages or getattr(args, name) == parser.get_default(name):
            continue
        whose = f"the stage {stages[0]} alone"
        if len(stages) > 1:
            whose = f"the stages {', '.join(stages[:-1])} and {stages[-1]}"
        raise TrainingError(f"{option} is of {whose}: leave it out for the stage {args.stage}.")
