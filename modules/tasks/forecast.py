"""How long a request will take and how much memory: learned from the pictures painted here.

A picture's seconds are taken for a + b · work, where work counts what the network computes: steps
times calls a step times pixels. a and b come from the pictures of the same checkpoint by the
median of all slopes (Theil 1950, Sen 1968), so that a picture that had to wait for a model to
load, or for another program, moves nothing. A refiner and image prompts cost what only pictures
with the same ones can tell; until there is one, the checkpoint's others stand for it.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from modules.spec.flags import Sampler
from modules.spec.image_prompt import ImagePrompt, ImagePromptType
from modules.spec.task_spec import ResolvedSpec
from modules.tasks.records import parse_resolved

PICTURES_READ = 400
_PICTURES_USED = 40  # of one checkpoint, newest first
_PEAKS_USED = 10  # so that another device is learned soon
_SAME = 0.02  # works closer than this count as one

_CALLS = {
    Sampler.HEUN: 2,
    Sampler.HEUNPP2: 3,
    Sampler.DPM_2: 2,
    Sampler.DPM_2_ANCESTRAL: 2,
    Sampler.DPM_ADAPTIVE: 3,
    Sampler.DPMPP_2S_ANCESTRAL: 2,
    Sampler.DPMPP_SDE: 2,
    Sampler.DPMPP_SDE_GPU: 2,
    Sampler.RESTART: 2,
}


_ADAPTIVE_ROUNDS = 9
"""Of dpm_adaptive for latents of deviation 0.8, with a schedule of 10, 20 or 40 steps alike."""


def calls_of(sampler: Sampler) -> int:
    """How often the network is asked in each step but the last; for dpm_adaptive, each round."""
    return _CALLS.get(sampler, 1)


def _is_adaptive(resolved: ResolvedSpec) -> bool:
    return resolved.sampler is Sampler.DPM_ADAPTIVE


@dataclass(frozen=True, slots=True)
class Timing:
    """A picture that was painted: what it came from, and the seconds since the one before.

    cold: a model had to be loaded first. peak: the most memory in bytes that it took.
    image_prompts: types of those that steered it, sorted.
    """

    resolved: ResolvedSpec
    seconds: float
    cold: bool = False
    peak: int | None = None
    image_prompts: tuple[str, ...] = ()


def work_of(resolved: ResolvedSpec) -> float:
    """Network calls for one prompt times megapixels, for one picture; of dpm_adaptive, which takes
    as many rounds as it needs, the steps tell nothing."""
    prompts = 1.0
    if resolved.cfg_scale != 1.0:
        prompts += resolved.guidance_end - resolved.guidance_start
    rounds = _ADAPTIVE_ROUNDS if _is_adaptive(resolved) else resolved.steps
    calls = rounds * calls_of(resolved.sampler)
    return calls * prompts * resolved.width * resolved.height / 1e6


def timings_of(rows: Iterable[Mapping[str, Any]]) -> list[Timing]:
    """Timings from pictures, newest first as they are.

    rows: `task_id`, `idx`, `created`, `peak` of each picture; `started`, `resolved` of its task
    and `image_prompts` as JSON; `server_start`, when the program was started before it, or None.
    Those of a task that another version resolved, and this one cannot read, are left out.
    """
    pictures = list(rows)
    made = {(picture["task_id"], picture["idx"]): picture["created"] for picture in pictures}
    specs: dict[str, ResolvedSpec | None] = {}
    models: tuple[str, str] | None = None  # of the picture before, of any task
    before = 0.0  # when that one was finished
    found = []
    for picture in reversed(pictures):
        task, index = picture["task_id"], picture["idx"]
        if task not in specs:
            specs[task] = parse_resolved(picture["resolved"])
        resolved = specs[task]
        if resolved is None:
            models = None  # nobody knows which it left in memory
            continue
        begun = picture["started"] if index == 0 else made.get((task, index - 1))
        cold = index == 0 and (
            models != _models(resolved) or before < (picture["server_start"] or 0.0)
        )
        models, before = _models(resolved), picture["created"]
        # where the one before was skipped, or the clock was set back, nothing is known
        if begun is not None and picture["created"] > begun:
            seconds, peak = picture["created"] - begun, picture["peak"]
            types = prompt_types(json.loads(picture["image_prompts"] or "[]"))
            found.append(Timing(resolved, seconds, cold, peak, types))
    return found[::-1]


def prompt_types(prompts: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The types of image prompts in JSON form, sorted; those that count for nothing left out."""
    usual = ImagePromptType.IMAGE_PROMPT.value
    return tuple(sorted(str(each.get("type", usual)) for each in prompts if _counts(each)))


