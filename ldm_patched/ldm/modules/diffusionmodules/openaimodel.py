"""The UNet of Stable Diffusion, with the latent diffusion code base's parameter names.

Built for a short way through: no dropout, no division by 1, sums in place under inference,
channels-last memory where the weights are so. `timestep_embedding` is looked up in this module
at each call, so that an assignment to `openaimodel.timestep_embedding` (see the precision
patch) reaches every user.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.diffusionmodules.context_cache import ContextCache, bytes_per_token
from ldm_patched.ldm.modules.diffusionmodules.unet_blocks import (
    BlockMaker,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.ldm.modules.diffusionmodules.util import timestep_embedding, zero_module
from ldm_patched.ldm.modules.diffusionmodules.video_blocks import VideoBlockMaker, VideoFrames
from ldm_patched.modules import ops

__all__ = [
    "Downsample",
    "ResBlock",
    "TimestepEmbedSequential",
    "Timestep",
    "UNetConfig",
    "UNetModel",
    "Upsample",
    "apply_control",
    "timestep_embedding",
]


class Timestep(nn.Module):
    """Sinusoidal embedding of numbers, (N,) → (N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        return timestep_embedding(t, self.dim)


class GuidedTimeEmbedding(nn.Sequential):
    """time_embed of a network that is told its guidance scale (LCM, arXiv:2310.04378)."""

    def __init__(self, layers: nn.Sequential, cond_proj: nn.Module) -> None:
        super().__init__(*layers)
        self.cond_proj = cond_proj

    def forward(self, t: Tensor, guidance: Tensor | None = None) -> Tensor:
        """(B, model_channels), and (B, guidance_dim) or None → (B, time_embed_dim)."""
        if guidance is not None:
            t = t + self.cond_proj(guidance)
        return self[2](self[1](self[0](t)))


def apply_control(
    h: Tensor, control: Mapping[str, list[Tensor | None]] | None, name: str
) -> Tensor:
    """h plus the last of `control[name]`, which is taken off; h itself if there is none."""
    if control is None or not control.get(name):
        return h
    extra = control[name].pop()
    return h if extra is None else h + extra


class UNetModel(nn.Module):
    """The denoising network: latents, timesteps, text and size conditions to a prediction."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        use_checkpoint: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """operations: the group of layers to build from; `torch.nn` for training from nothing."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.in_channels = config.in_channels
        self.model_channels = config.model_channels
        self.out_channels = config.out_channels
        self.num_classes = config.num_classes
        self._told: Callable[[], Tensor] | Tensor | float = 0.0
        self._contexts = ContextCache()
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        maker = VideoBlockMaker if config.video else BlockMaker
        make = maker(config, use_checkpoint, operations, placed)
        width = config.time_embed_dim

        def embedder(features: int) -> nn.Sequential:
            return nn.Sequential(
                operations.Linear(features, width, **placed),
                nn.SiLU(),
                operations.Linear(width, width, **placed),
            )

        self.time_embed = embedder(config.model_channels)
        if config.guidance_dim:
            told = operations.Linear(
                config.guidance_dim, config.model_channels, bias=False, **placed
            )
            self.time_embed = GuidedTimeEmbedding(self.time_embed, told)
        if config.num_classes == "sequential":
            self.label_emb = nn.Sequential(embedder(config.adm_in_channels))
        elif config.num_classes is not None:
            self.label_emb = operations.Embedding(config.num_classes, width, **placed)
        self.input_blocks, skips = make.input_blocks()
        self.middle_block = make.middle_block()
        self.output_blocks = make.output_blocks(skips)
        channels = config.model_channels
        self.out = nn.Sequential(
            operations.GroupNorm(32, channels, **placed),
            nn.SiLU(),
            zero_module(operations.Conv2d(channels, config.out_channels, 3, padding=1, **placed)),
        )

    @property
    def current_step(self) -> float:
        """How far sampling is at the latest forward: 0 at the first step, 1 at the last.

        By "progress" of its transformer options, else 0 at timestep 999 and 1 at timestep 0.
        """
        told = self._told
        if not isinstance(told, float):  # read only when asked for, since on a GPU reading waits
            step = 1.0 - told / 999.0 if isinstance(told, Tensor) else told()
            self._told = told = float(step.flatten()[0])
        return told

    def clear_cache(self) -> None:
        """Forget the keys and values kept for texts."""
        self._contexts.clear()

    def text_bytes(self, texts: Sequence[Tensor], batch: int, dtype: torch.dtype) -> int:
        """Bytes that keeping texts adds to what is kept, see ContextCache.tokens_to_come."""
        return self._contexts.tokens_to_come(texts, batch) * bytes_per_token(self, dtype)

    def embed(
        self,
        timesteps: Tensor,
        y: Tensor | None,
        dtype: torch.dtype,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Time and size conditions, (B,) and (B, adm_in_channels) → (B, time_embed_dim)."""
        time = timestep_embedding(timesteps, self.model_channels).to(dtype)
        if guidance is None:
            emb = self.time_embed(time)
        else:
            emb = self.time_embed(time, guidance.to(dtype))
        if self.num_classes is None:
            return emb
        if y is None or y.shape[0] != timesteps.shape[0]:
            raise ValueError("This network needs y, one row of size conditions for each sample.")
        if self.num_classes == "sequential":
            return emb + self.label_emb(y.to(dtype))
        return emb + self.label_emb(y.long()).to(dtype)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Mapping[str, list[Tensor | None]] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        *,
        guidance: Tensor | None = None,
        num_video_frames: int | None = None,
        image_only_indicator: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The network's prediction, (B, out_channels, H, W).

        x: (B, in_channels, H, W), scaled. timesteps: (B,). context: (B, tokens, context_dim).
        y: (B, adm_in_channels), or (B,) levels of noise. control: what a ControlNet gave for
        "input", "middle" and "output", the last of each list for the next block.
        transformer_options: patches (see attention.py); "interrupt", which is called before each
        block and may raise; "progress", which gives what `current_step` says. guidance:
        (B, guidance_dim), for a network that is told its scale.
        num_video_frames, image_only_indicator: how a network for video splits the batch, see
        VideoFrames; without them it is one video.
        Raises ValueError if y is needed and missing.
        """
        if timesteps is None:
            raise ValueError("The network needs timesteps, one for each sample.")
        options = transformer_options or {}
        patches = options.get("patches") or {}
        interrupt: Callable[[], None] = options.get("interrupt") or _go_on
        hooked: dict[str, Any] | None = None
        if patches or options.get("patches_replace"):
            hooked = {**options, "original_shape": list(x.shape), "transformer_index": 0}
        self._told = options.get("progress") or timesteps.detach()
        control = {k: list(v) for k, v in control.items()} if control else None
        emb = self.embed(timesteps, y, x.dtype, guidance)
        kv = self._contexts.store_for(context)
        video = None
        if self.config.video:
            frames = num_video_frames, image_only_indicator
            video = VideoFrames.of(len(x), *frames, timestep_embedding)

        h = self._in_memory_format(x)
        skips = []
        for number, block in enumerate(self.input_blocks):
            interrupt()
            _locate(hooked, "input", number)
            h = apply_control(block(h, emb, context, hooked, None, kv, video), control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, hooked)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, hooked)
        interrupt()
        _locate(hooked, "middle", 0)
        if self.middle_block is not None:
            h = self.middle_block(h, emb, context, hooked, None, kv, video)
        h = apply_control(h, control, "middle")
        for number, block in enumerate(self.output_blocks):
            interrupt()
            _locate(hooked, "output", number)
            skip = apply_control(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, hooked)
            h = torch.cat([h, skip], dim=1)
            size = tuple(skips[-1].shape[-2:]) if skips else None
            h = block(h, emb, context, hooked, size, kv, video)
        norm, _, conv = self.out
        return conv(F.silu(norm(h), inplace=not torch.is_grad_enabled()))

    def _in_memory_format(self, x: Tensor) -> Tensor:
        weight = self.input_blocks[0][0].weight
        if weight.is_contiguous(memory_format=torch.channels_last):
            return x.contiguous(memory_format=torch.channels_last)
        return x


def _go_on() -> None:
    """The interrupt check of a caller that never interrupts."""


def _locate(options: dict[str, Any] | None, name: str, number: int) -> None:
    if options is not None:
        options["block"] = (name, number)
