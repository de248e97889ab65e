"""The convolutional halves of the picture autoencoder: Encoder and Decoder.

Layer names are those of latent diffusion's files (arXiv:2112.10752); every width is an argument.
All tensors are (B, C, H, W). With channels-last weights and input, activations stay channels-last
from end to end: convolutions, group norms and up-sampling have kernels for it, and the middle
attention reads a channels-last map as a sequence without a copy.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.attention_kernels import attend
from ldm_patched.modules import ops

Interrupt = Callable[[], object] | None
"""Called between blocks; raises to stop the work."""

NORM_GROUPS = 32
NORM_EPS = 1e-6


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of the normalised `x`, without a second new tensor when no gradient is kept."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def call(interrupt: Interrupt) -> None:
    """Let the caller stop the work here, by an exception of its own."""
    if interrupt is not None:
        interrupt()


class Upsample(nn.Module):
    """Twice the height and width by repetition, then a convolution."""

    def __init__(self, channels: int, *, operations: Any = ops.disable_weight_init) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the height and width, rounded down, by a convolution with stride 2."""

    def __init__(self, channels: int, *, operations: Any = ops.disable_weight_init) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H // 2, W // 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the family pads right and bottom only


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, c_in: int, c_out: int, *, operations: Any = ops.disable_weight_init) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(NORM_GROUPS, c_in, eps=NORM_EPS)
        self.conv1 = operations.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = operations.GroupNorm(NORM_GROUPS, c_out, eps=NORM_EPS)
        self.conv2 = operations.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = operations.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) → (B, c_out, H, W)."""
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return x + h if torch.is_grad_enabled() else h.add_(x)


class AttnBlock(nn.Module):
    """Self-attention of all positions, with one head as wide as the map."""

    def __init__(self, channels: int, *, operations: Any = ops.disable_weight_init) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)
        self.q = operations.Conv2d(channels, channels, 1)
        self.k = operations.Conv2d(channels, channels, 1)
        self.v = operations.Conv2d(channels, channels, 1)
        self.proj_out = operations.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        batch, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (
            layer(h).permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
            for layer in (self.q, self.k, self.v)
        )
        h = attend(q, k, v)
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        block_class: type[ResnetBlock] = ResnetBlock,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        self.block_1 = block_class(channels, channels, operations=operations)
        self.attn_1 = AttnBlock(channels, operations=operations)
        self.block_2 = block_class(channels, channels, operations=operations)

    def forward(self, x: Tensor, interrupt: Interrupt = None) -> Tensor:
        """(B, C, H, W) → the same shape."""
        for layer in (self.block_1, self.attn_1, self.block_2):
            call(interrupt)
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures to the moments of their latents."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        in_channels: int = 3,
        double_z: bool = True,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """ch: width of the first level; ch_mult: factor of each level, finest first."""
        super().__init__()
        self.conv_in = operations.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width, last = ch, len(ch_mult) - 1
        for level, mult in enumerate(ch_mult):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks):
                stage.block.append(ResnetBlock(width, ch * mult, operations=operations))
                width = ch * mult
            if level != last:
                stage.downsample = Downsample(width, operations=operations)
            self.down.append(stage)
        self.mid = Middle(width, operations=operations)
        self.norm_out = operations.GroupNorm(NORM_GROUPS, width, eps=NORM_EPS)
        moments = 2 * z_channels if double_z else z_channels
        self.conv_out = operations.Conv2d(width, moments, 3, padding=1)

    def forward(self, x: Tensor, interrupt: Interrupt = None) -> Tensor:
        """(B, 3, H, W) in -1..1 → (B, 2·Z, h, w), where h = H halved once per level but one."""
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                call(interrupt)
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        h = self.mid(h, interrupt)
        return self.conv_out(norm_silu(self.norm_out, h))


class Decoder(nn.Module):
    """Latents to pictures."""

    block_class: ClassVar[type[ResnetBlock]] = ResnetBlock

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        out_ch: int = 3,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """As Encoder; each level has one residual block more than the encoder's."""
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = operations.Conv2d(z_channels, width, 3, padding=1)
        self.mid = Middle(width, block_class=self.block_class, operations=operations)
        stages: list[nn.Module] = []
        for level in range(len(ch_mult) - 1, -1, -1):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                out = ch * ch_mult[level]
                stage.block.append(self.block_class(width, out, operations=operations))
                width = ch * ch_mult[level]
            if level:
                stage.upsample = Upsample(width, operations=operations)
            stages.insert(0, stage)  # files number levels from the finest
        self.up = nn.ModuleList(stages)
        self.norm_out = operations.GroupNorm(NORM_GROUPS, width, eps=NORM_EPS)
        self.conv_out = operations.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: Tensor, interrupt: Interrupt = None) -> Tensor:
        """(B, Z, h, w) → (B, 3, H, W), about -1..1."""
        h = self.mid(self.conv_in(z), interrupt)
        for stage in reversed(self.up):
            for block in stage.block:
                call(interrupt)
                h = block(h)
            if hasattr(stage, "upsample"):
                call(interrupt)
                h = stage.upsample(h)
        return self.conv_out(norm_silu(self.norm_out, h))
