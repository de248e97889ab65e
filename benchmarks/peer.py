"""The other side: diffusers' modules for the same weights.

Weights are drawn once in the checkpoint layout. Ours come through our own loader, theirs through
their own converter, so that a wrong key on either side shows as an error before anything is timed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.support.tiny_checkpoint import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
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


def _empty_unet(sizes: FamilySizes) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

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
        return UNet2DConditionModel(**config)


def unet(sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype) -> torch.nn.Module:
    """UNet2DConditionModel with `weights` (LDM names without prefix), sharing their memory."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = _empty_unet(sizes)
    converted = convert_ldm_unet_checkpoint(
        {UNET_PREFIX + name: weight for name, weight in weights.items()}, dict(model.config)
    )
    model.load_state_dict({k: v.to(dtype) for k, v in converted.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _empty_vae(sizes: FamilySizes) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    levels = len(sizes.vae_mult)
    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(sizes.vae_channels * m for m in sizes.vae_mult),
            layers_per_block=sizes.vae_res_blocks,
            latent_channels=sizes.latent_channels,
            scaling_factor=0.13025,
        )


def vae(sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype) -> torch.nn.Module:
    """AutoencoderKL with `weights` (LDM names without prefix), sharing their memory."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = _empty_vae(sizes)
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


def _text_configs(sizes: FamilySizes):  # noqa: ANN202 - imported within
    """(CLIP ViT-L's config, OpenCLIP bigG's) at these sizes."""
    from tests.support.clip_oracle import library_config as config

    return (
        config(sizes.clip_l_width, sizes.clip_l_layers, "quick_gelu", sizes.clip_l_width),
        config(sizes.clip_g_width, sizes.clip_g_layers, "gelu", sizes.clip_g_width),
    )


def text_encoders(
    sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(CLIPTextModel, CLIPTextModelWithProjection) from a whole checkpoint's `weights`."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_open_clip_checkpoint,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    config_l, config_g = _text_configs(sizes)
    first, second = CLIPTextModel(config_l), CLIPTextModelWithProjection(config_g)
    own = {k: v for k, v in weights.items() if not k.endswith("position_ids")}
    from_l = convert_ldm_clip_checkpoint(
        own, remove_prefix=CLIP_L_PREFIX.removesuffix("text_model.")
    )
    from_g = convert_open_clip_checkpoint(second, own, prefix=CLIP_G_PREFIX)
    for model, converted in ((first, from_l), (second, from_g)):
        names = set(model.state_dict())
        if not names <= set(converted):  # transformers may write the names without this prefix
            converted = {k.removeprefix("text_model."): v for k, v in converted.items()}
        model.load_state_dict({k: v for k, v in converted.items() if k in names})
        model.to(dtype).eval().requires_grad_(False)
    return first, second


def pipeline(sizes: FamilySizes, weights: Mapping[str, Tensor], dtype: torch.dtype):  # noqa: ANN201
    """StableDiffusionXLPipeline of a whole checkpoint's `weights`, without tokenizers."""
    from diffusers import StableDiffusionXLPipeline

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    first, second = text_encoders(sizes, weights, dtype)
    pipe = StableDiffusionXLPipeline(
        vae=vae(sizes, under(VAE_PREFIX), dtype),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(sizes, under(UNET_PREFIX), dtype),
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_configs(folder: Path, sizes: FamilySizes) -> None:
    """The configuration files without which from_single_file would ask the network for them."""
    first, second = _text_configs(sizes)
    first.save_pretrained(folder / "text_encoder")
    second.save_pretrained(folder / "text_encoder_2")
    _empty_unet(sizes).save_config(folder / "unet")
    _empty_vae(sizes).save_config(folder / "vae")
    scheduler().save_config(folder / "scheduler")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": [None, None],
        "tokenizer_2": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index | parts), encoding="utf-8")


def from_single_file(path: Path, configs: Path, dtype: torch.dtype):  # noqa: ANN201
    """StableDiffusionXLPipeline as diffusers loads it from a checkpoint; see write_configs."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(configs), local_files_only=True, torch_dtype=dtype,
        tokenizer=None, tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encode(pipe, tokens: Mapping[str, list]) -> tuple[Tensor, Tensor]:  # noqa: ANN001
    """(hidden states, pooled) as the pipeline makes them, from chunks of (id, weight) pairs."""
    hidden = []
    for name, model in (("l", pipe.text_encoder), ("g", pipe.text_encoder_2)):
        ids = torch.tensor([[pair[0] for pair in chunk] for chunk in tokens[name]])
        out = model(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
    return torch.cat(hidden, dim=-1), out.text_embeds
