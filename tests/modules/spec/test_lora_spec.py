"""The list of LoRAs in a request: bounds, names, and words about what is wrong."""

import json

import pytest

from modules.spec.errors import SpecError
from modules.spec.task_spec import LoraSpec, TaskSpec


def test_entries_have_defaults_and_survive_json():
    spec = TaskSpec.from_mapping({"loras": [{"name": "a"}, {"name": "sub/b.pt", "weight": -4}]})
    assert spec.loras == (LoraSpec(name="a", weight=1.0), LoraSpec(name="sub/b.pt", weight=-4.0))
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert TaskSpec.from_mapping(json.loads(spec.to_json())) == spec


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"name": "a", "weight": 4.5}, "Weight of LoRA 2 must be at most 4.0."),
        ({"name": "a", "clip_weight": -5}, "Weight for words of LoRA 2 must be at least -4.0."),
        ({"name": "a", "weight": float("nan")}, "Weight of LoRA 2 must be a finite number."),
        ({"name": "a", "weight": "x"}, "Weight of LoRA 2 must be a number."),
        ({"name": ""}, "Name of LoRA 2 must not be empty."),
        ({}, "Name of LoRA 2 must not be empty."),
        ({"name": "a", "file": "b"}, "Field 'file' of LoRA 2 is not known; remove it."),
    ],
)
def test_what_is_wrong_is_said_with_the_entry_s_number(entry, sentence):
    with pytest.raises(SpecError) as error:
        TaskSpec.from_mapping({"loras": [{"name": "first"}, entry]})
    assert str(error.value) == sentence
    assert error.value.field == "loras"


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../b", "a\\b", "C:a", "a\x00", "a//b"])
def test_a_name_is_never_a_path_out(name):
    with pytest.raises(SpecError, match="must be a name from the list"):
        TaskSpec.from_mapping({"loras": [{"name": name}]})


def test_there_is_a_cap():
    with pytest.raises(SpecError, match="LoRAs must be at most 32 in number"):
        TaskSpec.from_mapping({"loras": [{"name": str(i)} for i in range(33)]})


def test_strict_json_takes_no_text_for_a_number():
    with pytest.raises(SpecError, match="Weight of LoRA 1"):
        TaskSpec.from_json('{"loras": [{"name": "a", "weight": "1"}]}')
