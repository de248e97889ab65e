"""Image prompts in a request: defaults of each type, bounds, sentences."""

import json

import pytest
from pydantic import ValidationError

from modules.spec.errors import SpecError
from modules.spec.image_prompt import ImagePrompt, ImagePromptType
from modules.spec.task_spec import TaskSpec

HASH = "0a" * 32


@pytest.mark.parametrize(
    ("kind", "stop", "weight", "is_structure"),
    [
        ("image_prompt", 0.5, 0.6, False),
        ("canny", 0.5, 1.0, True),
        ("cpds", 0.5, 1.0, True),
        ("face", 0.9, 0.75, False),
        ("depth", 0.5, 1.0, True),
        ("lineart", 0.5, 1.0, True),
    ],
)
def test_each_type_has_its_usual_stop_and_weight(kind, stop, weight, is_structure):
    prompt = ImagePrompt(image=HASH, type=kind)
    assert (prompt.stops_at, prompt.weighs) == (stop, weight)
    assert prompt.type.is_structure is is_structure
    assert prompt.counts
    own = ImagePrompt(image=HASH, type=kind, stop=0.25, weight=1.5)
    assert (own.stops_at, own.weighs) == (0.25, 1.5)


def test_no_weight_or_no_time_counts_for_nothing():
    assert not ImagePrompt(image=HASH, weight=0.0).counts
    assert not ImagePrompt(image=HASH, stop=0.0).counts


def test_start_and_mode_are_as_before_where_nothing_is_said():
    old = ImagePrompt.model_validate({"image": HASH, "stop": 0.4, "weight": None})
    assert (old.start, old.mode) == (0.0, "joint")
    late = ImagePrompt(image=HASH, type="face", start=0.2, mode="decoupled")
    assert late.counts
    assert ImagePrompt.model_validate_json(late.model_dump_json()) == late
    assert not ImagePrompt(image=HASH, start=0.5).counts  # it stops at 0.5


def test_it_cannot_be_changed():
    prompt = ImagePrompt(image=HASH)
    with pytest.raises(ValidationError):
        prompt.weight = 1.0
    assert ImagePromptType("face") is ImagePromptType.FACE


def test_a_request_comes_back_from_its_json():
    entry = {"image": HASH, "type": "canny", "canny_low": 20, "skip_preprocess": True}
    spec = TaskSpec.from_json(json.dumps({"image_prompts": [entry], "control_softness": 0.5}))
    assert spec.image_prompts[0].canny_low == 20
    assert TaskSpec.from_mapping(json.loads(spec.to_json())) == spec


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"image": "x"}, "Picture of image prompt 2 must be the SHA-256 of a stored picture."),
        ({}, "Picture of image prompt 2 must not be empty."),
        ({"image": HASH, "type": "x"}, "Type of image prompt 2 must be one of"),
        ({"image": HASH, "weight": 2.1}, "Weight of image prompt 2 must be at most 2.0."),
        ({"image": HASH, "stop": -0.1}, "Stop at of image prompt 2 must be at least 0.0."),
        ({"image": HASH, "stop": float("nan")}, "Stop at of image prompt 2 must be a finite"),
        ({"image": HASH, "canny_low": 0}, "Lower threshold of image prompt 2 must be at least 1."),
        ({"image": HASH, "path": "/x"}, "Field 'path' of image prompt 2 is not known; remove it."),
        ({"image": HASH, "mode": "both"}, "Mode of image prompt 2 must be one of 'joint' or"),
        ({"image": HASH, "start": 1.5}, "Start at of image prompt 2 must be at most 1.0."),
        (
            {"image": HASH, "start": 0.6},
            "Image prompt 2 starts at 0.6, after its stop at 0.5; let it start earlier or",
        ),
        ("x", "Image prompt 2 must be"),
        ({"image": HASH, "region": "x"}, "Region of image prompt 2 must be the SHA-256 of"),
        (
            {"image": HASH, "type": "canny", "region": HASH},
            "Image prompt 2 has a region, which is for",
        ),
        (
            {"image": HASH, "type": "canny", "mode": "decoupled"},
            "Image prompt 2 has the mode decoupled, which is for",
        ),
    ],
)
def test_a_wrong_entry_is_said_by_its_number(entry, sentence):
    with pytest.raises(SpecError) as caught:
        TaskSpec.from_mapping({"image_prompts": [{"image": HASH}, entry]})
    assert str(caught.value).startswith(sentence)
    assert caught.value.field == "image_prompts"


def test_there_is_a_bound_to_their_number():
    with pytest.raises(SpecError, match="Image prompts must be at most 16 in number"):
        TaskSpec.from_mapping({"image_prompts": [{"image": HASH}] * 20})
