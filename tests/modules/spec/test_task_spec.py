"""Requests from outside: what is taken, and what each complaint says."""

import json

import pytest

from modules.spec import limits
from modules.spec.errors import LimitError, SpecError
from modules.spec.task_spec import TaskSpec


def test_every_field_comes_back_from_strict_json():
    spec = TaskSpec(
        prompt="a fox",
        styles=("Photo", "Film"),
        width=64,
        height=128,
        seed=limits.SEED_MAX,
        cfg_scale=7.5,
        sampler="euler",
        output_format="webp",
    )
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert TaskSpec.from_mapping(json.loads(spec.to_json())) == spec


def test_styles_in_words_are_a_list_too():
    assert TaskSpec.from_mapping({"styles": "Photo, Film, Photo"}).styles == ("Photo", "Film")


def test_half_a_character_is_told_as_a_question_mark_for_no_file_could_hold_it():
    cut = {"prompt": "a fox \ud83d", "negative_prompt": "caf\udce9", "styles": ["Film \ud83d"]}
    spec = TaskSpec.from_mapping(cut)
    assert (spec.prompt, spec.negative_prompt, spec.styles) == ("a fox ?", "caf?", ("Film ?",))
    assert TaskSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"styles": [1]}, "styles", "Styles must be text"),
        ({"styles": 3}, "styles", "Styles must be a list"),
        ({"styles": ["x" * 81]}, "styles", "names from the list"),
        ({"styles": ["x"] * (limits.STYLES_PER_TASK + 1)}, "styles", "at most 32 in number"),
        ({"steps": "8"}, "steps", "a whole number"),
        ({"width": 129, "height": 128}, "width", "a multiple of 8"),
        ({"width": 128}, "", "both width and height"),
        ({"cfg_scale": float("nan")}, "cfg_scale", "a finite number"),
        ({"cfg_scale": float("-inf")}, "cfg_scale", "a finite number"),
        ({"checkpoint": "../x.safetensors"}, "checkpoint", "a name from the list"),
        ({"aspect_ratio": "0:0"}, "aspect_ratio", "such as 3:2"),
        ({"surprise": 1}, "surprise", "not known"),
    ],
)
def test_a_complaint_names_the_field_and_what_is_allowed(values, field, words):
    with pytest.raises(SpecError, match=words) as caught:
        TaskSpec.from_json(json.dumps(values))
    assert caught.value.field == field


def test_every_picture_of_a_batch_can_be_asked_for_alone():
    last = TaskSpec(first_index=limits.FIRST_INDEX_MAX - 1, image_count=2, seed=1).of_picture(1)
    assert TaskSpec.from_json(last.to_json()) == last
    with pytest.raises(SpecError, match="First picture must be at most 999999 for 2 pictures"):
        TaskSpec.from_mapping({"first_index": limits.FIRST_INDEX_MAX, "image_count": 2})


def test_a_text_over_its_cap_names_both_numbers():
    with pytest.raises(LimitError, match=r"100,000 characters.*8,192") as caught:
        TaskSpec.from_mapping({"prompt": "a" * 100_000})
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b'{"prompt": "\xff"}'])
def test_what_is_no_json_is_said_so(text):
    with pytest.raises(SpecError, match="not valid JSON"):
        TaskSpec.from_json(text)
