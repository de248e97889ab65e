"""The other side: diffusers' modules for the same weights.

Weights are drawn once in the checkpoint layout. Ours come through our own loader, theirs through
their own converter, so that a wrong key on either side shows as an error before anything is timed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.support.tiny_checkpoint import (
    UNET_PREFIX,
    VAE_PREFIX,
    FamilySizes,
    random_weights,
)


def draw_weights(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, prefix: str = ""
) -> dict[str, Tensor]:
    """Random weights of `dtype`, one tensor after the other: no float32 copy of a whole model."""
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        weights[prefix + name] = random_weights({name: shape}, seed=number)[name].to(dtype)
    return weights


def heads(sizes: FamilySizes) -> list[int]:
    """Attention heads of each level; the family's heads are 64 wide."""
    return [max(1, sizes.model_channels * m // 64) for m in sizes.channel_mult]


def unet(sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype) -> torch.nn.Module:
    """UNet2DConditionModel with `weights` (LDM names without prefix), sharing their memory."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    plain, cross = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    config = {
        "in_channels": sizes.latent_channels,
        "out_channels": sizes.latent_channels,
        "down_block_types": tuple(plain[bool(d)] for d in sizes.depths),
        "up_block_types": tuple(cross[bool(d)] for d in reversed(sizes.depths)),
        "block_out_channels": tuple(sizes.model_channels * m for m in sizes.channel_mult),
        "layers_per_block": sizes.res_blocks,
        "transformer_layers_per_block": [max(1, d) for d in sizes.depths],
        "attention_head_dim": heads(sizes),
        "cross_attention_dim": sizes.context,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": sizes.clip_g_width + 1536,
        "upcast_attention": False,
    }
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    converted = convert_ldm_unet_checkpoint(
        {UNET_PREFIX + name: weight for name, weight in weights.items()}, dict(model.config)
    )
    model.load_state_dict({k: v.to(dtype) for k, v in converted.items()}, assign=True)
    return model.eval().requires_grad_(False)


def vae(sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype) -> torch.nn.Module:
    """AutoencoderKL with `weights` (LDM names without prefix), sharing their memory."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = len(sizes.vae_mult)
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(sizes.vae_channels * m for m in sizes.vae_mult),
            layers_per_block=sizes.vae_res_blocks,
            latent_channels=sizes.latent_channels,
            scaling_factor=0.13025,
        )
    converted = convert_ldm_vae_checkpoint(
        {VAE_PREFIX + name: weight for name, weight in weights.items()}, dict(model.config)
    )
    model.load_state_dict({k: v.to(dtype) for k, v in converted.items()}, assign=True)
    return model.eval().requires_grad_(False)


def scheduler():  # noqa: ANN201 - imported within
    """SDXL's own: Euler over the scaled-linear betas."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )
