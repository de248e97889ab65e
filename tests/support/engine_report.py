"""What the engine's tests measured, one JSON line each: the raw material of docs/ENGINE.md."""

import json
import math
import os
from pathlib import Path

from torch import Tensor

VARIABLE = "EASEL_ENGINE_REPORT"


def record(
    kind: str, name: str, test_id: str, reference: str, difference: float, tolerance: float
) -> None:
    """Append a line to the file that the environment variable EASEL_ENGINE_REPORT names.

    kind: "family", "adapter", "sampler", "scheduler", …; name: the thing's own, as users know it.
    test_id: `path::test`, as pytest takes it. reference: what it was held against, in a few words.
    difference: the largest one measured; tolerance: what the test allows. Call it before the
    assertion. Does nothing where the variable is not set. Raises ValueError for numbers that are
    not finite.
    """
    if not (math.isfinite(difference) and math.isfinite(tolerance)):
        raise ValueError(f"{kind} {name}: difference {difference}, tolerance {tolerance}.")
    where = os.environ.get(VARIABLE)
    if not where:
        return
    line = {
        "kind": kind,
        "name": name,
        "test": test_id.split(" ")[0],  # pytest's own variable adds " (call)"
        "reference": reference,
        "difference": float(difference),
        "tolerance": float(tolerance),
    }
    # one short write in append mode, so that tests which run side by side do not mix their lines
    with Path(where).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def agree(
    kind: str, name: str, reference: str, found: Tensor, expected: Tensor, tolerance: float
) -> None:
    """Record the largest difference of two tensors for the test that runs, and assert on it."""
    assert found.shape == expected.shape
    difference = float((found.double() - expected.double()).abs().max())
    record(kind, name, os.environ["PYTEST_CURRENT_TEST"], reference, difference, tolerance)
    assert difference <= tolerance
