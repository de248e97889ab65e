"""Rows for a graphics card: SDXL's UNet at full size, ours and diffusers', eager and compiled.

Without a card they say in a sentence that they wait for one.
"""

import time
from collections.abc import Callable

import torch

from benchmarks import peer
from benchmarks.measure import Row, Waits, compare, require_equal
from benchmarks.rows_network import _inputs, _our_call, _our_unet, _their_call
from benchmarks.sizes import Options, name_of
from tests.support.tiny_checkpoint import SDXL, TINY, unet_shapes

FORWARD_TFLOP = 6.76
"""Of one picture of 1024 × 1024 through SDXL's UNet: what no implementation does without."""
COMPILED = "reduce-overhead"
"""torch.compile's mode with CUDA graphs."""


def unet_gpu(options: Options) -> Row:
    return on_card("unet_gpu", options, batch=1)


def unet_gpu_four(options: Options) -> Row:
    return on_card("unet_gpu_four", options, batch=4)


def unet_gpu_compiled(options: Options) -> Row:
    return on_card("unet_gpu_compiled", options, batch=1, compiled=True)


def unet_gpu_four_compiled(options: Options) -> Row:
    return on_card("unet_gpu_four_compiled", options, batch=4, compiled=True)


@torch.inference_mode()
def on_card(
    name: str, options: Options, *, batch: int, compiled: bool = False, device: str = "cuda"
) -> Row:
    """One forward pass of `batch` pictures in bfloat16; the peer is compiled as ours is.

    Raises Waits where there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise Waits("needs a graphics card with CUDA or ROCm; measure it on a machine that has one")
    sizes, side, dtype = (
        (TINY, 16, torch.bfloat16) if options.quick else (SDXL, 128, torch.bfloat16)
    )
    weights = peer.draw_weights(unet_shapes(sizes), dtype)
    theirs = peer.unet(sizes, weights, dtype).to(device, memory_format=torch.channels_last)
    ours = _our_unet(weights, dtype).to(device)
    del weights
    given = {k: v.to(device) for k, v in _inputs(sizes, side, batch, dtype).items()}
    networks = [ours, theirs]
    if compiled:
        networks = [torch.compile(network, mode=COMPILED) for network in networks]
    our_call = _finished(_our_call(networks[0], given), device)
    their_call = _finished(_their_call(networks[1], given), device)
    error = require_equal(name, our_call(), their_call(), 3e-2)
    how = "compiled" if compiled else "eager"
    setup = f"{name_of(sizes)}, {side}x{side} latents, batch {batch}, bfloat16, {how}, {device}"
    row = compare(name, setup, our_call, {how: their_call}, rounds=options.rounds, error=error)
    if options.quick:
        row.note += "; quick run: no statement about speed"
    else:
        row.note += "; " + _floor(batch, row.ours, device)
    return row


def _finished(call: Callable[[], torch.Tensor], device: str) -> Callable[[], torch.Tensor]:
    """The call, and the wait until the device has done it."""

    def finished() -> torch.Tensor:
        out = call().clone()  # a graph's own memory is written over by its next run
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return finished


def _floor(batch: int, seconds: float, device: str) -> str:
    """What the arithmetic alone would take at the rate of a large matrix product here."""
    side, count = 8192, 20
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    (a @ a).sum().item()
    start = time.perf_counter()
    for _ in range(count):
        out = a @ a
    out.sum().item()
    rate = 2e-12 * side**3 * count / (time.perf_counter() - start)
    work = FORWARD_TFLOP * batch
    least = work / rate
    return (
        f"floor {least * 1e3:.1f} ms: {work:.2f} TFLOP ({2 * work:.1f} a guided step) at the "
        f"{rate:.0f} TFLOP/s of a matrix product here; ours takes {seconds / least:.2f} times that"
    )