def _counts(prompt: Mapping[str, Any]) -> bool:
    # Not validated: what was stored before a rule came must go on being read.
    usual = ImagePromptType.IMAGE_PROMPT
    kind = next((kind for kind in ImagePromptType if kind == prompt.get("type")), usual)
    return ImagePrompt.model_construct(**{**prompt, "type": kind}).counts


def _models(resolved: ResolvedSpec) -> tuple[str, str]:
    return resolved.checkpoint, resolved.refiner


def forecast(
    timings: Sequence[Timing], resolved: ResolvedSpec, image_prompts: tuple[str, ...] = ()
) -> float | None:
    """Seconds for one picture of `resolved`; None until its checkpoint has painted something.

    timings: newest first. image_prompts: as Timing has them.
    """
    known = [t for t in timings if t.resolved.checkpoint == resolved.checkpoint]
    if not known:
        return None
    wanted_kind = (_models(resolved), image_prompts)
    known = [t for t in known if (_models(t.resolved), t.image_prompts) == wanted_kind] or known
    wanted = work_of(resolved)
    kind = (calls_of(resolved.sampler), _is_adaptive(resolved))
    alike = [
        t
        for t in known
        if (calls_of(t.resolved.sampler), _is_adaptive(t.resolved)) == kind
        and abs(work_of(t.resolved) - wanted) <= _SAME * wanted
    ]
    usual = [t.seconds for t in alike if not t.cold][:_PICTURES_USED]
    if usual:  # loading only ever adds time, so what took less with it counts, too
        return min([statistics.median_low(usual), *(t.seconds for t in alike if t.cold)])
    known = ([t for t in known if not t.cold] or known)[:_PICTURES_USED]
    points = [(work_of(t.resolved), t.seconds) for t in known]
    fixed, rate = _line(points)
    return max(fixed + rate * wanted, rate * wanted * 0.1)


def forecast_memory(
    timings: Sequence[Timing], resolved: ResolvedSpec, image_prompts: tuple[str, ...] = ()
) -> int | None:
    """Bytes with which such a picture was painted; None until there was one.

    Such a picture is of the same checkpoint, refiner, size and types of image prompts, and asks
    the network for as many predictions at once; steps do not matter. The least of the newest
    counts: other models that happened to be in memory only ever add. timings: newest first.
    """
    wanted = (_memory_key(resolved), image_prompts)
    alike = [
        t.peak for t in timings if t.peak and (_memory_key(t.resolved), t.image_prompts) == wanted
    ]
    return min(alike[:_PEAKS_USED], default=None)


def _memory_key(resolved: ResolvedSpec) -> tuple[str, str, int, int, bool]:
    is_guided = resolved.cfg_scale != 1.0
    size = sorted((resolved.width, resolved.height))  # lying or standing makes no difference
    return resolved.checkpoint, resolved.refiner, size[0], size[1], is_guided


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of seconds = a + b · work, neither below 0; a is 0 where all works are the same."""
    slopes = [
        (s2 - s1) / (w2 - w1)
        for (w1, s1), (w2, s2) in combinations(points, 2)
        if abs(w2 - w1) > _SAME * max(w1, w2)
    ]
    rate = statistics.median(slopes) if slopes else 0.0
    if rate <= 0.0:
        return 0.0, statistics.median(seconds / work for work, seconds in points)
    return max(0.0, statistics.median(seconds - rate * work for work, seconds in points)), rate
