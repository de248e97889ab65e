"""What a Stable Diffusion UNet is put together from, with the family's parameter names."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.attention import KVStore, SpatialTransformer
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    zero_module,
)
from ldm_patched.modules import ops


class Upsample(nn.Module):
    """Twice the height and width, nearest, then a 3×3 convolution if `use_conv`."""

    def __init__(
        self,
        channels: int,
        use_conv: bool = True,
        dims: int = 2,
        out_channels: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.conv = None
        if use_conv:
            out_channels = out_channels or channels
            self.conv = conv_nd(
                dims,
                channels,
                out_channels,
                3,
                padding=1,
                operations=operations,
                dtype=dtype,
                device=device,
            )

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """output_size: height and width to reach; None doubles."""
        if self.dims == 3:
            size = output_size or (x.shape[3] * 2, x.shape[4] * 2)
            x = F.interpolate(x, (x.shape[2], *size), mode="nearest")
        elif output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, output_size, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the height and width, by a strided 3×3 convolution or by averaging."""

    def __init__(
        self,
        channels: int,
        use_conv: bool = True,
        dims: int = 2,
        out_channels: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """Raises ValueError if averaging is to change the number of channels."""
        super().__init__()
        out_channels = out_channels or channels
        stride: Any = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(
                dims,
                channels,
                out_channels,
                3,
                stride=stride,
                padding=1,
                operations=operations,
                dtype=dtype,
                device=device,
            )
        elif channels != out_channels:
            raise ValueError("Averaging keeps the channels; use a convolution to change them.")
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between, and a skip."""

    streams_as_one = True

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        dims: int = 2,
        use_conv: bool = False,
        use_checkpoint: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """use_conv: the skip changes channels by a 3×3 convolution, else by 1×1."""
        super().__init__()
        out_channels = out_channels or channels
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        conv: dict[str, Any] = {"operations": operations, **placed}
        self.use_checkpoint = use_checkpoint
        self.out_channels = out_channels
        self.in_layers = nn.Sequential(
            operations.GroupNorm(32, channels, **placed),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1, **conv),
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), operations.Linear(emb_channels, out_channels, **placed)
        )
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, out_channels, **placed),
            nn.SiLU(),
            nn.Identity(),  # the family's files number a dropout here
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1, **conv)),
        )
        if out_channels == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, out_channels, 3, padding=1, **conv)
        else:
            self.skip_connection = conv_nd(dims, channels, out_channels, 1, **conv)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, …), emb (B, emb_channels) → (B, out_channels, …)."""
        if torch.is_grad_enabled():
            return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        free = not torch.is_grad_enabled()  # then what was made here may be overwritten
        norm_in, _, conv_in = self.in_layers
        h = conv_in(F.silu(norm_in(x), inplace=free))
        shift = self.emb_layers(emb)
        shift = shift.view(*shift.shape, *((1,) * (h.ndim - 2)))
        h = h.add_(shift) if free else h + shift
        norm_out, _, _, conv_out = self.out_layers
        h = conv_out(F.silu(norm_out(h), inplace=free))
        skip = self.skip_connection(x)
        return h.add_(skip) if free else skip + h


class TimestepEmbedSequential(nn.Sequential):
    """Layers one after another, each handed the arguments that its kind takes."""

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        output_size: tuple[int, int] | None = None,
        kv: KVStore | None = None,
        video: Any = None,
    ) -> Tensor:
        """video: the VideoFrames of a network for video, None for one without.

        transformer_options: its "transformer_index" is counted up, if it is there."""
        for layer in self._modules.values():
            frames = () if video is None else (video,)
            if isinstance(layer, ResBlock):
                x = layer(x, emb, *frames)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, transformer_options, kv, *frames)
                if transformer_options and "transformer_index" in transformer_options:
                    transformer_options["transformer_index"] += 1
            elif isinstance(layer, Upsample):
                x = layer(x, output_size)
            else:
                x = layer(x)
        return x


class BlockMaker:
    """Builds the three groups of blocks of a UNetConfig."""

    res_block_class: ClassVar[type[ResBlock]] = ResBlock
    transformer_class: ClassVar[type[SpatialTransformer]] = SpatialTransformer

    def __init__(
        self, config: UNetConfig, use_checkpoint: bool, operations: Any, placed: dict[str, Any]
    ) -> None:
        self.config = config
        self.placed: dict[str, Any] = {**placed, "operations": operations}
        self.use_checkpoint = use_checkpoint
        self.operations = operations

    def res_block(self, channels: int, out_channels: int) -> ResBlock:
        return self.res_block_class(
            channels,
            self.config.time_embed_dim,
            out_channels,
            use_checkpoint=self.use_checkpoint,
            **self.placed,
        )

    def transformers(self, channels: int, depth: int) -> list[SpatialTransformer]:
        """One SpatialTransformer of so many blocks, in a list; none for depth 0."""
        return [self._transformer(channels, depth)] if depth else []

    def _transformer(self, channels: int, depth: int) -> SpatialTransformer:
        heads, width = self.config.heads_of(channels)
        context_only = channels in self.config.context_only_widths
        return self.transformer_class(
            channels,
            heads,
            width,
            depth,
            self.config.context_dim,
            use_linear=self.config.use_linear_in_transformer,
            use_checkpoint=self.use_checkpoint,
            **({"disable_self_attn": True} if context_only else {}),
            **self.placed,
        )

    def input_blocks(self) -> tuple[nn.ModuleList, list[int]]:
        """The blocks, and the channels of each one's output."""
        c = self.config
        channels = c.model_channels
        first = conv_nd(2, c.in_channels, channels, 3, padding=1, **self.placed)
        blocks = [TimestepEmbedSequential(first)]
        skips = [channels]
        depths = iter(c.transformer_depth)
        for level, count in enumerate(c.num_res_blocks):
            for _ in range(count):
                out = c.model_channels * c.channel_mult[level]
                layers = [self.res_block(channels, out), *self.transformers(out, next(depths))]
                blocks.append(TimestepEmbedSequential(*layers))
                channels = out
                skips.append(channels)
            if level != len(c.num_res_blocks) - 1:
                down = Downsample(channels, c.conv_resample, **self.placed)
                blocks.append(TimestepEmbedSequential(down))
                skips.append(channels)
        return nn.ModuleList(blocks), skips

    def middle_block(self) -> TimestepEmbedSequential | None:
        c = self.config
        if c.transformer_depth_middle is None:
            return None
        channels = c.model_channels * c.channel_mult[-1]
        layers: list[nn.Module] = [self.res_block(channels, channels)]
        if c.transformer_depth_middle > 0 or c.projects_middle:
            layers.append(self._transformer(channels, c.transformer_depth_middle))
            layers.append(self.res_block(channels, channels))
        return TimestepEmbedSequential(*layers)

    def output_blocks(self, skips: list[int]) -> nn.ModuleList:
        c = self.config
        skips = list(skips)
        channels = c.model_channels * c.channel_mult[-1]
        depths = iter(c.transformer_depth_output)
        blocks = []
        for level in reversed(range(len(c.num_res_blocks))):
            out = c.model_channels * c.channel_mult[level]
            for i in range(c.num_res_blocks[level] + 1):
                layers: list[nn.Module] = [self.res_block(channels + skips.pop(), out)]
                layers += self.transformers(out, next(depths))
                if level and i == c.num_res_blocks[level]:
                    layers.append(Upsample(out, c.conv_resample, **self.placed))
                blocks.append(TimestepEmbedSequential(*layers))
                channels = out
        return nn.ModuleList(blocks)
