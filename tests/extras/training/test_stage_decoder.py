"""The decoder alone: it learns, and nothing else of the model changes."""

from itertools import repeat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extras.training.base_parts import MODEL_FILE
from extras.training.errors import CheckpointError, TrainingFolderError
from extras.training.pages import PagePlan
from extras.training.stage_decoder import DecoderStage
from extras.training.train_builtin import main
from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.weight_file import read_metadata
from tests.extras.training.adapter_runs import (
    CPU,
    SIZES,
    assert_resumes,
    learns_one_batch,
    run_of,
    write_toy_base,
)

PAGES = PagePlan(group=2, captions=0, side=32, sizes=SIZES, weights=(1.0, 1.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_toy_base(folder)
    return folder / MODEL_FILE


def stage_on(base: Path, folder: Path) -> DecoderStage:
    return DecoderStage(base, PAGES, folder=folder, device=CPU, bf16=False)


def test_resumes_to_the_weights_of_an_uninterrupted_run(base, tmp_path):
    assert_resumes(lambda folder: stage_on(base, folder), tmp_path)


def test_learns_one_batch(base, tmp_path):
    stage = stage_on(base, tmp_path)
    stage.begin(0)
    group = next(stage._source)
    stage.begin = lambda _step: setattr(stage, "_source", repeat(group))
    assert learns_one_batch(stage, tmp_path, steps=30, rate=1e-3, share=0.7)


def test_nothing_but_the_decoder_changes(base, tmp_path):
    shipped = tmp_path / "shipped"
    stage = stage_on(base, tmp_path)
    stage.output = shipped
    run = run_of(stage, tmp_path, steps=2, learning_rate=1e-2)
    assert run.train()
    assert run.finish() == [tmp_path / MODEL_FILE, shipped / MODEL_FILE]
    before, after = load_file(base), load_file(shipped / MODEL_FILE)
    assert {n: (w.shape, w.dtype) for n, w in after.items()} == {
        n: (w.shape, w.dtype) for n, w in before.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("first_stage_model.decoder.", "first_stage_model.post_quant_conv.")
    assert {name.startswith(parts) for name in changed} == {True}
    assert any(name.startswith(parts[1]) for name in changed)
    assert read_metadata(shipped / MODEL_FILE) == read_metadata(base)


def test_another_model_is_refused_on_resuming(base, tmp_path):
    run = run_of(stage_on(base, tmp_path), tmp_path, steps=1)
    assert run.train()
    other = stage_on(base, tmp_path)
    with torch.no_grad():
        other.vae.encoder.conv_in.weight += 1
    with pytest.raises(CheckpointError):
        run_of(other, tmp_path, steps=2, resume=True).train()


def test_a_pickle_and_other_names_are_refused_before_training(base, tmp_path):
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(base)}, pickled)
    with pytest.raises(TrainingFolderError, match=r"model\.ckpt is no safetensors file"):
        stage_on(pickled, tmp_path)
    other = tmp_path / "other.safetensors"
    parts = {
        name.replace("decoder.conv_in", "decoder.first"): w for name, w in load_file(base).items()
    }
    save_file(parts, other)
    with pytest.raises((TrainingFolderError, EngineError)):
        stage_on(other, tmp_path)


def test_the_result_keeps_the_precision_of_the_file(base, tmp_path):
    half = {
        name: w.bfloat16() if w.is_floating_point() else w for name, w in load_file(base).items()
    }
    save_file(half, tmp_path / MODEL_FILE)
    stage = stage_on(tmp_path / MODEL_FILE, tmp_path)
    with torch.no_grad():
        stage.model["post_quant_conv"].bias.fill_(1.0)
    assert stage.finish() == [tmp_path / MODEL_FILE]  # in the place of the one it came from
    after = load_file(tmp_path / MODEL_FILE)
    assert {name: w.dtype for name, w in after.items()} == {
        name: w.dtype for name, w in half.items()
    }
    assert after["first_stage_model.post_quant_conv.bias"].tolist() == [1.0] * 4


def test_the_command_line_takes_a_model_and_says_so_if_there_is_none(base, tmp_path, capsys):
    words = ["--stage", "decoder", "--device", "cpu", "--folder", str(tmp_path), "--workers", "0"]
    assert main(words) == 1
    assert "no easel-mini.safetensors" in capsys.readouterr().err
    words += ["--start-from", str(base), "--page", "64", "--square", "--side", "32", "--batch", "1",
              "--steps", "1", "--float32"]  # fmt: skip
    assert main(words) == 0
    assert (tmp_path / MODEL_FILE).is_file()
