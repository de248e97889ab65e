"""Runs of the trainer on toy networks: resuming, stopping, bad folders, bad numbers."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from itertools import pairwise, repeat
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from extras.training import checkpoints, writing
from extras.training.base_parts import MODEL_FILE
from extras.training.builtin_model import TOY
from extras.training.detector import Detector
from extras.training.errors import CheckpointError, TrainingDiverged, TrainingFolderError
from extras.training.interrupts import ENDINGS
from extras.training.noise import NearestSampling
from extras.training.pages import PagePlan
from extras.training.run import Run, RunPlan, duration
from extras.training.stage_base import BasePlan, BaseStage
from extras.training.stage_diffusion import Preview, Workplace
from extras.training.stage_text import TextStage
from extras.training.stage_vae import VAE_FILE, VaeStage
from extras.training.window import WindowPlan
from ldm_patched.modules.sd import load_checkpoint_guess_config, read_model_metadata

SMALL = {"sizes": ((64, 64), (96, 64)), "weights": (1.0, 1.0)}
pytestmark = pytest.mark.usefixtures("few_pieces_to_start_from")
CPU = torch.device("cpu")
PREVIEW = Preview(prompts=("cat", "dog"), steps=1, size=(64, 64))
PLAN = RunPlan(
    folder=Path(), steps=4, warmup=2, grid_minutes=0, checkpoint_minutes=1e9, log_seconds=0
)


def vae_run(folder: Path, **changes) -> Run:
    pages = PagePlan(group=2, captions=0, side=32, **SMALL)
    stage = VaeStage(TOY, pages, folder=folder, device=CPU, bf16=False)
    return Run(stage, replace(PLAN, folder=folder, **changes), StringIO())


def base_run(
    folder: Path, plan: BasePlan | None = None, teacher: Detector | None = None, **changes
) -> Run:
    stage = BaseStage(
        TOY,
        PagePlan(group=2, captions=1, **SMALL),
        WindowPlan(batch=2, capacity=6, start=2, reuse=1.0),
        plan or BasePlan(),
        Workplace(folder=folder, device=CPU, bf16=False, preview=PREVIEW),
        teacher=teacher,
    )
    return Run(stage, replace(PLAN, folder=folder, **changes), StringIO())


def small_detector(seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return Detector((8, 8, 8, 8)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def with_vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    run = vae_run(folder, steps=1)
    assert run.train()
    run.finish()
    return folder


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run._tensors().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_vae_resumes_to_the_weights_of_an_uninterrupted_run(tmp_path):
    straight = vae_run(tmp_path / "straight")
    assert straight.train()
    first = vae_run(tmp_path / "parts")
    first.prepare()
    first.stage.begin(0)
    for _ in range(2):
        first.train_step()
    first.save()
    second = vae_run(tmp_path / "parts", resume=True)
    assert second.train()
    assert second.step == 4
    assert_same(weights(second), weights(straight))


@pytest.mark.parametrize(
    ("plan", "optimizer", "teacher"),
    [
        (BasePlan(), "adamw", None),
        (BasePlan(objective="v", use_checkpoint=True), "muon", None),
        (BasePlan(emphasis=3.0), "adamw", small_detector()),
    ],
)
def test_base_resumes_to_the_weights_of_an_uninterrupted_run(
    plan, optimizer, teacher, with_vae, tmp_path
):
    for name in ("straight", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / VAE_FILE).write_bytes((with_vae / VAE_FILE).read_bytes())
    straight = base_run(tmp_path / "straight", plan, teacher, optimizer=optimizer)
    start = weights(straight)
    assert straight.train()
    first = base_run(tmp_path / "parts", plan, teacher, optimizer=optimizer)
    first.prepare()
    first.stage.begin(0)
    for _ in range(3):
        first.train_step()
    first.save()
    second = base_run(tmp_path / "parts", plan, teacher, optimizer=optimizer, resume=True)
    assert second.train()
    found = weights(second)
    assert_same(found, weights(straight))
    moved = [n for n, w in start.items() if n.startswith("model/") and not torch.equal(w, found[n])]
    for part in ("unet", "clip_l", "clip_g", *(["sight"] if teacher else [])):
        assert any(name.startswith(f"model/{part}.") for name in moved)
    if teacher:
        with pytest.raises(CheckpointError, match="another detector"):
            base_run(tmp_path / "parts", plan, small_detector(1), resume=True).prepare()
    if optimizer == "muon":
        assert any(name.endswith("|momentum_buffer") for name in found)
        with pytest.raises(CheckpointError, match="other settings"):
            base_run(tmp_path / "parts", plan, resume=True).prepare()


def test_frozen_text_encoders_stay_as_they_are(with_vae, tmp_path):
    (tmp_path / VAE_FILE).write_bytes((with_vae / VAE_FILE).read_bytes())
    with pytest.raises(TrainingFolderError, match=r"text\.safetensors"):
        base_run(tmp_path, BasePlan(frozen_text=True))
    TextStage(TOY, folder=tmp_path, device=CPU, bf16=False).finish()
    run = base_run(tmp_path, BasePlan(frozen_text=True))
    start = {name: w.clone() for name, w in run.stage.model.state_dict().items()}
    run.stage.begin(0)
    run.train_step()
    moved = {n for n, w in run.stage.model.state_dict().items() if not torch.equal(w, start[n])}
    assert moved
    assert all(name.startswith("unet.") for name in moved)
    assert all(name.startswith("model/unet.") for name in run._tensors() if "model/" in name)


def test_gradient_checkpointing_changes_no_gradient(with_vae):
    gradients = []
    for use_checkpoint in (False, True):
        stage = base_run(with_vae, BasePlan(use_checkpoint=use_checkpoint)).stage
        torch.manual_seed(9)
        for parameter in stage.model["unet"].out.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # it starts at zero, which stops gradients
        stage.begin(0)
        stage.compute_loss(0)[0].backward()
        gradients.append({n: p.grad for n, p in stage.model.named_parameters()})
    plain, checkpointed = gradients
    assert sum(float(g.abs().sum()) > 0 for g in plain.values() if g is not None) > 50
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_autoencoder_learns(tmp_path):
    run = vae_run(tmp_path, steps=24, warmup=1, learning_rate=3e-3)
    group = run.stage.pages.draw_group(0)
    run.stage.begin = lambda _step: setattr(run.stage, "_source", repeat(group))
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    losses = [line["loss"] for line in lines]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert lines[0]["latent_noise"] < 0.1  # from the first step latents tell of the picture
    assert {"psnr", "kl", "grad_norm", "learning_rate", "pictures_per_second"} <= lines[0].keys()


def test_a_finished_base_run_leaves_a_model_that_loads(with_vae):
    run = base_run(with_vae, steps=1)
    assert run.train()
    (path,) = run.finish()
    assert path == with_vae / MODEL_FILE
    model, clip, vae, _ = load_checkpoint_guess_config(path)
    assert all(part is not None for part in (model, clip, vae))
    told = read_model_metadata(path)
    assert (told.area, told.ratios) == (64 * 64, ("1:1", "3:2"))
    grid = Image.open(with_vae / "base" / "grid-00000001.png")
    assert grid.size == (134, 64)


def test_a_model_file_is_trained_further(with_vae, tmp_path):
    (tmp_path / VAE_FILE).write_bytes((with_vae / VAE_FILE).read_bytes())
    first = base_run(tmp_path).stage
    (path,) = first.finish()
    torch.manual_seed(5)
    second = base_run(tmp_path, BasePlan(start_from=path), seed=5).stage
    assert_same(second.file(), first.file())
    with pytest.raises(TrainingFolderError, match="add --objective eps"):
        base_run(tmp_path, BasePlan(objective="v", start_from=path))


def test_finishing_writes_the_averaged_weights_and_keeps_the_trained_ones(with_vae, tmp_path):
    run = vae_run(tmp_path, steps=3, ema_decay=0.5)
    run.train()
    before = weights(run)
    seen = {}
    run.stage.finish = lambda: seen.update(weights(run)) or []
    run.finish()
    assert_same(weights(run), before)
    name = "decoder.conv_in.weight"
    assert torch.equal(seen[f"model/{name}"], before["ema/" + name.replace(".", "")])
    assert not torch.equal(seen[f"model/{name}"], before[f"model/{name}"])


@pytest.mark.parametrize("log_seconds", [0, 1e9])  # after each step, after the last one
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(log_seconds, tmp_path):
    run = vae_run(tmp_path, steps=9, log_seconds=log_seconds)
    compute = run.stage.compute_loss

    def spoil(step: int):
        loss, numbers = compute(step)
        if step == 2:
            run.save()
        return (loss * float("nan") if step >= 3 else loss), numbers

    run.stage.compute_loss = spoil
    with pytest.raises(TrainingDiverged, match=r"at step 3,.*vae/step-00000002.*--learning-rate"):
        run.train()
    kept = checkpoints.list_checkpoints(tmp_path / "vae")
    assert [path.name for path in kept] == ["step-00000002"]
    _, tensors, _ = checkpoints.load_checkpoint(kept[0])
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def interrupted_run(folder: Path, times: int, at: int = 1, number: int = signal.SIGINT) -> Run:
    """A run in whose second step, or in step `at`, Ctrl+C is pressed so often; number: instead."""
    run = vae_run(folder, steps=9)
    compute = run.stage.compute_loss

    def interrupt(step: int):
        for _ in range(times if step == at else 0):
            signal.raise_signal(number)
        return compute(step)

    run.stage.compute_loss = interrupt
    return run


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda n: n.name)
def test_interrupting_saves_where_it_stopped_between_two_steps(tmp_path, number):
    straight = vae_run(tmp_path / "straight", steps=9)
    straight.prepare()
    straight.stage.begin(0)
    for _ in range(2):
        straight.train_step()
    run = interrupted_run(tmp_path, 1, number=number)
    handler = signal.getsignal(number)
    assert not run.train()
    assert signal.getsignal(number) is handler
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "vae")] == ["step-00000002"]
    assert_same(weights(run), weights(straight))
    said = run.out.getvalue()
    assert "Ending the step at hand; Ctrl+C again stops at once." in said
    assert "Interrupted; saving where it stopped." in said


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_run_in_the_background_is_not_interrupted(tmp_path, number):
    run = interrupted_run(tmp_path, 1, number=number)
    run.plan = replace(run.plan, steps=3)
    signal.signal(number, signal.SIG_IGN)
    assert run.train()
    assert signal.getsignal(number) is signal.SIG_IGN


class ClosedTerminal(StringIO):
    """Takes no more words, as one whose window was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, text)


