"""T2I-Adapter: a small network that steers a UNet by a picture (Mou et al., arXiv:2302.08453).

It runs once a picture, not once a step: one feature map for each level of the UNet, added on the
way down. Parameter names are diffusers' without the leading `adapter.`; `from_original` renames
those of the files that the authors released.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.modules import ops

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The dimensions of an adapter, all of which its weights tell."""

    in_channels: int = 3
    """Of the picture: 3, or 1 for lines and the like."""
    unshuffle: int = 8
    """Side of the squares of pixels that become channels; 16 for SDXL."""
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of the feature map of each level."""
    res_blocks: int = 2
    light: bool = False
    """The light kind: narrower blocks of two 3×3 convolutions."""

    @property
    def is_xl(self) -> bool:
        """Whether it is for SDXL, whose adapters halve the size at the third level only."""
        return self.unshuffle == 16

    def halves(self, level: int) -> bool:
        """Whether a level is half as large as the one before."""
        return level == 2 if self.is_xl else level > 0


class _Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, channels: int, kernel: int, operations: Any, placed: dict[str, Any]) -> None:
        super().__init__()
        self.block1 = operations.Conv2d(channels, channels, 3, padding=1, **placed)
        self.block2 = operations.Conv2d(channels, channels, kernel, padding=kernel // 2, **placed)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(F.relu(self.block1(x))) + x


class _Level(nn.Module):
    """The blocks of one size."""

    def __init__(
        self, config: AdapterConfig, level: int, operations: Any, placed: dict[str, Any]
    ) -> None:
        super().__init__()
        channels = config.channels[level]
        entering = config.channels[max(level - 1, 0)]
        self.halves = config.halves(level)
        self.in_conv = self.out_conv = None
        inner, kernel = channels, 1
        if config.light:
            inner, kernel = channels // 4, 3
            if level == 0:
                entering = config.in_channels * config.unshuffle**2
            self.out_conv = operations.Conv2d(inner, channels, 1, **placed)
        if entering != inner or config.light:
            self.in_conv = operations.Conv2d(entering, inner, 1, **placed)
        blocks = (_Block(inner, kernel, operations, placed) for _ in range(config.res_blocks))
        self.resnets = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class Adapter(nn.Module):
    """A picture to one feature map for each level of a UNet."""

    def __init__(
        self,
        config: AdapterConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        self.config = config
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        self.conv_in = None
        if not config.light:
            features = config.in_channels * config.unshuffle**2
            first = config.channels[0]
            self.conv_in = operations.Conv2d(features, first, 3, padding=1, **placed)
        levels = range(len(config.channels))
        self.body = nn.ModuleList(_Level(config, n, operations, placed) for n in levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, in_channels, H, W) in 0..1, sides multiples of `unshuffle` → a map a level."""
        x = F.pixel_unshuffle(x, self.config.unshuffle)
        if self.conv_in is not None:
            x = self.conv_in(x)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features


ORIGINAL_LIGHT = re.compile(r"^body\.(\d+)\.body\.(\d+)\.(.+)$")
ORIGINAL_FULL = re.compile(r"^body\.(\d+)\.(block1|block2)\.(.+)$")
ORIGINAL_IN = re.compile(r"^body\.(\d+)\.in_conv\.(.+)$")


def from_original(names: list[str]) -> dict[str, str]:
    """The name here of each name in a file, whichever of the two layouts it has."""
    plain = {name: name.removeprefix("adapter.") for name in names}
    flat = any(ORIGINAL_FULL.match(name) for name in plain.values())

    def rename(name: str) -> str:
        if found := ORIGINAL_LIGHT.match(name):
            return f"body.{found[1]}.resnets.{found[2]}.{found[3]}"
        if flat and (found := ORIGINAL_FULL.match(name)):  # two blocks a level, counted through
            level, block = divmod(int(found[1]), 2)
            return f"body.{level}.resnets.{block}.{found[2]}.{found[3]}"
        if flat and (found := ORIGINAL_IN.match(name)):
            return f"body.{int(found[1]) // 2}.in_conv.{found[2]}"
        return name

    return {name: rename(short) for name, short in plain.items()}


def detect_adapter_config(shapes: Shapes) -> AdapterConfig | None:
    """The dimensions of the adapter with these names (as `from_original` gives) and shapes."""
    light = "body.0.out_conv.weight" in shapes
    first = shapes.get("body.0.in_conv.weight" if light else "conv_in.weight")
    levels = {int(m[1]) for name in shapes if (m := re.match(r"body\.(\d+)\.", name))}
    if first is None or len(first) != 4 or levels != set(range(len(levels))) or not levels:
        return None
    last = "out_conv.weight" if light else "resnets.0.block2.weight"
    tops = [shapes.get(f"body.{level}.{last}") for level in sorted(levels)]
    blocks = {int(m[1]) for name in shapes if (m := re.match(r"body\.0\.resnets\.(\d+)\.", name))}
    sizes = {3 * 64: (3, 8), 64: (1, 8), 3 * 256: (3, 16), 256: (1, 16)}
    if None in tops or not blocks or first[1] not in sizes:
        return None
    in_channels, unshuffle = sizes[first[1]]
    return AdapterConfig(
        in_channels=in_channels,
        unshuffle=unshuffle,
        channels=tuple(shape[0] for shape in tops if shape),
        res_blocks=len(blocks),
        light=light,
    )
