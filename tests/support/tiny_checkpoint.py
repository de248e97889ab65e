"""Small random checkpoints of each family, in the layout that real files have.

Names and shapes come from the rules below, never from the engine, so that a test which loads such
a file tests the loader. `SDXL` gives the real model's 2,515 names and shapes; `TINY` the same
family at a tenth of its width, `TINY_SD1`, `TINY_SD2` and `TINY_REFINER` the others'. Weights are
drawn so that every network stays near unit variance and pictures come out finite and non-constant
in bfloat16, float16 and float32.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_L_PREFIX = "conditioner.embedders.0.transformer.text_model."
CLIP_G_PREFIX = "conditioner.embedders.1.model."
TEXT_PREFIXES = {
    "sdxl": (CLIP_L_PREFIX, CLIP_G_PREFIX),
    "refiner": ("", "conditioner.embedders.0.model."),
    "sd1": ("cond_stage_model.transformer.text_model.", ""),
    "sd2": ("", "cond_stage_model.model."),
}
VOCABULARY = 49408
CONTEXT_LENGTH = 77
SIZE_EMBEDDING = 256  # of each number: height, width, crop top and left, target height and width


@dataclass(frozen=True, kw_only=True)
class FamilySizes:
    """The free dimensions of a model; everything else follows from them.

    family: "sdxl", "refiner", "sd1" or "sd2". The text encoder of "sd1" is clip_l; the one of
    "sd2" and of the refiner has clip_g's fields.
    """

    family: str = "sdxl"

    model_channels: int
    channel_mult: tuple[int, ...]
    depths: tuple[int, ...]  # transformer blocks per level
    middle_depth: int | None = None  # the last level's if it is None
    res_blocks: int
    clip_l_width: int
    clip_l_layers: int
    clip_g_width: int
    clip_g_layers: int
    vae_channels: int
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_res_blocks: int = 2
    latent_channels: int = 4
    in_channels: int = 4

    @property
    def context(self) -> int:
        """Width of the text conditioning: all encoders' hidden states side by side."""
        return self.clip_l_width + self.clip_g_width

    @property
    def sizes_in_y(self) -> int:
        """How many numbers the network is told besides the pooled text."""
        return {"sdxl": 6, "refiner": 5}.get(self.family, 0)

    @property
    def depth_of_middle(self) -> int:
        return self.depths[-1] if self.middle_depth is None else self.middle_depth


SDXL = FamilySizes(
    model_channels=320,
    channel_mult=(1, 2, 4),
    depths=(0, 2, 10),
    res_blocks=2,
    clip_l_width=768,
    clip_l_layers=12,
    clip_g_width=1280,
    clip_g_layers=32,
    vae_channels=128,
)
TINY = FamilySizes(
    model_channels=32,
    channel_mult=(1, 2, 4),
    depths=(0, 1, 2),
    res_blocks=1,
    clip_l_width=64,
    clip_l_layers=2,
    clip_g_width=128,
    clip_g_layers=3,
    vae_channels=32,
    vae_res_blocks=1,
)
TINY_REFINER = replace(
    TINY,
    family="refiner",
    channel_mult=(1, 2, 4, 4),
    depths=(0, 2, 2, 0),
    middle_depth=2,
    clip_l_width=0,
)
TINY_SD1 = replace(
    TINY,
    family="sd1",
    channel_mult=(1, 2, 4, 4),
    depths=(1, 1, 1, 0),
    middle_depth=1,
    clip_g_width=0,
)
TINY_SD2 = replace(TINY_SD1, family="sd2", model_channels=64, clip_l_width=0, clip_g_width=128)
SD15 = replace(
    TINY_SD1, model_channels=320, res_blocks=2, clip_l_width=768, clip_l_layers=12,
    vae_channels=128, vae_res_blocks=2,
)  # fmt: skip
SD21 = replace(
    SD15, family="sd2", clip_l_width=0, clip_g_width=1024, clip_g_layers=24
)  # fmt: skip
REFINER = replace(
    SD21, family="refiner", model_channels=384, depths=(0, 4, 4, 0), middle_depth=4,
    clip_g_width=1280, clip_g_layers=32,
)  # fmt: skip


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """weight (and bias) of a linear or convolution layer (out, in, ...) or of a norm (width,)."""
    shapes: Shapes = {f"{name}.weight": shape}
    if bias:
        shapes[f"{name}.bias"] = (shape[0],)
    return shapes


# --- UNet -------------------------------------------------------------------------------------


def _unet_res_block(name: str, c_in: int, c_out: int, emb: int) -> Shapes:
    shapes = _layer(f"{name}.in_layers.0", c_in)
    shapes |= _layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
    shapes |= _layer(f"{name}.emb_layers.1", c_out, emb)
    shapes |= _layer(f"{name}.out_layers.0", c_out)
    shapes |= _layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
    if c_in != c_out:
        shapes |= _layer(f"{name}.skip_connection", c_out, c_in, 1, 1)
    return shapes