@pytest.mark.usefixtures("interruptible")
def test_a_run_whose_terminal_is_closed_saves_where_it_stopped(tmp_path):
    run = interrupted_run(tmp_path, 1)
    run.out = ClosedTerminal()
    assert not run.train()
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "vae")] == ["step-00000002"]


@pytest.mark.usefixtures("interruptible")
def test_interrupting_twice_does_not_wait(tmp_path):
    run = interrupted_run(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == 1
    assert checkpoints.list_checkpoints(tmp_path / "vae") == []


@pytest.mark.usefixtures("interruptible")
def test_interrupting_before_the_first_step_does_not_wait(tmp_path):
    run = interrupted_run(tmp_path, 1, at=0)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_steps_numbers_depend_on_the_whole_seed(tmp_path):
    drawn = []
    for seed in (0, 1, 2**32 - 1):
        run = vae_run(tmp_path / str(seed), seed=seed)

        def draw(_step: int, run: Run = run):
            drawn.append(tuple(torch.rand(2).tolist()))
            return run.named["decoder.conv_in.weight"].sum(), {}

        run.stage.compute_loss = draw
        run.train_step()
        run.train_step()
    assert len(set(drawn)) == 6


def test_minutes_end_a_run_early(tmp_path):
    run = vae_run(tmp_path, steps=10_000, minutes=1e-9)
    assert not run.train()
    assert run.step == 1


def test_within_ends_a_run_with_the_rate_at_nothing(tmp_path):
    run = vae_run(tmp_path, steps=10_000, within=8.0, warmup=0, cooldown=0.5, learning_rate=1.0)
    run._elapsed = lambda: float(run.step)  # a minute for each step
    assert [run.learning_rate(0) for run.step in range(9)] == [1.0] * 5 + [0.75, 0.5, 0.25, 0.0]
    run.step = 0
    assert run.train()
    assert run.step == 8


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingFolderError, match="'vae' cannot be written to.*--folder"):
        vae_run(tmp_path / "file").train()


