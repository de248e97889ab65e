"""Fair timing: both sides in turn, in one process, and the interval that the ratio lies in."""

import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Candidate = Callable[[], Any]


class NotEquivalent(Exception):
    """Two sides that should compute the same thing do not; no ratio may be printed."""


class Waits(Exception):
    """A row needs what this machine has not; nothing is wrong with it."""


@dataclass
class Row:
    """One line of the report. Times in seconds unless `unit` says otherwise.

    theirs: the peer's best configuration; ratio: theirs / ours, so above 1 ours is better.
    low, high: 95 % interval of the ratio. error: how far the outputs are apart.
    """

    name: str
    setup: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    target: str = ""
    unit: str = "s"
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def require_bf16_units(quick: bool) -> None:
    """Raise Waits where the processor has none; a quick run only shows that a row runs."""
    from ldm_patched.modules.model_management import cpu_has_bf16

    if not quick and not cpu_has_bf16():
        units = "AMX or AVX512-bf16 units"
        raise Waits(f"needs a processor with {units}; measure it on a machine that has one")


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, both norms over all numbers."""
    a, b = ours.double().flatten(), theirs.double().flatten()
    return float((a - b).norm() / b.norm())


def require_equal(what: str, ours: torch.Tensor, theirs: torch.Tensor, limit: float) -> float:
    """The relative error; raises NotEquivalent above `limit`, or if either is not finite."""
    if ours.shape != theirs.shape:
        raise NotEquivalent(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}.")
    error = relative_error(ours, theirs)
    if not error <= limit:  # a NaN is not equal either
        raise NotEquivalent(f"{what}: relative error {error:.2e} is above {limit:.0e}.")
    return error


def interleave(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    warm_ups: int = 2,
    after: Mapping[str, Candidate] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; every round runs all of them, in a new order.

    after: what puts a candidate's work back, beside the clock. clock: time.process_time with one
    thread wavers less on a shared machine.
    """
    if unknown := set(after or ()) - set(candidates):
        raise ValueError(f"There is no candidate {sorted(unknown)} to put back.")
    order, draw = list(candidates), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number in range(warm_ups + rounds):
        draw.shuffle(order)
        for name in order:
            gc.collect()
            start = clock()
            result = candidates[name]()
            elapsed = clock() - start
            del result  # beside the clock, too
            if after and name in after:
                after[name]()
            if number >= warm_ups:
                seconds[name].append(elapsed)
    return seconds


def ratio_with_interval(
    theirs: Sequence[float], ours: Sequence[float], draws: int = 2000
) -> tuple[float, float, float]:
    """(ratio of medians, its 2.5 % and 97.5 % points over resampled rounds).

    theirs and ours: seconds of the same rounds, in order.
    """
    generator, rounds = random.Random(1), range(len(ours))
    resampled = []
    for _ in range(draws):
        picked = [generator.choice(rounds) for _ in rounds]
        top = statistics.median(theirs[i] for i in picked)
        resampled.append(top / statistics.median(ours[i] for i in picked))
    resampled.sort()
    low, high = resampled[int(draws * 0.025)], resampled[int(draws * 0.975)]
    return statistics.median(theirs) / statistics.median(ours), low, high


def compare(
    name: str,
    setup: str,
    ours: Candidate,
    peers: Mapping[str, Candidate],
    *,
    rounds: int,
    error: float,
    target: str = "",
    note: str = "",
    after: Mapping[str, Candidate] | None = None,
) -> Row:
    """Time ours against every peer; the row's ratio is against the fastest of them.

    after: see interleave; ours is named "ours".
    """
    seconds = interleave({"ours": ours, **peers}, rounds=rounds, after=after)
    best = min(peers, key=lambda peer: statistics.median(seconds[peer]))
    ratio, low, high = ratio_with_interval(seconds[best], seconds["ours"])
    others = [
        f"vs {peer}: {ratio_with_interval(seconds[peer], seconds['ours'])[0]:.2f}x"
        for peer in peers
        if peer != best
    ]
    return Row(
        name=name,
        setup=setup,
        ours=statistics.median(seconds["ours"]),
        theirs=statistics.median(seconds[best]),
        ratio=ratio,
        low=low,
        high=high,
        error=error,
        target=target,
        note="; ".join([f"peer: {best}", *others, *([note] if note else [])]),
        samples=seconds,
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            cpu = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }
