"""The KL autoencoder of latent diffusion: pictures to latents and back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.model import Decoder, Encoder, Interrupt
from ldm_patched.ldm.modules.diffusionmodules.video_blocks import VideoDecoder
from ldm_patched.modules import ops

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The dimensions of an autoencoder."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    quantised: tuple[bool, bool] = (True, True)
    """Whether there is a 1×1 convolution after the encoder, and before the decoder."""
    video: bool = False
    """The decoder takes a batch as the frames of one video."""

    @property
    def downscale(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.ch_mult) - 1)


def detect_autoencoder_config(shapes: Shapes) -> AutoencoderConfig | None:
    """The dimensions that these names (without prefix) and shapes have; None if not an autoencoder
    of this plan."""
    into = shapes.get("encoder.conv_in.weight")
    first = shapes.get("decoder.conv_in.weight")
    post = shapes.get("post_quant_conv.weight")
    quant = "quant_conv.weight" in shapes
    video = any("time_stack" in name for name in shapes)
    if not (into and first and (post or video)) or len(into) != 4 or len(first) != 4:
        return None
    ch, widths = into[0], []
    while tail := shapes.get(f"decoder.up.{len(widths)}.block.0.conv2.weight"):
        widths.append(tail[0])
    if not widths or not ch or any(width % ch for width in widths):
        return None
    pattern = re.compile(r"encoder\.down\.0\.block\.(\d+)\.")
    blocks = {match.group(1) for name in shapes if (match := pattern.match(name))}
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=len(blocks),
        z_channels=first[1],
        embed_dim=post[1] if post else first[1],
        quantised=(quant or not video, post is not None),
        video=video,
    )


class AutoencoderKL(nn.Module):
    """Encoder, decoder and the two 1×1 convolutions around the latents, (B, C, H, W) throughout."""

    def __init__(
        self, config: AutoencoderConfig, *, operations: Any = ops.disable_weight_init
    ) -> None:
        super().__init__()
        self.config = config
        sizes = {
            "ch": config.ch,
            "ch_mult": config.ch_mult,
            "num_res_blocks": config.num_res_blocks,
            "z_channels": config.z_channels,
            "operations": operations,
        }
        self.encoder = Encoder(**sizes)
        self.decoder = VideoDecoder(**sizes) if config.video else Decoder(**sizes)
        moments, latents = 2 * config.z_channels, 2 * config.embed_dim
        after, before = config.quantised
        self.quant_conv = operations.Conv2d(moments, latents, 1) if after else nn.Identity()
        self.post_quant_conv = nn.Identity()
        if before:
            self.post_quant_conv = operations.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, x: Tensor, interrupt: Interrupt = None) -> Tensor:
        """(B, 3, H, W) in -1..1 → the posterior's mean, (B, embed_dim, H/8, W/8), unscaled."""
        moments = self.quant_conv(self.encoder(x, interrupt))
        return moments[:, : self.config.embed_dim]

    def decode(self, z: Tensor, interrupt: Interrupt = None) -> Tensor:
        """(B, embed_dim, h, w) unscaled → (B, 3, 8h, 8w), about -1..1."""
        return self.decoder(self.post_quant_conv(z), interrupt)
