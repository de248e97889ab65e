"""The text encoders learn what captions say before they are trained with pictures."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch

from extras.training.builtin_model import TOY, make_text_encoders
from extras.training.caption_tokens import used_ids
from extras.training.errors import TrainingFolderError
from extras.training.facts import fact_index, scene_facts
from extras.training.run import Run, RunPlan
from extras.training.scenes.scene import Scene, Thing
from extras.training.stage_text import TEXT_FILE, TextStage, draw_captions, load_text_encoders

PLAN = RunPlan(
    folder=Path(), steps=4, warmup=2, grid_minutes=0, checkpoint_minutes=1e9, log_seconds=0
)


def text_run(folder: Path, **changes) -> Run:
    stage = TextStage(TOY, folder=folder, device=torch.device("cpu"), batch=8, bf16=False)
    return Run(stage, replace(PLAN, folder=folder, **changes), StringIO())


def test_facts_bind_traits_to_their_subject():
    scene = Scene(
        things=(
            Thing(subject="house", color="red", scale="small"),
            Thing(subject="cat", color="blue", count=2),
        ),
        place="meadow",
        time="night",
        style="neon",
        relation="left",
    )
    names = list(fact_index())
    found = {names[place] for place in scene_facts(scene).nonzero()[0]}
    assert found == {
        ("house",), ("house", "red"), ("house", "1"), ("house", "small"), ("house", "left"),
        ("cat",), ("cat", "blue"), ("cat", "2"), ("cat", "medium"), ("cat", "right"),
        ("place", "meadow"), ("time", "night"), ("weather", "clear"), ("style", "neon"),
    }  # fmt: skip


def test_captions_of_a_step_are_always_the_same_and_differ_between_steps():
    first, again, other = (draw_captions(0, step, 6) for step in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_resumes_to_the_weights_of_an_uninterrupted_run(tmp_path):
    straight = text_run(tmp_path / "straight")
    assert straight.train()
    first = text_run(tmp_path / "parts", steps=4)
    first.prepare()
    for _ in range(2):
        first.train_step()
    first.save()
    second = text_run(tmp_path / "parts", resume=True)
    assert second.train()
    for name, tensor in straight._tensors().items():
        assert torch.equal(tensor, second._tensors()[name]), name


def test_learns_facts(tmp_path):
    run = text_run(tmp_path, steps=60, warmup=1, learning_rate=3e-3)
    ids, facts = draw_captions(0, 0, 8)

    def right() -> float:
        with torch.no_grad():
            guess = run.stage.guesses(ids)["pooled"] > 0
        return float((guess == facts.bool())[facts.bool()].float().mean())

    assert right() < 0.7
    for _ in range(60):
        run.step = 0  # the same captions again
        run.train_step()
    assert right() > 0.9


def test_the_next_stage_takes_the_result(tmp_path):
    run = text_run(tmp_path, steps=1)
    assert run.train()
    (path,) = run.finish()
    assert path.name == TEXT_FILE
    clip_l, clip_g = make_text_encoders(TOY, used_ids())
    assert load_text_encoders(tmp_path, clip_l, clip_g)
    written = run.stage.model["clip_g"].state_dict()
    assert written.keys() == clip_g.state_dict().keys()
    assert not load_text_encoders(tmp_path / "elsewhere", clip_l, clip_g)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / TEXT_FILE).write_bytes(b"not weights")
    with pytest.raises(TrainingFolderError, match=TEXT_FILE):
        load_text_encoders(tmp_path, *make_text_encoders(TOY, used_ids()))
