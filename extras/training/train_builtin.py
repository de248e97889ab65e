"""`python3 launch.py train-builtin`: makes the built-in model's files from nothing, in stages.

    train-builtin --stage vae --minutes 10
    train-builtin --stage vae --minutes 10 --resume     (until its steps are done)
    train-builtin --stage text --minutes 10
    train-builtin --stage base --minutes 10
    ...

A stage that ends writes its result into the folder of the run; `base` also writes the model file.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from extras.training import builtin_model as builtin
from extras.training.base_parts import MODEL_FILE
from extras.training.detector import MINI_TOWER, TOY_TOWER, Detector, FactNetwork, FactTower
from extras.training.errors import TrainingError
from extras.training.loss import LOSS_TYPES
from extras.training.objectives import OBJECTIVES, WEIGHTINGS
from extras.training.pages import PagePlan
from extras.training.run import Run, RunPlan, Stage
from extras.training.stage_base import BasePlan, BaseStage
from extras.training.stage_diffusion import Workplace
from extras.training.stage_facts import FactsStage
from extras.training.stage_text import TextStage
from extras.training.stage_vae import VaeStage
from extras.training.window import WindowPlan
from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.model_management import cpu_has_bf16

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"mini": builtin.MINI, "toy": builtin.TOY}


class Pace(NamedTuple):
    """Samples in a step, steps in all, and the learning rate."""

    batch: int
    steps: int
    learning_rate: float


class Scale(NamedTuple):
    """What suits a kind of device. side: of the autoencoder's pieces; capacity, start and reuse
    are those of WindowPlan."""

    paces: dict[str, Pace]
    side: int
    capacity: int
    start: int
    reuse: float


SCALES = {
    "cuda": Scale(
        {
            "vae": Pace(96, 12_000, 6e-4),
            "text": Pace(512, 4_000, 1e-3),
            "base": Pace(512, 60_000, 8e-4),
            "detector": Pace(128, 6_000, 1e-3),
            "tower": Pace(256, 6_000, 1e-3),
        },
        side=192,
        capacity=131_072,
        start=16_384,
        reuse=12.0,
    ),
    "cpu": Scale(
        {
            "vae": Pace(16, 40_000, 6e-4),
            "text": Pace(64, 12_000, 1e-3),
            "base": Pace(32, 300_000, 3e-4),
            "detector": Pace(32, 20_000, 1e-3),
            "tower": Pace(64, 20_000, 5e-4),
        },
        side=128,
        capacity=12_288,
        start=1_024,
        reuse=8.0,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; a default of None depends on the device."""
    parser = argparse.ArgumentParser(
        prog="launch.py train-builtin", description="Train the built-in model from nothing."
    )
    add = parser.add_argument
    add(
        "--stage",
        choices=sorted(STAGES),
        required=True,
        help="vae first, then text and base",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    add("--folder", type=Path, default=ROOT / ".easel" / "training", help="the run's folder")
    add("--output", type=Path, help=f"a second place for the model file ({MODEL_FILE})")
    add("--start-from", type=Path, help="base: a model file whose weights to begin with")
    add("--minutes", type=float, default=0.0, help="pause after so many; --resume goes on")
    add("--within", type=float, default=0.0, help="be done in so many minutes, whatever the steps")
    add("--steps", type=int, help="steps in all")
    add("--resume", action="store_true", help="go on from the folder's last checkpoint")
    add("--batch", type=int, help="pictures or captions in a step")
    add("--side", type=int, help="vae: train on square pieces of this side (0: whole pages)")
    add("--learning-rate", type=float)
    add("--seed", type=int, default=0)
    add("--workers", type=int, help="processes that draw (default: one less than the cores)")
    add("--threads", type=int, help="threads of PyTorch on the CPU")
    add("--capacity", type=int, help="base: pages kept encoded")
    add("--reuse", type=float, help="base: how often a page is trained on")
    add("--objective", choices=sorted(OBJECTIVES), default="eps", help="what is predicted")
    add("--weighting", choices=sorted(WEIGHTINGS), default="", help="of noise levels in the loss")
    add("--loss", choices=LOSS_TYPES, default="l2")
    add("--offset-noise", type=float, default=0.05)
    add("--size", choices=sorted(SIZES), default="mini", help="toy is for tests")
    add("--float32", action="store_true", help="never compute in bfloat16")
    add("--checkpointing", action="store_true", help="save memory, compute more")
    add("--compile", action="store_true", help="compile the network first: minutes, then faster")
    add("--grid-minutes", type=float, default=5.0, help="0 draws none on the way")
    add("--checkpoint-minutes", type=float, default=4.0)
    return parser


def choose_device(name: str) -> torch.device:
    """The device of a name. Raises TrainingError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"There is no device {name!r} here: use --device auto or --device cpu."
        ) from error
    return device


def _first(value: float | None, default: float) -> float:
    return default if value is None else value


def _workers(args: argparse.Namespace) -> int:
    return _first(args.workers, max(1, (os.cpu_count() or 2) - 1))


def _bf16(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether to compute in bfloat16: on a CPU without units for it that is slow."""
    return not args.float32 and (device.type != "cpu" or cpu_has_bf16())


def make_vae_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> VaeStage:
    """Stage 1 as the command line says."""
    pages = PagePlan(
        seed=args.seed,
        group=_first(args.batch, scale.paces["vae"].batch),
        side=_first(args.side, scale.side),
        captions=0,
    )
    return VaeStage(
        SIZES[args.size],
        pages,
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
        seed=args.seed,
        compile_network=args.compile,
    )


def make_text_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> TextStage:
    """The stage between as the command line says."""
    return TextStage(
        SIZES[args.size],
        folder=args.folder,
        device=device,
        batch=_first(args.batch, scale.paces["text"].batch),
        bf16=_bf16(args, device),
        seed=args.seed,
    )


def make_facts_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> FactsStage:
    """A network that tells the facts of pages, as the command line says."""
    toy = args.size == "toy"
    if args.stage == "detector":
        network: FactNetwork = Detector((8, 8, 8, 8)) if toy else Detector()
    else:
        network = FactTower(TOY_TOWER if toy else MINI_TOWER)
    batch = _first(args.batch, scale.paces[args.stage].batch)
    return FactsStage(
        args.stage,
        network,
        PagePlan(seed=args.seed, group=batch, captions=0),
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
    )


def make_window(args: argparse.Namespace, scale: Scale) -> WindowPlan:
    """The window of a stage that trains on latents."""
    capacity = _first(args.capacity, scale.capacity)
    return WindowPlan(
        batch=_first(args.batch, scale.paces[args.stage].batch),
        capacity=capacity,
        start=min(scale.start, capacity),
        reuse=_first(args.reuse, scale.reuse),
    )


def make_place(args: argparse.Namespace, device: torch.device) -> Workplace:
    """Where a stage that trains on latents works."""
    return Workplace(
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
        seed=args.seed,
    )


def make_base_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> BaseStage:
    """Stage 2 as the command line says."""
    plan = BasePlan(
        objective=args.objective,
        weighting=args.weighting,
        loss_type=args.loss,
        offset_noise=args.offset_noise,
        use_checkpoint=args.checkpointing,
        compile=args.compile,
        start_from=args.start_from,
    )
    return BaseStage(
        SIZES[args.size],
        PagePlan(seed=args.seed),
        make_window(args, scale),
        plan,
        make_place(args, device),
        output=args.output,
    )


STAGES: dict[str, Callable[[argparse.Namespace, torch.device, Scale], Stage]] = {
    "vae": make_vae_stage,
    "text": make_text_stage,
    "base": make_base_stage,
    "detector": make_facts_stage,
    "tower": make_facts_stage,
}


def make_run(args: argparse.Namespace) -> Run:
    """The run that a command line asks for. Raises TrainingError."""
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    scale = SCALES.get(device.type, SCALES["cpu"])
    torch.manual_seed(args.seed)
    stage = STAGES[args.stage](args, device, scale)
    pace = scale.paces[args.stage]
    plan = RunPlan(
        folder=args.folder,
        steps=_first(args.steps, pace.steps),
        minutes=args.minutes,
        within=args.within,
        seed=args.seed,
        learning_rate=_first(args.learning_rate, pace.learning_rate),
        checkpoint_minutes=args.checkpoint_minutes,
        grid_minutes=args.grid_minutes,
        resume=args.resume,
    )
    return Run(stage, plan)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one stage; the exit status. Errors are one sentence on the error stream."""
    args = build_parser().parse_args(argv)
    try:
        run = make_run(args)
        done = run.train()
        if done:
            written = ", ".join(path.name for path in run.finish())
            sys.stderr.write(f"Stage {args.stage} is done: {written} in {args.folder.name}.\n")
        else:
            run.write_grid()
            sys.stderr.write(
                f"Stopped at step {run.step} of {run.plan.steps}; go on with --resume.\n"
            )
    except (TrainingError, EngineError) as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
