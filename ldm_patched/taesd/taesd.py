"""TAESD: a tiny autoencoder of the diffusion latents, for previews (O. Bær Bohan, 2023).

About 1.2 million weights a side instead of 50: a picture from latents in a few milliseconds on a
GPU. It works on latents in the diffusion model's scale. Parameter names are those of the released
decoder and encoder files; `from_diffusers` renames diffusers' AutoencoderTiny.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.modules import ops, utils
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.weight_file import WeightFile, open_weights

WIDTH = 64
LATENT_CHANNELS = 4
LAYERS = ops.disable_weight_init
SCALES = {"taesd_decoder": 0.18215, "taesdxl_decoder": 0.13025}
"""Of the latents that each released decoder takes, over those of its family's VAE."""


class Clamp(nn.Module):
    """Latents softly kept within ±3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3.0) * 3.0


class Block(nn.Module):
    """Three 3×3 convolutions, a skip, and a ReLU over the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _conv(c_in: int, c_out: int, *, stride: int = 1, bias: bool = True) -> nn.Module:
    return LAYERS.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=bias)


def make_encoder(latent_channels: int = LATENT_CHANNELS) -> nn.Sequential:
    """Pixels (B, 3, 8·H, 8·W) in 0..1 → latents (B, latent_channels, H, W) in the model's scale."""
    layers: list[nn.Module] = [_conv(3, WIDTH), Block(WIDTH)]
    for _ in range(3):
        layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += [Block(WIDTH) for _ in range(3)]
    return nn.Sequential(*layers, _conv(WIDTH, latent_channels))


def make_decoder(latent_channels: int = LATENT_CHANNELS) -> nn.Sequential:
    """Latents (B, latent_channels, H, W) in the model's scale → pixels (B, 3, 8·H, 8·W), about
    0..1."""
    layers: list[nn.Module] = [Clamp(), _conv(latent_channels, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [Block(WIDTH) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2.0), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(WIDTH), _conv(WIDTH, 3))


class TAESD(nn.Module):
    """Either side of the autoencoder, or both."""

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.taesd_encoder, self.taesd_decoder = encoder, decoder

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) in the model's scale → pixels (B, 3, 8·H, 8·W) in 0..1."""
        if self.taesd_decoder is None:
            raise ValueError("No TAESD decoder is loaded.")
        return self.taesd_decoder(latents).clamp_(0.0, 1.0)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, 8·H, 8·W) in 0..1 → latents (B, C, H, W) in the model's scale."""
        if self.taesd_encoder is None:
            raise ValueError("No TAESD encoder is loaded.")
        return self.taesd_encoder(pixels)


# --- files ------------------------------------------------------------------------------------

# Which file names hold a side: its own file (no prefix), or one with both.
_SIDE = re.compile(r"^(?:taesd_)?(encoder|decoder)\.(layers\.)?(\d+)\.(.+)$")


def from_diffusers(names: list[str]) -> dict[str, tuple[str, str]]:
    """Each name of a file with sides → (side, the side's own name of it)."""
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        if match := _SIDE.match(name):
            side, layers, number, rest = match.groups()
            # diffusers' decoder does not count the clamp.
            shift = 1 if layers and side == "decoder" else 0
            found[name] = side, f"{int(number) + shift}.{rest}"
    return found


def load_taesd(
    *paths: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TAESD:
    """The autoencoder whose sides are in these files: one for each, or both in one.

    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    sides: dict[str, nn.Module] = {}
    for path in paths:
        file = open_weights(path)
        with utils.sound_shapes(file.name):
            for side, names in _sides_of(file).items():
                weights = {ours: file.load(name, dtype) for ours, name in names.items()}
                sides[side] = _filled(side, weights, file.name).eval().requires_grad_(False)
    for network in sides.values():
        network.to(device)
    return TAESD(sides.get("encoder"), sides.get("decoder"))


def _sides_of(file: WeightFile) -> dict[str, dict[str, str]]:
    """side → the side's own name → the file's name. Raises UnsupportedModel if there is none."""
    sides: dict[str, dict[str, str]] = {}
    for name, (side, ours) in from_diffusers(list(file)).items():
        sides.setdefault(side, {})[ours] = name
    if sides:
        return sides
    for side, first in (("decoder", "1.weight"), ("encoder", "0.weight")):
        if first in file and file[first].ndim == 4 and file[first].shape[0] == WIDTH:
            return {side: {name: name for name in file}}
    raise UnsupportedModel(
        f"{file.name} is no tiny autoencoder (TAESD); choose taesdxl_decoder or taesd_decoder."
    )


def _filled(side: str, weights: dict[str, Tensor], name: str) -> nn.Module:
    channels = _latent_channels(side, weights)
    with torch.device("meta"):
        network = make_encoder(channels) if side == "encoder" else make_decoder(channels)
    for key, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise CorruptModelFile(
                f"{name} holds invalid numbers (in {key}), so it cannot be used. Download it again."
            )
    report = utils.load_weights(network, weights)
    utils.require_complete(report, name, f"tiny {side}")
    return network


def _latent_channels(side: str, weights: Mapping[str, Tensor]) -> int:
    """16 in files for newer families, else 4."""
    layers = (key.split(".")[0] for key in weights)
    last = max((int(layer) for layer in layers if layer.isdecimal()), default=0)
    edge = weights.get("1.weight") if side == "decoder" else weights.get(f"{last}.weight")
    if edge is None or edge.ndim != 4:
        return LATENT_CHANNELS
    return edge.shape[1] if side == "decoder" else edge.shape[0]


# --- previews ---------------------------------------------------------------------------------


class TaesdPreviewer:
    """Previews by the tiny decoder: a sharp small picture where the linear one shows blobs."""

    def __init__(self, decoder: TAESD, latent_format: Any, max_side: int = 512) -> None:
        """latent_format: of the model, whose latents are brought to the decoder's scale.

        max_side: pixels of the longer side at most; larger latents are scaled down first.
        """
        self._decoder, self._format, self._most = decoder, latent_format, max(1, max_side // 8)
        self._scale = SCALES.get(latent_format.taesd_decoder_name, 1.0)

    def to_jpeg_ready(self, denoised: Tensor) -> np.ndarray:
        """denoised (B, C, H, W) in the model's scale → the first picture, uint8 (H', W', 3)."""
        latent = denoised[:1].float()
        longest = max(latent.shape[-2:])
        if longest > self._most:
            size = [max(1, round(side * self._most / longest)) for side in latent.shape[-2:]]
            latent = F.interpolate(latent, size=size, mode="area")
        first = next(self._decoder.parameters())
        latent = self._format.process_out(latent) * self._scale
        pixels = self._decoder.decode(latent.nan_to_num(0.0).to(first.device, first.dtype))[0]
        rgb = pixels.float().permute(1, 2, 0).mul(255.0).round_()
        return rgb.nan_to_num(0.0).to(torch.uint8).cpu().numpy()