def full(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


def test_a_full_disk_keeps_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    run = vae_run(tmp_path, steps=1)
    run.train()
    monkeypatch.setattr(checkpoints, "save_file", full)
    run.step = 2
    with pytest.raises(TrainingFolderError, match="no space left on device"):
        run.save()
    assert [p.name for p in (tmp_path / "vae").iterdir() if p.is_dir()] == ["step-00000001"]


def test_a_full_disk_is_said_of_the_other_files_too(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(TrainingFolderError, match=r"text\.safetensors .*no space left on device"):
        TextStage(TOY, folder=tmp_path, device=CPU, bf16=False).finish()
    assert list(tmp_path.iterdir()) == []
    run = vae_run(tmp_path)
    run.prepare()
    (tmp_path / "vae" / "grid-00000000.png").mkdir()
    (tmp_path / "vae" / "log.jsonl").mkdir()
    with pytest.raises(TrainingFolderError, match=r"grid-00000000\.png could not be written"):
        run.write_grid()
    with pytest.raises(TrainingFolderError, match=r"log\.jsonl could not be written"):
        run._log(1.0, 1.0)


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def half_written(folder: Path, number: int) -> Path:
    left = folder / "vae" / f".writing-{number}"
    left.mkdir(parents=True)
    (left / "part-000.safetensors").write_bytes(b"half of it")
    return left


def test_checkpoints_that_were_never_finished_go(tmp_path, ended):
    left = half_written(tmp_path, ended)
    vae_run(tmp_path).prepare()
    assert not left.exists()


def test_a_checkpoint_that_another_process_is_writing_stays(tmp_path, ended):
    left, own = half_written(tmp_path, os.getppid()), half_written(tmp_path, os.getpid())
    vae_run(tmp_path).prepare()
    assert (left / "part-000.safetensors").exists()
    assert not own.exists()


def test_a_folder_that_is_refused_is_left_as_it_is(tmp_path, ended):
    vae_run(tmp_path, steps=1).train()
    left = half_written(tmp_path, ended)
    with pytest.raises(TrainingFolderError, match="add --resume"):
        vae_run(tmp_path).prepare()
    assert left.exists()


def test_a_file_that_a_killed_run_left_half_goes_with_the_next(tmp_path, ended):
    left = tmp_path / f"w.safetensors.{ended}"
    left.write_bytes(b"half of it")
    writing.write_weights({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_nan_before_the_first_checkpoint_says_to_begin_again(tmp_path):
    run = vae_run(tmp_path)
    run._first_bad.fill_(0)
    with pytest.raises(TrainingDiverged, match="no checkpoint yet: begin again with a smaller"):
        run.save()


def test_a_folder_with_a_run_in_it_is_not_overwritten(tmp_path):
    vae_run(tmp_path, steps=1).train()
    with pytest.raises(TrainingFolderError, match="add --resume"):
        vae_run(tmp_path).train()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    vae_run(tmp_path, steps=1).train()
    with pytest.raises(CheckpointError, match="other settings"):
        vae_run(tmp_path, seed=1, resume=True).train()


def rewrite_record(folder: Path, change) -> None:
    """Change the record of a stage's last checkpoint as `change` does to it."""
    path = checkpoints.list_checkpoints(folder)[-1] / "checkpoint.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    change(entry["record"])
    path.write_text(json.dumps(entry), encoding="utf-8")


def test_a_run_on_a_book_that_is_gone_is_told_so(tmp_path):
    vae_run(tmp_path, steps=1).train()
    rewrite_record(tmp_path / "vae", lambda record: record["identity"]["pages"].update(primer=True))
    with pytest.raises(CheckpointError, match="book that has changed.*--start-from.*--folder"):
        vae_run(tmp_path, resume=True).prepare()


@pytest.mark.parametrize("other", ["vae", "clip_g"])
def test_a_run_does_not_go_on_with_other_frozen_weights(other, with_vae, tmp_path):
    (tmp_path / VAE_FILE).write_bytes((with_vae / VAE_FILE).read_bytes())
    TextStage(TOY, folder=tmp_path, device=CPU, bf16=False).finish()
    plan = BasePlan(frozen_text=True)
    first = base_run(tmp_path, plan)
    first.prepare()
    first.save()
    base_run(tmp_path, plan, resume=True).prepare()
    changed = base_run(tmp_path, plan, resume=True)
    with torch.no_grad():
        next(getattr(changed.stage.base, other).parameters()).add_(0.5)
    with pytest.raises(CheckpointError, match="another autoencoder, other text encoders"):
        changed.prepare()
    rewrite_record(tmp_path / "base", lambda record: record.pop("frozen"))  # as it once was
    changed.prepare()


@pytest.mark.parametrize("damage", ["cut", "missing", "record"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    vae_run(tmp_path, steps=1).train()
    (place,) = checkpoints.list_checkpoints(tmp_path / "vae")
    part = place / "part-000.safetensors"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    elif damage == "missing":
        part.unlink()
    else:
        (place / "checkpoint.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="step-00000001 is damaged"):
        vae_run(tmp_path, resume=True).train()


def test_checkpoints_are_small_files_and_only_two_are_kept(tmp_path):
    tensors = {f"t{k}": torch.full((2**20,), float(k)) for k in range(9)}  # 4 MB each
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(tmp_path, step, tensors, {"a": 1})
    kept = checkpoints.list_checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-00000002", "step-00000003"]
    sizes = [path.stat().st_size for path in kept[-1].iterdir()]
    assert max(sizes) <= 16 * 2**20
    step, found, record = checkpoints.load_checkpoint(kept[-1])
    assert (step, record) == (3, {"a": 1})
    assert_same(found, tensors)


def test_the_learning_rate_rises_stays_and_falls(tmp_path):
    run = vae_run(tmp_path, steps=100, warmup=10, cooldown=0.2, learning_rate=1.0)
    rates = [run.learning_rate(step) for step in (0, 4, 9, 50, 79, 90, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05])


def test_pages_that_another_run_kept_are_not_encoded_again(with_vae, tmp_path, monkeypatch):
    first, second = (base_run(with_vae).stage for _ in range(2))
    batches = []
    for stage in (first, second):
        stage.place = replace(stage.place, keep_pages=tmp_path)
        stage.begin(0)
        stage.window.advance(3)
        batches.append(stage.window.batch(3))
        monkeypatch.setattr(BaseStage, "encode", None)
    assert all(torch.equal(batches[1][name], batches[0][name]) for name in batches[0])


def test_what_a_detector_sees_of_a_page_is_kept_with_it(with_vae, tmp_path):
    def batch(teacher: Detector | None, emphasis: float) -> dict[str, torch.Tensor]:
        stage = base_run(with_vae, BasePlan(emphasis=emphasis), teacher).stage
        stage.place = replace(stage.place, keep_pages=tmp_path)
        stage.begin(0)
        stage.window.advance(3)
        return stage.window.batch(3)

    drawn, read = (batch(small_detector(), 3.0) for _ in range(2))
    assert all(torch.equal(read[name], drawn[name]) for name in drawn)
    rows, columns = drawn["latents"].shape[-2:]
    assert drawn["seen"].shape == (2, rows * columns // 4, 8)
    assert drawn["emphasis"].shape == (2, rows, columns)
    means = drawn["emphasis"].mean(dim=(1, 2))
    assert means.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert float(drawn["emphasis"].max() / drawn["emphasis"].min()) == pytest.approx(3.0, abs=0.01)
    plain = batch(None, 1.0)
    assert torch.equal(plain["latents"], drawn["latents"])
    assert not {"seen", "emphasis"} & plain.keys()
    other = batch(small_detector(1), 3.0)
    assert not torch.equal(other["seen"], drawn["seen"])
    stronger = batch(small_detector(), 5.0)
    assert float(stronger["emphasis"].max() / stronger["emphasis"].min()) > 4.9


def test_a_base_with_a_teacher_learns_what_it_sees(with_vae):
    run = base_run(with_vae, BasePlan(), small_detector(), learning_rate=3e-3, warmup=1)
    run.stage.begin(0)
    missed = []
    for _ in range(40):
        run.train_step()
        missed.append(float(run._sums["untold"]))
    missed = [later - before for before, later in pairwise([0.0, *missed])]
    assert missed[0] == pytest.approx(1.0, abs=0.05)
    assert sum(missed[-5:]) / 5 < 0.97
    latents, both = float(run._sums["latents"]), float(run._sums["loss"])
    assert both == pytest.approx(latents + 0.5 * sum(missed), rel=1e-4)


def test_base_runs_from_before_the_levels_go_on_and_those_with_them_say_so(with_vae):
    plain = base_run(with_vae).stage
    assert not {"levels", "emphasis"} & plain.identity()["plan"].keys()
    for teacher, emphasis in ((None, 3.0), (small_detector(), 1.0)):
        stage = base_run(with_vae, BasePlan(emphasis=emphasis), teacher).stage
        assert "told" not in stage.identity()
    assert "told" in base_run(with_vae, BasePlan(emphasis=3.0), small_detector()).stage.identity()
    stage = base_run(with_vae, BasePlan(levels="middle")).stage
    assert stage.identity()["plan"]["levels"] == "middle"
    assert isinstance(stage.loss.sigma_sampler, NearestSampling)
    assert not isinstance(plain.loss.sigma_sampler, NearestSampling)


def test_runs_from_before_the_easy_books_go_on_and_those_with_them_say_so(tmp_path):
    stage = vae_run(tmp_path).stage
    assert "book" not in stage.identity()["pages"]
    stage.pages = replace(stage.pages, book="primer")
    assert stage.identity()["pages"]["book"] == "primer"


def test_a_step_in_bfloat16_on_the_cpu_stays_finite(with_vae):
    run = base_run(with_vae)
    run.stage.place = replace(run.stage.place, bf16=True)
    seen = []
    run.stage.base.unet.out[-1].register_forward_hook(lambda *parts: seen.append(parts[2].dtype))
    run.stage.begin(0)
    run.train_step()
    assert seen == [torch.bfloat16]
    assert all(bool(torch.isfinite(w).all()) for w in run._tensors().values())
    assert float(run._sums["loss"]) > 0
    assert float(run._first_bad) == float("inf")


def test_texts_are_left_out_as_often_as_the_plan_says(with_vae, tmp_path):
    def rates(folder: Path, plan: BasePlan) -> list[float]:
        return [part.ucg_rate for part in base_run(folder, plan).stage.conditioner.embedders]

    assert rates(with_vae, BasePlan(ucg=0.25)) == [0.25, 0.25, 0, 0, 0]
    (tmp_path / VAE_FILE).write_bytes((with_vae / VAE_FILE).read_bytes())
    TextStage(TOY, folder=tmp_path, device=CPU, bf16=False).finish()
    assert rates(tmp_path, BasePlan(ucg=0.25, frozen_text=True)) == [0] * 5


def test_the_progress_line_tells_what_is_left(tmp_path):
    run = vae_run(tmp_path)
    run.prepare()
    run.out.isatty = lambda: True
    run.step, run._sums, run._summed = 1, {"loss": torch.tensor(1.0)}, 2
    run._log(3.0, 754.0)
    line = "vae █████··············· 1/4  loss 0.5000  6 pictures/s  12:34 left"
    assert run.out.getvalue() == "\r" + line.ljust(96)


def test_the_bar_of_a_run_by_the_clock_fills_with_its_minutes(tmp_path):
    run = vae_run(tmp_path, steps=10_000, within=4.0)
    run.prepare()
    run._elapsed = lambda: 3.0
    run.step, run._sums, run._summed = 1, {"loss": torch.tensor(1.0)}, 1
    run._log(3.0, 60.0)
    assert run.out.getvalue().startswith(f"vae {'█' * 15}{'·' * 5} 1/10000 ")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("ending", ["steps", "minutes", "within", "interrupt", "nan"])
def test_what_is_said_after_the_progress_line_has_a_line_of_its_own(ending, tmp_path):
    run = interrupted_run(tmp_path, ending == "interrupt")
    run.out.isatty = lambda: True
    ends = {"steps": {"steps": 2}, "minutes": {"minutes": 1e-9}, "within": {"within": 1e-9}}
    run.plan = replace(run.plan, **ends.get(ending, {}))
    if ending == "nan":
        compute = run.stage.compute_loss
        run.stage.compute_loss = lambda step: (compute(step)[0] * (1, float("nan"))[step], {})
    with pytest.raises(TrainingDiverged) if ending == "nan" else nullcontext():
        run.train()
    run._say("Next.")
    *lines, last, empty = run.out.getvalue().split("\n")
    assert (last, empty) == ("Next.", "")
    assert lines[0].startswith("\rvae ")
    assert all(line.startswith("\r") == ("pictures/s" in line) for line in lines)


def test_durations():
    assert [duration(s) for s in (5, 754, 3909)] == ["0:05", "12:34", "1:05:09"]
