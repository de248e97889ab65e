import re

from modules.gallery.metadata.a1111 import (
    SAMPLER_NAMES,
    SCHEDULER_NAMES,
    parameters_text,
    quoted,
)
from modules.spec.flags import Sampler, Scheduler
from modules.spec.task_spec import ResolvedSpec, TaskSpec

FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # A1111's own reader


def text_of(checkpoint="sub/mini, v1: final.safetensors", **values):
    spec = TaskSpec(prompt="a red\nhouse", seed=7, steps=12, **values)
    resolved = ResolvedSpec(
        checkpoint=checkpoint,
        width=64,
        height=96,
        seeds=(7, 8),
        steps=spec.steps,
        cfg_scale=spec.cfg_scale,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
    )
    return parameters_text(
        spec.prompt,
        spec.negative_prompt,
        resolved,
        seed=8,
        version="1.2",
        model_sha256="0123456789abcdef",
    )


def test_the_last_line_reads_as_fields():
    *prompt, negative, last = text_of(negative_prompt="people, text").split("\n")
    assert prompt == ["a red", "house"]
    assert negative == "Negative prompt: people, text"
    assert dict(FIELD.findall(last)) == {
        "Steps": "12",
        "Sampler": "DPM++ 2M SDE",
        "Schedule type": "Karras",
        "CFG scale": "4",
        "Seed": "8",
        "Size": "64x96",
        "Model hash": "0123456789",
        "Model": '"mini, v1: final"',
        "Version": "Easel 1.2",
    }


def test_no_negative_prompt_gives_no_such_line():
    assert "Negative prompt" not in text_of()


def test_values_are_quoted_only_where_they_would_confuse():
    assert quoted("plain name") == "plain name"
    assert quoted('a,"b"\nü') == '"a,\\"b\\"\\nü"'


def test_every_choice_has_its_name():
    assert set(SAMPLER_NAMES) == set(Sampler)
    assert set(SCHEDULER_NAMES) == set(Scheduler)
