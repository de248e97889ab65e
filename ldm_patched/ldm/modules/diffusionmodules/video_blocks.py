"""What makes a UNet and a decoder see time: blocks over frames, blended with those over pixels.

The plan and the names are those of Stable Video Diffusion (Blattmann et al. 2023,
arXiv:2311.15127). Frames of a video lie one after the other in the batch, (B·T, C, H, W). Each
block first treats frames as pictures, then a second part looks along time, and an AlphaBlender
mixes the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.attention import (
    BasicTransformerBlock,
    FeedForward,
    KVStore,
    SpatialTransformer,
)
from ldm_patched.ldm.modules.diffusionmodules.model import Decoder, ResnetBlock
from ldm_patched.ldm.modules.diffusionmodules.unet_blocks import BlockMaker, ResBlock
from ldm_patched.ldm.modules.diffusionmodules.util import (
    AlphaBlender,
    timestep_embedding,
    zero_module,
)
from ldm_patched.modules import ops

ALONG_TIME = (3, 1, 1)

Embed = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class VideoFrames:
    """How the batch is made of videos. image_only: (B, T), true for frames that are no video.
    embed: what tells the network a frame's place, (N,) and a width to (N, width)."""

    count: int
    image_only: Tensor
    embed: Embed

    @classmethod
    def of(
        cls,
        batch: int,
        count: int | None,
        image_only: Tensor | None,
        embed: Embed = timestep_embedding,
    ) -> "VideoFrames":
        """count: frames of a video; None makes the whole batch one. Raises ValueError."""
        count = batch if count is None else count
        if count < 1 or batch % count:
            raise ValueError(f"{batch} frames are no whole number of videos of {count}.")
        if image_only is None:
            image_only = torch.zeros(batch // count, count)
        return cls(count, image_only, embed)


class TemporalResBlock(nn.Module):
    """Two convolutions along time, with the time embedding of each frame between, and a skip."""

    def __init__(
        self,
        channels: int,
        emb_channels: int = 0,
        *,
        operations: Any = ops.disable_weight_init,
        **placed: Any,
    ) -> None:
        """emb_channels: 0 for a block without an embedding."""
        super().__init__()

        def conv() -> nn.Module:
            return operations.Conv3d(channels, channels, ALONG_TIME, padding=(1, 0, 0), **placed)

        self.in_layers = nn.Sequential(
            operations.GroupNorm(32, channels, **placed), nn.SiLU(), conv()
        )
        if emb_channels:
            self.emb_layers = nn.Sequential(
                nn.SiLU(), operations.Linear(emb_channels, channels, **placed)
            )
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, channels, **placed), nn.SiLU(), nn.Identity(), conv()
        )
        zero_module(self.out_layers[-1])

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x (B, C, T, H, W), emb (B, T, E) → like x."""
        h = self.in_layers(x)
        if emb is not None:
            h = h + rearrange(self.emb_layers(emb), "b t c -> b c t 1 1")
        return x + self.out_layers(h)


class VideoResBlock(ResBlock):
    """A residual block over pixels, then one over time."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        merge_factor: float = 0.5,
        merge_strategy: str = "learned_with_images",
        **options: Any,
    ) -> None:
        """merge_factor, merge_strategy: see AlphaBlender. options: see ResBlock."""
        super().__init__(channels, emb_channels, out_channels, **options)
        options.pop("use_checkpoint", None)
        self.time_stack = TemporalResBlock(self.out_channels, emb_channels, **options)
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy, "b t -> b 1 t 1 1")

    def forward(self, x: Tensor, emb: Tensor, video: VideoFrames | None = None) -> Tensor:
        """x (B·T, C, H, W), emb (B·T, E) → (B·T, out_channels, H, W)."""
        video = video or VideoFrames.of(len(x), None, None)
        spatial = rearrange(super().forward(x, emb), "(b t) c h w -> b c t h w", t=video.count)
        temporal = self.time_stack(spatial, rearrange(emb, "(b t) c -> b t c", t=video.count))
        mixed = self.time_mixer(spatial, temporal, video.image_only.to(x.device))
        return rearrange(mixed, "b c t h w -> (b t) c h w")


class TemporalTransformerBlock(BasicTransformerBlock):
    """A transformer block over the frames of each pixel, with a feed-forward before it."""

    def __init__(
        self, dim: int, n_heads: int, d_head: int, context_dim: int | None, **options: Any
    ):
        super().__init__(dim, n_heads, d_head, context_dim, **options)
        placed = {k: v for k, v in options.items() if k != "use_checkpoint"}
        operations = placed.pop("operations", ops.disable_weight_init)
        self.norm_in = operations.LayerNorm(dim, **placed)
        self.ff_in = FeedForward(dim, operations=operations, **placed)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        kv: KVStore | None = None,
    ) -> Tensor:
        """x (B·pixels, T, dim), context (B·pixels, M, context_dim) → like x."""
        x = self.ff_in(self.norm_in(x)) + x
        return super().forward(x, context, transformer_options, kv)


