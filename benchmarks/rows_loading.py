"""Rows about files: loading a checkpoint, and merging a LoRA into a UNet."""

import copy
import ctypes
import gc
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import peer
from benchmarks.measure import NotEquivalent, Row, compare, require_equal
from benchmarks.rows_image import PROMPT, Engine, checkpoint_file
from benchmarks.rows_network import _inputs, _our_call, _our_model, _their_call
from benchmarks.sizes import GIB, Options, fitting, name_of
from tests.support.tiny_checkpoint import FamilySizes, unet_shapes

RANK = 32


# --- Checkpoints ------------------------------------------------------------------------------


def checkpoint_load(options: Options) -> Row:
    """A float16 file to a model in float16, as on a graphics card."""
    return _load_row("checkpoint_load", torch.float16, options, target=">= 2x")


def checkpoint_cast(options: Options) -> Row:
    """A float16 file to a model in float32, as on a processor without bfloat16.

    About half of either side's time is the system's, for twice the file's size in fresh memory.
    """
    return _load_row("checkpoint_cast", torch.float32, options)


def _load_row(name: str, dtype: torch.dtype, options: Options, target: str = "") -> Row:
    from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware

    full = dtype is torch.float32
    sizes = fitting(options, 50 * GIB if full else 30 * GIB)
    path = checkpoint_file(sizes)
    flags = DeviceFlags(all_in_fp32=full, all_in_fp16=not full)
    with tempfile.TemporaryDirectory() as folder:
        peer.write_configs(Path(folder), sizes)

        def our_call() -> Engine:
            return Engine(path, DevicePolicy(flags, Hardware()))

        def their_call() -> Any:
            return peer.from_single_file(path, Path(folder), dtype)

        error = _require_same_model(name, our_call(), their_call(), sizes, dtype)
        return compare(
            name,
            f"{name_of(sizes)}, {path.stat().st_size / 1e9:.2f} GB float16 file in the disk's "
            f"cache, to {str(dtype)[6:]}",
            our_call,
            {"from_single_file": their_call},
            after={"ours": give_back_memory, "from_single_file": give_back_memory},
            rounds=options.rounds,
            error=error,
            target=target,
            note="quick run: no statement about speed" if options.quick else "",
        )


def give_back_memory() -> None:
    """Both load into fresh memory, as a program does whose memory holds the model before."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@torch.inference_mode()
def _require_same_model(
    name: str, ours: Engine, pipe: Any, sizes: FamilySizes, dtype: torch.dtype
) -> float:
    """The largest relative error of what the parts give. Raises NotEquivalent.

    UNet and VAE must also have the same numbers, counted, however they are arranged.
    """
    unet, vae = ours.unet.model.diffusion_model, ours.vae.first_stage_model
    for part, network, theirs in (("UNet", unet, pipe.unet), ("VAE", vae, pipe.vae)):
        if not torch.equal(_numbers(network.parameters()), _numbers(theirs.parameters())):
            raise NotEquivalent(f"{name}: the weights of the {part} differ.")
    given = _inputs(sizes, 16, 1, dtype)
    cond, _ = peer.encode(pipe, ours.clip.tokenize(PROMPT))
    outputs = {
        "UNet": (_our_call(unet, given)(), _their_call(pipe.unet, given)()),
        "VAE": (vae.decode(given["x"]), pipe.vae.decode(given["x"], return_dict=False)[0]),
        "text encoders": (ours.encode(PROMPT)[0][0], cond),
    }
    limit = 1e-4 if dtype is torch.float32 else 3e-2
    return max(require_equal(f"{name}, {part}", *two, limit) for part, two in outputs.items())


def _numbers(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """How often each float16 number stands in the weights, however they are arranged: (65536,)."""
    counts = torch.zeros(2**16, dtype=torch.int64)
    for weight in weights:
        bits = weight.detach().half().contiguous().view(torch.int16).flatten().int() + 2**15
        counts += torch.bincount(bits, minlength=2**16)
    return counts


# --- LoRA -------------------------------------------------------------------------------------


def _write_lora(path: Path, network: torch.nn.Module) -> int:
    """A rank-32 file as PEFT names it, for each linear layer of the transformers; their number."""
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attentions." in name:
            for part, shape in (
                ("A", (RANK, layer.in_features)),
                ("B", (layer.out_features, RANK)),
            ):
                # together about a tenth as large as the weights
                scale = layer.in_features**-0.5 if part == "A" else 0.1 * RANK**-0.5
                values = torch.randn(shape, generator=generator) * scale
                tensors[f"unet.{name}.lora_{part}.weight"] = values.half()
    save_file(tensors, str(path))
    return len(tensors) // 2


def lora_merge(options: Options) -> Row:
    """A file on the disk to a UNet with a rank-32 LoRA in its weights.

    Theirs are load_lora_adapter and fuse_lora, from names that PEFT needs not translate.
    """
    dtype, sizes = torch.bfloat16, fitting(options, 20 * GIB)
    weights = peer.draw_weights(unet_shapes(sizes), dtype)
    theirs = copy.deepcopy(peer.unet(sizes, weights, dtype))  # they write into the weights
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        count = _write_lora(path, theirs)
        return _merge_row(path, count, weights, theirs, sizes, options)


def _merge_row(
    path: Path,
    count: int,
    weights: dict,
    theirs: torch.nn.Module,
    sizes: FamilySizes,
    options: Options,
) -> Row:
    from safetensors.torch import load_file

    from ldm_patched.modules.model_patcher import ModelPatcher
    from ldm_patched.modules.sd import load_lora_for_models
    from ldm_patched.modules.weight_file import open_weights

    dtype = next(iter(weights.values())).dtype
    ours = ModelPatcher(_our_model(weights, dtype))

    def our_call() -> None:
        patched, _ = load_lora_for_models(ours, None, open_weights(path), 1.0, 1.0)
        patched.patch_model()

    def their_call() -> None:
        theirs.load_lora_adapter(load_file(str(path)), prefix="unet")
        theirs.fuse_lora()

    def their_reset() -> None:
        theirs.unfuse_lora()
        theirs.unload_lora()

    given = _inputs(sizes, 16, 1, dtype)
    pictures = (
        _our_call(ours.model.diffusion_model.eval(), given),
        _their_call(theirs, given),
    )
    with torch.inference_mode():
        plain = pictures[0]()
    our_call()
    their_call()
    with torch.inference_mode():
        error = require_equal("lora_merge", pictures[0](), pictures[1](), 3e-2)
        if float((pictures[0]() - plain).norm() / plain.norm()) < 5 * error:
            raise NotEquivalent("lora_merge: the LoRA changes next to nothing.")
    ours.unpatch_model()
    their_reset()
    return compare(
        "lora_merge",
        f"{name_of(sizes)}'s UNet in {str(dtype)[6:]}, rank {RANK}, {count} modules, "
        f"{path.stat().st_size / 1e6:.0f} MB float16 file in the disk's cache",
        our_call,
        {"diffusers + peft": their_call},
        after={
            "ours": ours.unpatch_model,
            "diffusers + peft": their_reset,
        },
        rounds=options.rounds,
        error=error,
        target=">= 2x",
        note="quick run: no statement about speed" if options.quick else "",
    )
