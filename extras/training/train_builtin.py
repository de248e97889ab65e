"""`python3 launch.py train-builtin`: makes the built-in model's files from nothing, in stages.

    train-builtin --stage vae --minutes 10
    train-builtin --stage vae --minutes 10 --resume     (until its steps are done)
    train-builtin --stage text --within 5               (done after 5 minutes)
    ...

A stage that ends writes its result into the folder of the run, and what ships of it also into
`--output`. The order, and what each stage gives, is in docs/training.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from extras.training.base_parts import MODEL_FILE
from extras.training.checkpoints import prepare_folder
from extras.training.errors import TrainingError
from extras.training.loss import LOSS_TYPES
from extras.training.objectives import LEVELS, OBJECTIVES, WEIGHTINGS
from extras.training.optimizers import OPTIMIZERS
from extras.training.options import number, refuse_foreign, whole
from extras.training.pages import BOOKS, WHOLE
from extras.training.run import Run, RunPlan
from extras.training.scenes.finishes import FINISHES
from extras.training.stage_base import BasePlan
from extras.training.stage_makers import FIRST_LOOK, MODELS, SCALES, STAGES, first, pace_of
from ldm_patched.modules.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = (
    "The device has too little memory for this: end what else uses it and go on with --resume. If "
    "that is not enough, delete the checkpoints in the stage's own folder and begin the stage "
    "again with a smaller --batch or with --device cpu."
)


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
        help="vae, text and base make the model, decoder sharpens it; tower comes before ip; "
        "see docs/training.md",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    add("--folder", type=Path, default=ROOT / ".easel" / "training", help="the run's folder")
    add("--output", type=Path, help="of what ships: a second folder for the result")
    add("--start-from", type=Path, help=f"the model to begin with or to adapt (not {MODEL_FILE})")
    add(
        "--adapter", type=Path, help="ip, control: go on from this file of theirs, for another base"
    )
    add("--finish", choices=sorted(FINISHES), help=f"lora: the look (default: {FIRST_LOOK})")
    add("--pictures", type=Path, help="lora: a folder of pictures and .txt captions instead")
    add("--trigger", help="lora: words put before the captions of --pictures")
    add("--title", help="lora: its name")
    add("--rank", type=whole(1), help="lora, fewstep, control: of the matrices")
    add("--minutes", type=number(0), default=0.0, help="pause after so many; --resume goes on")
    within = "be done in so many minutes, whatever the steps"
    add("--within", type=number(0), default=0.0, help=within)
    add("--steps", type=whole(1), help="steps in all")
    add("--resume", action="store_true", help="go on from the folder's last checkpoint")
    add("--batch", type=whole(1), help="pictures or captions in a step")
    page = (
        "side of a square page in pixels: 128 on a slow CPU; vae, decoder: several, each as often"
    )
    add("--page", type=whole(64, 1024, step=32), nargs="+", default=[256], help=page)
    add(
        "--square",
        action="store_true",
        help="square pages only: one size to compile for, of each --page",
    )
    add(
        "--book", choices=BOOKS, default=WHOLE, help="base: from easy to hard; see docs/training.md"
    )
    side = "vae, decoder: train on square pieces of this side, a multiple of 8 (0: whole pages)"
    add("--side", type=whole(0, step=8), help=side)
    add("--learning-rate", type=number(0, above=True))
    rising = "steps over which the learning rate rises"
    add("--warmup", type=whole(0), default=RunPlan.warmup, help=rising)
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="vae, decoder, base, tower, ip, control: muon",
    )
    add("--seed", type=whole(0, 2**32 - 1), default=0)
    add("--workers", type=whole(0), help="processes that draw (default: one less than the cores)")
    add("--threads", type=whole(1), help="threads of PyTorch on the CPU")
    add("--capacity", type=whole(1), help="all but vae, decoder and text: pages kept encoded")
    reuse = "all but vae, decoder and text: how often a page is trained on"
    add("--reuse", type=number(0, above=True), help=reuse)
    add("--keep-pages", type=Path, help="base: folder for encoded pages, which later runs read")
    add("--objective", choices=sorted(OBJECTIVES), default="eps", help="base: what is predicted")
    weighting = "base: of noise levels in the loss"
    add("--weighting", choices=sorted(WEIGHTINGS), default="", help=weighting)
    add("--levels", choices=LEVELS, default="", help="base, ip: of noise, that are trained on most")
    add("--loss", choices=LOSS_TYPES, default="l2", help="base: of the denoised latents")
    add("--offset-noise", type=number(0), default=0.05, help="base: one more for a whole channel")
    aligned = "base, tower, ip: learn what the detector in this folder sees, too"
    add("--align", type=Path, metavar="FOLDER", help=aligned)
    things = "base, tower, ip: how much more the error counts where a thing is"
    add("--emphasis", type=number(0, above=True), default=BasePlan.emphasis, help=things)
    add("--frozen-text", action="store_true", help="base: train the UNet alone")
    add("--size", choices=sorted(MODELS), default="mini", help="of new networks; toy is for tests")
    add("--float32", action="store_true", help="never compute in bfloat16")
    add("--checkpointing", action="store_true", help="base: save memory, compute more")
    faster = "vae, decoder, base, detector, tower: compile first: minutes, then faster"
    add("--compile", action="store_true", help=faster)
    add("--grid-minutes", type=number(0), default=5.0, help="0 draws none on the way")
    add("--checkpoint-minutes", type=number(0), default=4.0)
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


def make_run(args: argparse.Namespace) -> Run:
    """The run that a command line asks for. Raises TrainingError."""
    refuse_foreign(build_parser(), args)
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    scale = SCALES.get(device.type, SCALES["cpu"])
    torch.manual_seed(args.seed)
    stage = STAGES[args.stage](args, device, scale)
    pace = pace_of(args, scale)
    if args.output:  # before the training, not after it
        prepare_folder(args.output, "--output")
    plan = RunPlan(
        folder=args.folder,
        steps=first(args.steps, pace.steps),
        minutes=args.minutes,
        within=args.within,
        seed=args.seed,
        learning_rate=first(args.learning_rate, pace.learning_rate),
        optimizer=args.optimizer,
        warmup=args.warmup,
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
            written = ", ".join(dict.fromkeys(path.name for path in run.finish()))
            sys.stderr.write(f"Stage {args.stage} is done: {written} in {args.folder.name}.\n")
        else:
            run.write_grid()
            sys.stderr.write(
                f"Stopped at step {run.step} of {run.plan.steps}; go on with --resume.\n"
            )
    except torch.OutOfMemoryError:
        sys.stderr.write(f"\n{OUT_OF_MEMORY}\n")
        return 1
    except (TrainingError, EngineError) as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; --resume goes on from the last checkpoint.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