class SpatialVideoTransformer(SpatialTransformer):
    """Transformer blocks over the pixels of each frame, each followed by one over the frames."""

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        *,
        use_linear: bool = True,
        use_checkpoint: bool = False,
        merge_factor: float = 0.5,
        merge_strategy: str = "learned_with_images",
        operations: Any = ops.disable_weight_init,
        **placed: Any,
    ) -> None:
        """merge_factor, merge_strategy: see AlphaBlender. The rest as SpatialTransformer."""
        options = {"use_checkpoint": use_checkpoint, "operations": operations, **placed}
        sizes = (n_heads, d_head)
        super().__init__(in_channels, *sizes, depth, context_dim, use_linear=use_linear, **options)
        self.channels = in_channels
        inner = n_heads * d_head
        self.time_stack = nn.ModuleList(
            TemporalTransformerBlock(inner, *sizes, context_dim, **options) for _ in range(depth)
        )
        self.time_pos_embed = nn.Sequential(
            operations.Linear(in_channels, in_channels * 4, **placed),
            nn.SiLU(),
            operations.Linear(in_channels * 4, in_channels, **placed),
        )
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        kv: KVStore | None = None,
        video: VideoFrames | None = None,
    ) -> Tensor:
        """x (B·T, C, H, W) → the same shape. context: (B·T, M, context_dim); along time the text
        or picture of a video's first frame counts for all."""
        video = video or VideoFrames.of(len(x), None, None)
        _, _, height, width = x.shape
        h = self.norm(x)
        h = h if self.use_linear else self.proj_in(h)
        h = rearrange(h, "n c h w -> n (h w) c")
        h = self.proj_in(h) if self.use_linear else h
        places = torch.arange(video.count, device=x.device).repeat(len(x) // video.count)
        places = self.time_pos_embed(video.embed(places, self.channels).to(h.dtype))
        over_time = None
        if context is not None:
            first = context[:: video.count]
            over_time = repeat(first, "b m c -> (b s) m c", s=height * width)
        image_only = video.image_only.to(x.device)
        for index, (block, along_time) in enumerate(
            zip(self.transformer_blocks, self.time_stack, strict=True)
        ):
            options = transformer_options
            if options:
                options = {**options, "block_index": index}
            h = block(h, context, options, kv)
            mixed = h + places[:, None]
            mixed = rearrange(mixed, "(b t) s c -> (b s) t c", t=video.count)
            mixed = along_time(mixed, over_time)
            mixed = rearrange(mixed, "(b s) t c -> (b t) s c", s=height * width)
            h = self.time_mixer(h, mixed, image_only)
        h = self.proj_out(h) if self.use_linear else h
        h = rearrange(h, "n (h w) c -> n c h w", h=height)
        h = h if self.use_linear else self.proj_out(h)
        return h + x


class VideoBlockMaker(BlockMaker):
    """Builds the blocks of a UNetConfig for video."""

    res_block_class = VideoResBlock
    transformer_class = SpatialVideoTransformer


# --- Decoder ----------------------------------------------------------------------------------


class VideoResnetBlock(ResnetBlock):
    """The decoder's residual block, then one over time; the whole batch is one video."""

    def __init__(self, c_in: int, c_out: int, *, operations: Any = ops.disable_weight_init) -> None:
        super().__init__(c_in, c_out, operations=operations)
        self.time_stack = TemporalResBlock(c_out, operations=operations)
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(T, c_in, H, W) → (T, c_out, H, W)."""
        spatial = rearrange(super().forward(x), "t c h w -> 1 c t h w")
        share = torch.sigmoid(self.mix_factor).to(x)  # of time, unlike in the UNet
        mixed = share * self.time_stack(spatial) + (1.0 - share) * spatial
        return rearrange(mixed, "1 c t h w -> t c h w")


class FrameConv(nn.Conv2d):
    """A convolution over pixels, then one over time."""

    def __init__(self, c_in: int, c_out: int, *, operations: Any = ops.disable_weight_init) -> None:
        with torch.device("meta"):  # the layers below are made by `operations`
            super().__init__(c_in, c_out, 3, padding=1)
        made = operations.Conv2d(c_in, c_out, 3, padding=1)
        self.weight, self.bias = made.weight, made.bias
        self.time_mix_conv = operations.Conv3d(c_out, c_out, ALONG_TIME, padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(T, c_in, H, W) → (T, c_out, H, W)."""
        h = F.conv2d(x, self.weight, self.bias, padding=1)
        return rearrange(
            self.time_mix_conv(rearrange(h, "t c h w -> 1 c t h w")), "1 c t h w -> t c h w"
        )


class VideoDecoder(Decoder):
    """Latents of the frames of one video to its pictures; frames are the batch."""

    block_class = VideoResnetBlock

    def __init__(self, *, ch: int, operations: Any = ops.disable_weight_init, **sizes: Any) -> None:
        """See Decoder."""
        super().__init__(ch=ch, operations=operations, **sizes)
        self.conv_out = FrameConv(ch, self.conv_out.out_channels, operations=operations)