def _unet_transformer(name: str, width: int, depth: int, sizes: FamilySizes) -> Shapes:
    context = sizes.context
    projection = (width, width, 1, 1) if sizes.family == "sd1" else (width, width)
    shapes = _layer(f"{name}.norm", width) | _layer(f"{name}.proj_in", *projection)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _layer(f"{block}.{norm}", width)
        for attention, source in (("attn1", width), ("attn2", context)):
            shapes |= _layer(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= _layer(f"{block}.{attention}.to_k", width, source, bias=False)
            shapes |= _layer(f"{block}.{attention}.to_v", width, source, bias=False)
            shapes |= _layer(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _layer(f"{block}.ff.net.0.proj", width * 8, width)  # GEGLU: value and gate
        shapes |= _layer(f"{block}.ff.net.2", width, width * 4)
    return shapes | _layer(f"{name}.proj_out", *projection)


def unet_shapes(sizes: FamilySizes) -> Shapes:
    """Names and shapes of the UNet, without prefix."""
    base, emb = sizes.model_channels, sizes.model_channels * 4
    shapes = _layer("time_embed.0", emb, base) | _layer("time_embed.2", emb, emb)
    if sizes.sizes_in_y:
        told = sizes.clip_g_width + sizes.sizes_in_y * SIZE_EMBEDDING
        shapes |= _layer("label_emb.0.0", emb, told) | _layer("label_emb.0.2", emb, emb)
    shapes |= _layer("input_blocks.0.0", base, sizes.in_channels, 3, 3)
    skips, width, number = [base], base, 1
    last = len(sizes.channel_mult) - 1
    for level, (mult, depth) in enumerate(zip(sizes.channel_mult, sizes.depths, strict=True)):
        for _ in range(sizes.res_blocks):
            name = f"input_blocks.{number}"
            shapes |= _unet_res_block(f"{name}.0", width, base * mult, emb)
            width = base * mult
            if depth:
                shapes |= _unet_transformer(f"{name}.1", width, depth, sizes)
            skips.append(width)
            number += 1
        if level != last:
            shapes |= _layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    shapes |= _unet_res_block("middle_block.0", width, width, emb)
    shapes |= _unet_transformer("middle_block.1", width, sizes.depth_of_middle, sizes)
    shapes |= _unet_res_block("middle_block.2", width, width, emb)
    number = 0
    for level in range(last, -1, -1):
        depth = sizes.depths[level]
        for index in range(sizes.res_blocks + 1):
            name = f"output_blocks.{number}"
            out = base * sizes.channel_mult[level]
            shapes |= _unet_res_block(f"{name}.0", width + skips.pop(), out, emb)
            width = out
            if depth:
                shapes |= _unet_transformer(f"{name}.1", width, depth, sizes)
            if level and index == sizes.res_blocks:
                shapes |= _layer(f"{name}.{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1
    return shapes | _layer("out.0", base) | _layer("out.2", sizes.latent_channels, base, 3, 3)


# --- VAE --------------------------------------------------------------------------------------


def _vae_res_block(name: str, c_in: int, c_out: int) -> Shapes:
    shapes = _layer(f"{name}.norm1", c_in) | _layer(f"{name}.conv1", c_out, c_in, 3, 3)
    shapes |= _layer(f"{name}.norm2", c_out) | _layer(f"{name}.conv2", c_out, c_out, 3, 3)
    if c_in != c_out:
        shapes |= _layer(f"{name}.nin_shortcut", c_out, c_in, 1, 1)
    return shapes


def _vae_middle(name: str, width: int) -> Shapes:
    shapes = _vae_res_block(f"{name}.block_1", width, width) | _layer(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _layer(f"{name}.attn_1.{part}", width, width, 1, 1)
    return shapes | _vae_res_block(f"{name}.block_2", width, width)


def vae_shapes(sizes: FamilySizes) -> Shapes:
    """Names and shapes of the VAE, without prefix."""
    base, latent = sizes.vae_channels, sizes.latent_channels
    last = len(sizes.vae_mult) - 1
    shapes = _layer("encoder.conv_in", base, 3, 3, 3)
    width = base
    for level, mult in enumerate(sizes.vae_mult):
        for index in range(sizes.vae_res_blocks):
            shapes |= _vae_res_block(f"encoder.down.{level}.block.{index}", width, base * mult)
            width = base * mult
        if level != last:
            shapes |= _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= _vae_middle("encoder.mid", width)
    shapes |= _layer("encoder.norm_out", width)
    shapes |= _layer("encoder.conv_out", 2 * latent, width, 3, 3)

    shapes |= _layer("decoder.conv_in", width, latent, 3, 3) | _vae_middle("decoder.mid", width)
    for level in range(last, -1, -1):
        for index in range(sizes.vae_res_blocks + 1):
            out = base * sizes.vae_mult[level]
            shapes |= _vae_res_block(f"decoder.up.{level}.block.{index}", width, out)
            width = out
        if level:
            shapes |= _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= _layer("decoder.norm_out", base) | _layer("decoder.conv_out", 3, base, 3, 3)
    shapes |= _layer("quant_conv", 2 * latent, 2 * latent, 1, 1)
    return shapes | _layer("post_quant_conv", latent, latent, 1, 1)


# --- Text encoders ----------------------------------------------------------------------------


def clip_l_shapes(width: int, layers: int) -> Shapes:
    """Names and shapes of a text encoder in the transformers layout, without prefix."""
    shapes: Shapes = {
        "embeddings.position_ids": (1, CONTEXT_LENGTH),
        "embeddings.token_embedding.weight": (VOCABULARY, width),
        "embeddings.position_embedding.weight": (CONTEXT_LENGTH, width),
    }
    for index in range(layers):
        block = f"encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{block}.self_attn.{part}", width, width)
        shapes |= _layer(f"{block}.layer_norm1", width) | _layer(f"{block}.layer_norm2", width)
        shapes |= _layer(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= _layer(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | _layer("final_layer_norm", width)


def clip_g_shapes(width: int, layers: int) -> Shapes:
    """Names and shapes of a text encoder in the OpenCLIP layout, without prefix."""
    shapes: Shapes = {
        "positional_embedding": (CONTEXT_LENGTH, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (VOCABULARY, width),
    }
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width)}
        shapes |= {f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _layer(f"{block}.attn.out_proj", width, width)
        shapes |= _layer(f"{block}.ln_1", width) | _layer(f"{block}.ln_2", width)
        shapes |= _layer(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= _layer(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes | _layer("ln_final", width)


def checkpoint_shapes(sizes: FamilySizes) -> Shapes:
    """Every name and shape of a checkpoint file of this family."""
    clip_l, clip_g = TEXT_PREFIXES[sizes.family]
    parts = [(UNET_PREFIX, unet_shapes(sizes)), (VAE_PREFIX, vae_shapes(sizes))]
    if clip_l:
        parts.append((clip_l, clip_l_shapes(sizes.clip_l_width, sizes.clip_l_layers)))
    if clip_g:
        parts.append((clip_g, clip_g_shapes(sizes.clip_g_width, sizes.clip_g_layers)))
    return {prefix + name: shape for prefix, shapes in parts for name, shape in shapes.items()}


# --- Weights ----------------------------------------------------------------------------------


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One float32 tensor: norms 1, biases 0, the others scaled by their fan-in."""
    if name.endswith("logit_scale"):
        return torch.tensor(4.6052)
    if "embedding" in name:
        return torch.randn(shape, generator=generator) * 0.1
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    fan_in = math.prod(shape[1:])
    scale = 1.0
    if name.endswith(("out_layers.3.weight", "conv2.weight", "proj_out.weight", "fc2.weight")):
        scale = 0.5  # the end of a residual branch: the sum stays near unit variance
    if name.endswith("decoder.conv_out.weight"):
        scale = 0.6  # pixels of about ±0.4 around mid grey
    return torch.randn(shape, generator=generator) * (scale / math.sqrt(fan_in))


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tame float32 weights for these names and shapes; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.arange(CONTEXT_LENGTH)[None]
        if name.endswith("position_ids")
        else _draw(name, shape, generator)
        for name, shape in shapes.items()
    }


def jittered_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """As `random_weights`, with norms and biases off 1 and 0, so that no mix-up of them hides."""
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 1
        else tensor
        for name, tensor in random_weights(shapes, seed).items()
    }


def _cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def tiny_sdxl_state_dict(
    seed: int = 0, dtype: torch.dtype = torch.float16, sizes: FamilySizes = TINY
) -> dict[str, Tensor]:
    """A whole checkpoint, of the SDXL family about 40 MB (in a 16-bit `dtype`), in memory."""
    return {name: weight.clone() for name, weight in _checkpoint(seed, dtype, sizes).items()}


@lru_cache(maxsize=2)
def _checkpoint(seed: int, dtype: torch.dtype, sizes: FamilySizes) -> dict[str, Tensor]:
    """Drawing the vocabulary takes longer than all else that most tests do with a checkpoint."""
    return dict(_cast(random_weights(checkpoint_shapes(sizes), seed), dtype))


def write_tiny_sdxl(
    path: str | Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, object] | None = None,
    sizes: FamilySizes = TINY,
) -> Path:
    """Write `tiny_sdxl_state_dict` as safetensors and return `path`.

    metadata: values that are not strings are written as JSON, as the `easel.*` entries are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    strings = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }
    save_file(tiny_sdxl_state_dict(seed, dtype, sizes), str(path), metadata=strings or None)
    return path


def write_zeros(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A float16 safetensors file of zeros: sparse, so that 7 GB take no room on most disks."""
    header, position = {}, 0
    for name, shape in shapes.items():
        kind, size = ("I64", 8) if name.endswith("position_ids") else ("F16", 2)
        end = position + math.prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path = Path(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)
    return path
