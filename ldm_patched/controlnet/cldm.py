"""ControlNet: the encoder of a UNet that also sees a picture (Zhang et al., arXiv:2302.05543).

What it gives is added to the skips and to the middle of the UNet that paints. Parameter names are
those of the latent diffusion code base.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.ldm.modules.diffusionmodules.context_cache import ContextCache, bytes_per_token
from ldm_patched.ldm.modules.diffusionmodules.unet_blocks import (
    BlockMaker,
    TimestepEmbedSequential,
)
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.ldm.modules.diffusionmodules.util import zero_module
from ldm_patched.modules import ops

HINT_CHANNELS = (16, 16, 32, 32, 96, 96, 256)
"""Widths of the layers that take the picture down to an eighth; every other one halves it."""


class ControlNet(nn.Module):
    """Latents, timesteps, text and a picture to one addition for each skip, and the middle's."""

    def __init__(
        self,
        config: UNetConfig,
        hint_channels: int = 3,
        *,
        use_checkpoint: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """config: of the UNet; its way up is not looked at. hint_channels: of the picture."""
        super().__init__()
        self.config = config
        self._contexts = ContextCache()
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        make = BlockMaker(config, use_checkpoint, operations, placed)
        width = config.time_embed_dim

        def embedder(features: int) -> nn.Sequential:
            first = operations.Linear(features, width, **placed)
            return nn.Sequential(first, nn.SiLU(), operations.Linear(width, width, **placed))

        def zero_conv(channels: int) -> TimestepEmbedSequential:
            conv = operations.Conv2d(channels, channels, 1, **placed)
            return TimestepEmbedSequential(zero_module(conv))

        self.time_embed = embedder(config.model_channels)
        if config.num_classes == "sequential":
            self.label_emb = nn.Sequential(embedder(config.adm_in_channels))
        self.input_blocks, skips = make.input_blocks()
        self.zero_convs = nn.ModuleList(zero_conv(channels) for channels in skips)
        self.input_hint_block = self._hint_block(hint_channels, operations, placed)
        self.middle_block = make.middle_block()
        self.middle_block_out = zero_conv(skips[-1])

    def _hint_block(
        self, hint_channels: int, operations: Any, placed: dict[str, Any]
    ) -> TimestepEmbedSequential:
        layers: list[nn.Module] = []
        channels = hint_channels
        for index, out in enumerate(HINT_CHANNELS):
            stride = 2 if index and index % 2 == 0 else 1
            conv = operations.Conv2d(channels, out, 3, stride=stride, padding=1, **placed)
            layers += [conv, nn.SiLU()]
            channels = out
        last = operations.Conv2d(channels, self.config.model_channels, 3, padding=1, **placed)
        return TimestepEmbedSequential(*layers, zero_module(last))

    def clear_cache(self) -> None:
        """Forget the keys and values kept for texts."""
        self._contexts.clear()

    def text_bytes(self, texts: Sequence[Tensor], batch: int, dtype: torch.dtype) -> int:
        """Bytes that keeping texts adds to what is kept, see ContextCache.tokens_to_come."""
        return self._contexts.tokens_to_come(texts, batch) * bytes_per_token(self, dtype)

    def embed_hint(self, hint: Tensor) -> Tensor:
        """The picture (B, hint_channels, 8·H, 8·W) in 0..1 → (B, model_channels, H, W).

        Nothing in it depends on the step, so that a run needs it once.
        """
        h = hint
        for layer in self.input_hint_block:
            h = layer(h)
        return h

    def forward(
        self,
        x: Tensor,
        guided_hint: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> list[Tensor]:
        """One tensor for each input block of the UNet, in their order, and the middle's last.

        x: (B, in_channels, H, W), scaled. guided_hint: what embed_hint gave, for 1 or B samples.
        timesteps: (B,). context: (B, tokens, context_dim). y: (B, adm_in_channels).
        interrupt: called before each block; may raise.
        Raises ValueError if y is needed and missing.
        """
        # Through the module, so that the precision patch's assignment reaches it.
        sinusoids = openaimodel.timestep_embedding(timesteps, self.config.model_channels)
        emb = self.time_embed(sinusoids.to(x.dtype))
        if self.config.num_classes is not None:
            if y is None:
                raise ValueError("This ControlNet needs y, a row of size conditions a sample.")
            emb = emb + self.label_emb(y.to(x.dtype))
        kv = self._contexts.store_for(context)
        outputs: list[Tensor] = []
        h = x
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            if interrupt is not None:
                interrupt()
            h = block(h, emb, context, None, None, kv)
            if not outputs:
                h = h + guided_hint
            outputs.append(zero_conv(h, emb))
        if interrupt is not None:
            interrupt()
        if self.middle_block is not None:
            h = self.middle_block(h, emb, context, None, None, kv)
        outputs.append(self.middle_block_out(h, emb))
        return outputs
