"""How well the seconds of a picture are foretold from few pictures, some of them spoiled."""

import json
import random
import re
import statistics
from pathlib import Path

import pytest
import torch

from ldm_patched.modules.samplers import SAMPLERS
from modules.spec.flags import Sampler, Scheduler
from modules.spec.performance import MODES
from modules.spec.resolving import resolve_spec
from modules.spec.sizes import SDXL
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.tasks.forecast import (
    Timing,
    calls_of,
    forecast,
    forecast_memory,
    timings_of,
    work_of,
)


def resolved(mode=None, **values) -> ResolvedSpec:
    return resolve_spec(TaskSpec(seed=1, **values), mode, checkpoint="a.safetensors", sizes=SDXL)


def machine(spec: ResolvedSpec, draw: random.Random, *, fixed=3.0, per_work=0.35) -> float:
    """Seconds that a made-up machine takes, a few percent off each time."""
    return (fixed + per_work * work_of(spec)) * draw.gauss(1.0, 0.04)


def errors_after_five(seed: int) -> dict[str, list[float]]:
    """Relative errors by mode, of which some were among the five pictures and some were not."""
    draw = random.Random(seed)
    wanted = {mode.name: resolved(mode) for mode in MODES}
    seen = [wanted[name] for name in ("quality", "speed", "speed", "lightning")]
    draw.shuffle(seen)
    timings = [Timing(spec, machine(spec, draw)) for spec in seen]
    first = draw.choice(list(wanted.values()))
    timings.append(Timing(first, machine(first, draw) + 20.0, cold=True))  # its model was loaded
    errors: dict[str, list[float]] = {}
    for name, spec in wanted.items():
        took = [machine(spec, draw) for _ in range(5)]
        errors[name] = [abs(forecast(timings, spec) - t) / t for t in took]
    return errors


def test_after_five_pictures_the_median_error_of_every_mode_is_small():
    runs = [errors_after_five(seed) for seed in range(40)]
    for mode in MODES:
        errors = [error for run in runs for error in run[mode.name]]
        assert statistics.median(errors) <= 0.15, mode.name


@pytest.mark.parametrize("seed", range(5))
def test_the_same_again_is_foretold_well_though_two_of_five_were_disturbed(seed):
    draw = random.Random(seed)
    spec = resolved()
    timings = [Timing(spec, machine(spec, draw) + (30.0 if i < 2 else 0.0)) for i in range(5)]
    took = statistics.median(machine(spec, draw) for _ in range(9))
    assert abs(forecast(timings, spec) - took) / took <= 0.15


def test_nothing_is_said_of_a_checkpoint_that_has_painted_nothing():
    spec = resolved()
    other = spec.model_copy(update={"checkpoint": "b.safetensors"})
    assert forecast([], spec) is None
    assert forecast([Timing(other, 4.0)], spec) is None


def test_one_picture_is_scaled_by_work():
    spec = resolved(steps=30)
    half = resolved(steps=15)
    assert forecast([Timing(spec, 30.0)], half) == pytest.approx(15.0)


def test_work_counts_calls_and_prompts():
    base = dict(
        checkpoint="a", width=1000, height=1000, seeds=(1,), scheduler=Scheduler.KARRAS, steps=10
    )
    plain = ResolvedSpec(**base, sampler=Sampler.EULER, cfg_scale=1.0)
    assert work_of(plain) == 10
    assert work_of(plain.model_copy(update={"cfg_scale": 4.0})) == 20
    assert work_of(plain.model_copy(update={"cfg_scale": 4.0, "guidance_end": 0.5})) == 15
    assert work_of(plain.model_copy(update={"sampler": Sampler.DPMPP_SDE})) == 20


@pytest.mark.parametrize("sampler", Sampler)
def test_calls_of_a_step_are_those_that_the_sampler_makes(sampler):
    asked, told = [], []
    sigmas = torch.cat([torch.linspace(10.0, 0.1, 24), torch.zeros(1)])

    def network(x, sigma, **_):
        asked.append(sigma)
        return x * (0.5 + 0.1 * torch.cos(sigma)[:, None, None, None])

    start = torch.full((1, 4, 4, 4), 10.0)
    sampling = SAMPLERS[sampler.value]
    sampling(network, start, sigmas, extra_args={"seed": 1}, callback=told.append, disable=True)
    # the last step takes fewer, so the quotient falls a little short of a whole number
    assert round(len(asked) / len(told)) == calls_of(sampler)


