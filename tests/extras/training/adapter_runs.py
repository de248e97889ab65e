"""What the tests of stages on a frozen base share: a toy base, tiny pages, short runs."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch
from safetensors.torch import save_file

from extras.training.builtin_model import TOY, make_vae
from extras.training.pages import PagePlan
from extras.training.run import Run, RunPlan, Stage
from extras.training.stage_base import BasePlan, BaseStage
from extras.training.stage_diffusion import Preview, Workplace
from extras.training.stage_vae import VAE_FILE
from extras.training.window import WindowPlan
from extras.training.writing import half
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy

CPU = torch.device("cpu")
POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
SIZES = ((64, 64), (96, 64))
PAGES = PagePlan(group=2, captions=1, sizes=SIZES, weights=(1.0, 1.0))
WINDOW = WindowPlan(batch=2, capacity=6, start=2, reuse=1.0)
PLAN = RunPlan(
    folder=Path(), steps=4, warmup=2, grid_minutes=0, checkpoint_minutes=1e9, log_seconds=0
)
Maker = Callable[[Path], Stage]


def write_toy_base(folder: Path) -> None:
    """A toy checkpoint whose UNet is random, but not silent."""
    torch.manual_seed(0)
    save_file(half(make_vae(TOY).state_dict()), folder / VAE_FILE)
    stage = BaseStage(TOY, PAGES, WINDOW, BasePlan(), place(folder))
    with torch.no_grad():
        for weight in stage.model["unet"].parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.5 / weight[0].numel() ** 0.5)
    stage.finish()


def place(folder: Path) -> Workplace:
    preview = Preview(prompts=("cat", "dog"), steps=1, size=(64, 64))
    return Workplace(folder=folder, device=CPU, bf16=False, preview=preview)


def run_of(stage: Stage, folder: Path, **changes) -> Run:
    return Run(stage, replace(PLAN, folder=folder, **changes), StringIO())


def assert_resumes(make: Maker, tmp_path: Path) -> None:
    """An interrupted run ends with the very weights of one that was not."""
    straight = run_of(make(tmp_path), tmp_path / "straight")
    start = {name: tensor.clone() for name, tensor in straight._tensors().items()}
    assert straight.train()
    first = run_of(make(tmp_path), tmp_path / "parts")
    first.prepare()
    first.stage.begin(0)
    for _ in range(3):
        first.train_step()
    first.save()
    second = run_of(make(tmp_path), tmp_path / "parts", resume=True)
    assert second.train()
    found, wanted = second._tensors(), straight._tensors()
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert any(not torch.equal(start[name], wanted[name]) for name in start)


class _Learned(Exception):
    """Ends a run that has shown what it should."""


def learns_one_batch(stage: Stage, folder: Path, steps: int, rate: float, share: float) -> bool:
    """Whether the loss of the same batch with the same noise falls below `share` of what it was,
    and stays there for three steps, within so many."""
    run = run_of(
        stage, folder, steps=steps, warmup=1, cooldown=1e-9, learning_rate=rate, ema_decay=0.0
    )
    compute, losses = stage.compute_loss, []

    def again(_step: int):
        torch.manual_seed(1)
        loss, numbers = compute(0)
        losses.append(float(loss.detach()))
        if max(losses[-3:]) < share * losses[0]:
            raise _Learned
        return loss, numbers

    stage.compute_loss = again
    try:
        assert run.train()
    except _Learned:
        return True
    return False
