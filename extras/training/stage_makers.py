"""The stages of the built-in model as the command line asks for them, and their paces."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from extras.training import builtin_model as builtin
from extras.training.base_parts import MODEL_FILE
from extras.training.detector import MINI_TOWER, TOY_TOWER, Detector, FactNetwork, FactTower
from extras.training.pages import GroupSource, PagePlan
from extras.training.picture_folder import open_folder
from extras.training.run import Stage
from extras.training.scenes.finishes import FINISHES
from extras.training.stage_base import BasePlan, BaseStage
from extras.training.stage_control import ControlStage
from extras.training.stage_diffusion import Workplace
from extras.training.stage_facts import FactsStage
from extras.training.stage_fewstep import FewstepStage
from extras.training.stage_ip import ImagePromptPlan, ImagePromptStage
from extras.training.stage_lora import LoraPlan, LoraStage
from extras.training.stage_text import TextStage
from extras.training.stage_vae import VaeStage
from extras.training.window import WindowPlan
from ldm_patched.modules.model_management import cpu_has_bf16

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
            "lora": Pace(256, 2_000, 2e-3),
            "fewstep": Pace(256, 4_000, 1e-3),
            "ip": Pace(256, 12_000, 1e-3),
            "control": Pace(256, 8_000, 1e-3),
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
            "lora": Pace(16, 3_000, 1e-3),
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


def first(value: float | None, default: float) -> float:
    """`value`, or the default for None."""
    return default if value is None else value


def _workers(args: argparse.Namespace) -> int:
    return first(args.workers, max(1, (os.cpu_count() or 2) - 1))


def _bf16(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether to compute in bfloat16: on a CPU without units for it that is slow."""
    return not args.float32 and (device.type != "cpu" or cpu_has_bf16())


def make_vae_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> VaeStage:
    """Stage 1 as the command line says."""
    pages = PagePlan(
        seed=args.seed,
        group=first(args.batch, scale.paces["vae"].batch),
        side=first(args.side, scale.side),
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
        batch=first(args.batch, scale.paces["text"].batch),
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
    batch = first(args.batch, scale.paces[args.stage].batch)
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
    capacity = first(args.capacity, scale.capacity)
    return WindowPlan(
        batch=first(args.batch, scale.paces[args.stage].batch),
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


def make_lora_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> LoraStage:
    """A LoRA of a look of the picture book, of a folder of pictures, or of few steps."""
    few, seed = args.stage == "fewstep", args.seed
    title = args.title or ("lcm" if few else args.finish)
    source: GroupSource = PagePlan(seed=seed, finish="" if few else args.finish)
    trigger = "" if few else FINISHES[args.finish][1][0]
    if args.pictures and not few:
        trigger = args.trigger or ""
        title = args.title or args.pictures.name
        source = open_folder(args.pictures, seed=seed, trigger=trigger)
    kind = FewstepStage if few else LoraStage
    return kind(
        LoraPlan(title=title, trigger=trigger, rank=first(args.rank, 16 if few else 8)),
        args.start_from or args.folder / MODEL_FILE,
        source,
        make_window(args, scale),
        make_place(args, device),
        output=args.output,
    )


def make_ip_stage(args: argparse.Namespace, device: torch.device, scale: Scale) -> ImagePromptStage:
    """Image prompts as the command line says."""
    toy = args.size == "toy"
    return ImagePromptStage(
        ImagePromptPlan(width=64, depth=1) if toy else ImagePromptPlan(),
        args.start_from or args.folder / MODEL_FILE,
        PagePlan(seed=args.seed),
        # Often without words, so that the picture alone is enough.
        replace(make_window(args, scale), dropout=0.4),
        make_place(args, device),
        output=args.output,
    )


def make_control_stage(
    args: argparse.Namespace, device: torch.device, scale: Scale
) -> ControlStage:
    """Control by edges as the command line says."""
    return ControlStage(
        args.start_from or args.folder / MODEL_FILE,
        PagePlan(seed=args.seed, edges=True),
        replace(make_window(args, scale), dropout=0.2),
        make_place(args, device),
        rank=first(args.rank, 32),
        output=args.output,
    )


STAGES: dict[str, Callable[[argparse.Namespace, torch.device, Scale], Stage]] = {
    "vae": make_vae_stage,
    "text": make_text_stage,
    "base": make_base_stage,
    "detector": make_facts_stage,
    "tower": make_facts_stage,
    "lora": make_lora_stage,
    "fewstep": make_lora_stage,
    "ip": make_ip_stage,
    "control": make_control_stage,
}
