"""The stages of the built-in model as the command line asks for them, and their paces."""

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from extras.training import builtin_model as builtin
from extras.training.alignment import Lessons
from extras.training.base_parts import MODEL_FILE, sizes_of
from extras.training.detector import (
    MINI_TOWER,
    TOY_TOWER,
    Detector,
    FactNetwork,
    FactTower,
    load_detector,
)
from extras.training.errors import TrainingError
from extras.training.pages import GroupSource, PagePlan, nearest, page_sizes
from extras.training.picture_folder import open_folder
from extras.training.run import Stage
from extras.training.scenes.compose import SIZE_WEIGHTS
from extras.training.stage_base import BasePlan, BaseStage
from extras.training.stage_control import ControlStage
from extras.training.stage_decoder import DecoderStage
from extras.training.stage_diffusion import Preview, Workplace
from extras.training.stage_facts import FactsStage
from extras.training.stage_fewstep import FewstepStage
from extras.training.stage_ip import ImagePromptPlan, ImagePromptStage
from extras.training.stage_lora import LoraPlan, LoraStage
from extras.training.stage_text import TextStage
from extras.training.stage_vae import VaeStage
from extras.training.window import WindowPlan
from ldm_patched.modules.model_management import cpu_has_bf16

MODELS = {"mini": builtin.MINI, "toy": builtin.TOY}
FIRST_LOOK = "blueprint"
OWN_PROMPTS = 4  # that grids show of one's own pictures, which may be large


class Pace(NamedTuple):
    """Samples in a step, steps in all, and the learning rate."""

    batch: int
    steps: int
    learning_rate: float


class Scale(NamedTuple):
    """What suits a kind of device. paces: by stage, and "pictures" of a LoRA of one's own, on a
    model of any size. side: of the autoencoder's pieces; capacity, start and reuse are those of
    WindowPlan."""

    paces: dict[str, Pace]
    side: int
    capacity: int
    start: int
    reuse: float


SCALES = {
    "cuda": Scale(
        {
            "vae": Pace(96, 12_000, 6e-4),
            "decoder": Pace(96, 4_000, 3e-4),
            "text": Pace(512, 4_000, 1e-3),
            "base": Pace(512, 60_000, 8e-4),
            "detector": Pace(128, 20_000, 1e-3),
            "tower": Pace(256, 8_000, 1e-3),
            "lora": Pace(256, 2_000, 1e-3),
            "pictures": Pace(1, 2_000, 1e-4),
            "fewstep": Pace(256, 4_000, 1e-3),
            "ip": Pace(256, 12_000, 1e-3),
            "control": Pace(256, 8_000, 5e-4),
        },
        side=192,
        capacity=131_072,
        start=16_384,
        reuse=12.0,
    ),
    "cpu": Scale(
        {
            "vae": Pace(16, 40_000, 6e-4),
            "decoder": Pace(16, 4_000, 3e-4),
            "text": Pace(64, 12_000, 1e-3),
            "base": Pace(32, 300_000, 3e-4),
            "detector": Pace(32, 20_000, 1e-3),
            "tower": Pace(64, 20_000, 5e-4),
            "lora": Pace(16, 3_000, 1e-3),
            "pictures": Pace(1, 2_000, 1e-4),
            "fewstep": Pace(16, 8_000, 5e-4),
            "ip": Pace(16, 30_000, 3e-4),
            "control": Pace(16, 20_000, 3e-4),
        },
        side=128,
        capacity=12_288,
        start=1_024,
        reuse=8.0,
    ),
}


def pace_of(args: argparse.Namespace, scale: Scale) -> Pace:
    """The pace of what the command line asks for."""
    return scale.paces["pictures" if args.pictures else args.stage]


def first(value: float | None, default: float) -> float:
    """`value`, or the default for None."""
    return default if value is None else value


def _workers(args: argparse.Namespace) -> int:
    return first(args.workers, max(1, (os.cpu_count() or 2) - 1))