def test_the_page_of_samplers_tells_the_same_calls():
    page = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?`) \| (\d) \| (?:yes|no) \|", page, re.MULTILINE)
    found = {name: int(calls) for names, calls in rows for name in re.findall(r"`(\w+)`", names)}
    assert found == {sampler.value: calls_of(sampler) for sampler in Sampler}


def test_pictures_with_other_calls_a_step_are_not_the_same_again():
    euler = resolved(steps=40, sampler=Sampler.EULER)
    restart = resolved(steps=20, sampler=Sampler.RESTART)
    assert work_of(euler) == work_of(restart)
    timings = [Timing(restart, 36.0)] + [Timing(euler, 50.0)] * 2
    assert forecast(timings, restart) == 36.0
    assert forecast(timings, euler) == 50.0
    assert forecast(timings, euler.model_copy(update={"sampler": Sampler.LMS})) == 50.0


def test_the_steps_of_dpm_adaptive_tell_nothing():
    few, many = (resolved(steps=steps, sampler=Sampler.DPM_ADAPTIVE) for steps in (10, 60))
    heunpp = resolved(steps=9, sampler=Sampler.HEUNPP2)  # as many calls a step, as much work
    assert work_of(few) == work_of(many) == work_of(heunpp)
    timings = [Timing(heunpp, 50.0), Timing(few, 20.0)]
    assert forecast(timings, many) == 20.0
    assert forecast(timings, heunpp) == 50.0


def test_slower_is_never_foretold_as_faster_than_nothing():
    fast, slow = resolved(steps=4), resolved(steps=60)
    timings = [Timing(fast, 50.0), Timing(slow, 10.0)]  # makes no sense
    assert forecast(timings, resolved(steps=30)) > 0


def row(task, index, created, **values):
    return {
        "task_id": task,
        "idx": index,
        "created": created,
        "started": 100.0 if task == "a" else 200.0,
        "resolved": resolved().model_dump_json(),
        "server_start": 90.0,
        "peak": None,
        "image_prompts": "[]",
        **values,
    }


def test_timings_are_the_time_since_the_picture_before():
    rows = [row("b", 0, 209.0), row("a", 3, 150.0), row("a", 1, 113.0), row("a", 0, 107.0)]
    assert [timing.seconds for timing in timings_of(rows)] == [9.0, 6.0, 7.0]


def test_what_had_a_model_to_load_is_known():
    other = resolved().model_copy(update={"checkpoint": "b"}).model_dump_json()
    rows = [row("b", 0, 209.0), row("a", 1, 113.0), row("a", 0, 107.0)]
    assert [timing.cold for timing in timings_of(rows)] == [False, False, True]
    rows[0]["server_start"] = 150.0
    assert [timing.cold for timing in timings_of(rows)] == [True, False, True]
    rows[0] |= {"server_start": 90.0, "resolved": other}
    assert [timing.cold for timing in timings_of(rows)] == [True, False, True]
    rows[0]["resolved"] = resolved(refiner="r.safetensors").model_dump_json()
    assert [timing.cold for timing in timings_of(rows)] == [True, False, True]


def test_what_another_version_resolved_is_left_out_and_so_is_the_model_it_loaded():
    newer = resolved().model_dump_json().replace('"karras"', '"of-tomorrow"')
    rows = [row("c", 0, 209.0, started=200.0), row("b", 0, 150.0), row("a", 0, 107.0)]
    rows[1] |= {"resolved": newer, "started": 120.0}
    found = timings_of(rows)
    assert [(timing.seconds, timing.cold) for timing in found] == [(9.0, True), (7.0, True)]


def test_image_prompts_that_count_are_known():
    prompts = [
        {"type": "canny", "weight": None},
        {"type": "face", "stop": 0.0},
        {"weight": 0.0},
        {"start": 0.5},  # where it stops
        {"type": "face", "start": 0.5, "weight": 0.0},
        {},
    ]
    rows = [row("a", 0, 107.0, image_prompts=json.dumps(prompts))]
    assert timings_of(rows)[0].image_prompts == ("canny", "image_prompt")
    assert timings_of([row("a", 0, 107.0, image_prompts=None)])[0].image_prompts == ()


def test_a_refiner_and_image_prompts_are_foretold_from_pictures_with_the_same():
    refined = resolved(refiner="r.safetensors")
    plain = [Timing(resolved(steps=steps), float(steps), peak=1_000) for steps in (10, 20, 30)]
    steered = Timing(resolved(), 75.0, peak=3_000, image_prompts=("canny",))
    assert forecast(plain, refined) == pytest.approx(30.0)  # until there is something better
    assert forecast_memory(plain, refined) is None
    timings = [Timing(refined, 45.0, peak=2_000), steered, *plain]
    assert forecast(timings, refined) == 45.0
    assert forecast(timings, resolved()) == 30.0
    assert forecast(timings, resolved(), ("canny",)) == 75.0
    assert forecast_memory(timings, resolved(), ("canny",)) == 3_000
    assert forecast_memory(timings, resolved(), ("face",)) is None


def test_a_cold_picture_counts_only_where_there_is_no_other():
    spec = resolved()
    cold = Timing(spec, 50.0, cold=True)
    assert forecast([cold], spec) == 50.0
    assert forecast([cold, Timing(spec, 30.0), cold], spec) == 30.0


def test_memory_is_that_of_such_a_picture_whatever_its_steps():
    timings = [
        Timing(resolved(steps=8), 9.0, peak=7_000),  # with another model still in memory
        Timing(resolved(steps=30), 30.0, peak=5_000),
        Timing(resolved(cfg_scale=1.0), 9.0, peak=4_000),
        Timing(resolved(width=512, height=512), 9.0, peak=3_000),
        Timing(resolved(), 9.0),
    ]
    assert forecast_memory(timings, resolved(steps=60)) == 5_000
    assert forecast_memory(timings, resolved(cfg_scale=1.0)) == 4_000
    assert forecast_memory(timings, resolved(width=512, height=512)) == 3_000
    assert forecast_memory(timings, resolved(width=512, height=768)) is None
    other = resolved().model_copy(update={"checkpoint": "b.safetensors"})
    assert forecast_memory(timings, other) is None
    assert forecast_memory([], resolved()) is None


def test_a_picture_turned_by_a_quarter_takes_the_same_memory():
    lying = Timing(resolved(width=1152, height=896), 9.0, peak=5_000)
    assert forecast_memory([lying], resolved(width=896, height=1152)) == 5_000


def test_what_long_ago_took_less_is_forgotten():
    now, then = (Timing(resolved(), 9.0, peak=peak) for peak in (6_000, 2_000))
    assert forecast_memory([now] * 10 + [then], resolved()) == 6_000
