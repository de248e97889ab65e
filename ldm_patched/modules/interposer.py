"""Latent interposers: from one family's latents to another's without a picture in between.

A small convolution net (city96, SD-Latent-Interposer 4.0, Apache-2.0, the released files' names):
a widening block, residual blocks behind a batch norm each, a norm, and a last convolution. Latents
are in the scale of the VAEs, at an eighth of the picture's sides on both ends.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.modules import ops, utils
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.weight_file import open_weights

LAYERS = ops.disable_weight_init
_BLOCK = re.compile(r"^core\.(\d+)\.long\.0\.weight$")
_COUNTERS = ".num_batches_tracked"  # of the training alone


class Norm(nn.Module):
    """A batch norm with the statistics of its training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Residual(nn.Module):
    """Three convolutions over the normed input, which is added to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.long = _three_convolutions(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return F.relu(self.long(x) + x)


class Widening(nn.Module):
    """Three convolutions to more channels, and one beside them."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.short = _conv(c_in, width)
        self.long = _three_convolutions(c_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.long(x) + self.short(x))


class Interposer(nn.Module):
    """Latents (B, c_in, H, W) of one family → (B, c_out, H, W) of another, both in VAE scale."""

    def __init__(self, c_in: int, c_out: int, width: int, blocks: int) -> None:
        super().__init__()
        self.head = Widening(c_in, width)
        # The first place is a resizing by 1 in the released nets.
        inner = (Residual(width) for _ in range(blocks))
        self.core = nn.Sequential(nn.Identity(), *inner, Norm(width), nn.SiLU())
        self.tail = _conv(width, c_out)

    @torch.inference_mode()
    def forward(self, latents: Tensor) -> Tensor:
        first = self.tail.weight
        return self.tail(self.core(self.head(latents.to(first)))).to(latents)


def _conv(c_in: int, c_out: int) -> nn.Module:
    return LAYERS.Conv2d(c_in, c_out, 3, padding=1)


def _three_convolutions(c_in: int, width: int) -> nn.Sequential:
    rest = (nn.SiLU(), _conv(width, width), nn.SiLU(), _conv(width, width))
    return nn.Sequential(_conv(c_in, width), *rest)


def load_interposer(path: str | Path, device: torch.device | str = "cpu") -> Interposer:
    """The net of a file, in float32 on `device`.

    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    file = open_weights(path)
    blocks = [int(match[1]) for match in map(_BLOCK.match, file) if match]
    if not {"head.short.weight", "tail.weight"} <= set(file) or not blocks:
        raise UnsupportedModel(
            f"{file.name} is no latent interposer of version 4; take it out of models/vae_approx, "
            "or put xl-to-v1_interposer-v4.0 there."
        )
    head, tail = file["head.short.weight"].shape, file["tail.weight"].shape
    with utils.sound_shapes(file.name), torch.device("meta"):
        net = Interposer(head[1], tail[0], head[0], len(blocks))
    weights = {k: file.load(k, torch.float32) for k in file if not k.endswith(_COUNTERS)}
    _require_finite(file.name, weights.items())
    utils.require_complete(utils.load_weights(net, weights), file.name, "latent interposer")
    return net.to(device).eval().requires_grad_(False)


def _require_finite(name: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    for key, weight in weights:
        if not bool(torch.isfinite(weight).all()):
            raise CorruptModelFile(
                f"{name} holds invalid numbers (in {key}), so it cannot be used. Download it again."
            )