def _bf16(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether to compute in bfloat16: on a CPU without units for it that is slow."""
    return not args.float32 and (device.type != "cpu" or cpu_has_bf16())


def make_vae_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> VaeStage:
    """Stage 1 as the command line says. Raises TrainingError for a side that no page has."""
    return VaeStage(
        MODELS[args.size],
        _pieces(args, scale),
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
        seed=args.seed,
        compile_network=args.compile,
    )


def make_decoder_stage(
    args: argparse.Namespace, device: torch.device, scale: Scale
) -> DecoderStage:
    """Stage 1 once more, for the decoder alone. Raises TrainingError, too."""
    return DecoderStage(
        args.start_from or args.folder / MODEL_FILE,
        _pieces(args, scale),
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
        compile_network=args.compile,
        output=args.output,
    )


def _pieces(args: argparse.Namespace, scale: Scale) -> PagePlan:
    """Pages for an autoencoder. Raises TrainingError for a side that does not do."""
    pages = _pages(args, group=first(args.batch, pace_of(args, scale).batch), captions=0)
    shortest = min(side for size in pages.sizes for side in size)
    if args.side and args.side > shortest:
        raise TrainingError(
            f"Pieces of side {args.side} do not fit on pages that are {shortest} pixels at their "
            "shortest: choose a smaller --side or a larger --page."
        )
    if args.side == 8 and pages.group == 1:
        raise TrainingError(
            "A single piece of side 8 is one latent, of which nothing can be learned: choose a "
            "larger --side or --batch."
        )
    return replace(pages, side=min(scale.side, shortest) if args.side is None else args.side)


def make_text_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> TextStage:
    """The stage between as the command line says."""
    return TextStage(
        MODELS[args.size],
        folder=args.folder,
        device=device,
        batch=first(args.batch, scale.paces["text"].batch),
        bf16=_bf16(args, device),
        seed=args.seed,
    )


def make_facts_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> FactsStage:
    """A network that tells the facts of pages, as the command line says. Raises TrainingError, for
    the detector to align with as well."""
    toy, teacher = args.size == "toy", _teacher(args, device)
    if args.emphasis != 1.0 and teacher is None:
        raise TrainingError(
            f"The stage {args.stage} has --emphasis only with --align: add that, or leave it out."
        )
    if args.stage == "detector":
        network: FactNetwork = Detector((8, 8, 8, 8)) if toy else Detector()
    else:
        network = FactTower(TOY_TOWER if toy else MINI_TOWER, seen=teacher.width if teacher else 0)
    return FactsStage(
        args.stage,
        network,
        _pages(args, captions=0),
        # Pages are kept as they are here, 200 kB each, not as latents.
        replace(make_window(args, scale, scale.capacity // 8), reuse=first(args.reuse, 3.0)),
        make_place(args, device),
        lessons=Lessons(teacher=teacher, emphasis=args.emphasis),
        compile_network=args.compile,
        output=args.output,
    )


def _teacher(args: argparse.Namespace, device: torch.device) -> Detector | None:
    return load_detector(args.align, device) if args.align else None


def make_window(args: argparse.Namespace, scale: Scale, capacity: int | None = None) -> WindowPlan:
    """The window of a stage that trains on latents; capacity: if none is asked for."""
    capacity = first(args.capacity, first(capacity, scale.capacity))
    return WindowPlan(
        batch=first(args.batch, pace_of(args, scale).batch),
        capacity=capacity,
        start=min(scale.start, capacity),
        reuse=first(args.reuse, scale.reuse),
    )


def make_place(args: argparse.Namespace, device: torch.device) -> Workplace:
    """Where a stage that trains on latents works."""
    return Workplace(
        folder=args.folder,
        device=device,
        workers=_workers(args),
        bf16=_bf16(args, device),
        seed=args.seed,
        preview=Preview(size=page_sizes(args.page[0] ** 2)[0]),
        keep_pages=args.keep_pages,
    )


def make_base_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> BaseStage:
    """Stage 2 as the command line says."""
    plan = BasePlan(
        objective=args.objective,
        weighting=args.weighting,
        levels=args.levels,
        loss_type=args.loss,
        offset_noise=args.offset_noise,
        frozen_text=args.frozen_text,
        use_checkpoint=args.checkpointing,
        compile=args.compile,
        start_from=args.start_from,
        emphasis=args.emphasis,
    )
    return BaseStage(
        MODELS[args.size],
        _pages(args, book=args.book),
        make_window(args, scale),
        plan,
        make_place(args, device),
        teacher=_teacher(args, device),
        output=args.output,
    )


def make_lora_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> LoraStage:
    """A LoRA of a look of the picture book, or of a folder of pictures.

    Raises TrainingError for a title of the trainer's own files, or one without pictures, and for a
    look with them.
    """
    base = args.start_from or args.folder / MODEL_FILE
    # The model has no rows for the words of a look, so none of them can call for it.
    finish = args.finish or FIRST_LOOK
    title, trigger, prefix = finish, "", LoraPlan.prefix
    place = make_place(args, device)
    capacity = None
    source: GroupSource = _pages(args, finish=finish)
    if args.pictures and args.finish:
        raise TrainingError("--finish is a look of drawn pages: leave it out with --pictures.")
    if args.pictures:
        title, trigger, prefix = _title(args), args.trigger or "", ""
        sizes = sizes_of(base)
        source = open_folder(args.pictures, seed=args.seed, trigger=trigger, sizes=sizes)
        shown = Preview(prompts=source.prompts(OWN_PROMPTS), size=nearest(1, 1, sizes))
        place = replace(place, preview=shown)
        capacity = 8 * len(source.pictures)  # each in some cuts
    elif args.title or args.trigger:
        raise TrainingError("--title and --trigger are for a LoRA of --pictures: add that.")
    return LoraStage(
        LoraPlan(title=title, trigger=trigger, rank=first(args.rank, 8), prefix=prefix),
        base,
        source,
        make_window(args, scale, capacity),
        place,
        output=args.output,
    )


def _title(args: argparse.Namespace) -> str:
    """The name of a LoRA of one's own pictures, as a file can have it."""
    title = re.sub(r"[^\w.+ -]", "_", args.title or args.pictures.resolve().name)
    if title.casefold() in STAGES or title.casefold().startswith("easel-mini"):
        raise TrainingError(
            f"{title!r} is a name of the trainer's own: give the LoRA another one with --title."
        )
    return title


def _pages(args: argparse.Namespace, **kinds: Any) -> PagePlan:
    """Pages of the picture book in the sizes that are asked for, each area as often."""
    ratios = 1 if args.square else len(SIZE_WEIGHTS)
    sizes = tuple(size for page in args.page for size in page_sizes(page**2)[:ratios])
    weights = SIZE_WEIGHTS[:ratios] * len(args.page)
    return PagePlan(seed=args.seed, sizes=sizes, weights=weights, **kinds)


def make_fewstep_stage(
    args: argparse.Namespace, device: torch.device, scale: Scale
) -> FewstepStage:
    """A LoRA for few steps."""
    return FewstepStage(
        LoraPlan(title="lcm", rank=first(args.rank, 8)),
        args.start_from or args.folder / MODEL_FILE,
        _pages(args),
        make_window(args, scale),
        make_place(args, device),
        output=args.output,
    )


def make_ip_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> ImagePromptStage:
    """Image prompts as the command line says."""
    sizes = ImagePromptPlan(width=64, depth=1) if args.size == "toy" else ImagePromptPlan()
    stage = ImagePromptStage(
        replace(sizes, levels=args.levels, emphasis=args.emphasis),
        args.start_from or args.folder / MODEL_FILE,
        _pages(args),
        # Often without words, so that the picture alone is enough.
        replace(make_window(args, scale), dropout=0.6),
        make_place(args, device),
        teacher=_teacher(args, device),
        # An adapter knows the image encoder that it was trained with and no other.
        tower_folder=args.adapter.parent if args.adapter else None,
        output=args.output,
    )
    if args.adapter:
        stage.begin_with(args.adapter)
    return stage


def make_control_stage(
    args: argparse.Namespace, device: torch.device, scale: Scale
) -> ControlStage:
    """Control by edges as the command line says."""
    stage = ControlStage(
        args.start_from or args.folder / MODEL_FILE,
        _pages(args, edges=True),
        replace(make_window(args, scale), dropout=0.2),
        make_place(args, device),
        rank=first(args.rank, 32),
        output=args.output,
    )
    if args.adapter:
        stage.begin_with(args.adapter)
    return stage


STAGES: dict[str, Callable[[argparse.Namespace, torch.device, Scale], Stage]] = {
    "vae": make_vae_stage,
    "decoder": make_decoder_stage,
    "text": make_text_stage,
    "base": make_base_stage,
    "detector": make_facts_stage,
    "tower": make_facts_stage,
    "lora": make_lora_stage,
    "fewstep": make_fewstep_stage,
    "ip": make_ip_stage,
    "control": make_control_stage,
}
