"""Small random image encoders and IP-Adapters in the layouts that released files have.

Names and shapes come from the rules below, never from the program.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SDXL_WIDTHS = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10
SD1_WIDTHS = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]


def plus_shapes(dim: int, depth: int, tokens: int, features: int, text: int) -> Shapes:
    """The resampler of a "plus" adapter."""
    shapes: Shapes = {"latents": (1, tokens, dim)}
    shapes |= {"proj_in.weight": (dim, features), "proj_in.bias": (dim,)}
    shapes |= {"proj_out.weight": (text, dim), "proj_out.bias": (text,)}
    shapes |= {"norm_out.weight": (text,), "norm_out.bias": (text,)}
    for n in range(depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{n}.{norm}.{kind}": (dim,) for kind in ("weight", "bias")}
        inner = 64 * max(1, dim // 64)
        shapes[f"layers.{n}.0.to_q.weight"] = (inner, dim)
        shapes[f"layers.{n}.0.to_kv.weight"] = (2 * inner, dim)
        shapes[f"layers.{n}.0.to_out.weight"] = (dim, inner)
        shapes[f"layers.{n}.1.1.weight"] = (4 * dim, dim)
        shapes[f"layers.{n}.1.3.weight"] = (dim, 4 * dim)
    return shapes


def plain_shapes(tokens: int, features: int, text: int) -> Shapes:
    """The projection of a plain adapter."""
    shapes: Shapes = {"proj.weight": (tokens * text, features), "proj.bias": (tokens * text,)}
    return shapes | {"norm.weight": (text,), "norm.bias": (text,)}


def layer_shapes(widths: Iterable[int], text: int) -> Shapes:
    """Keys and values; released files count the layers 1, 3, 5 …"""
    return {
        f"{2 * n + 1}.to_{kind}_ip.weight": (width, text)
        for n, width in enumerate(widths)
        for kind in "kv"
    }


def vision_shapes(width: int, layers: int, projection: int, size: int = 224) -> Shapes:
    """An image encoder with patches of 14 × 14."""
    root = "vision_model"
    shapes: Shapes = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{root}.embeddings.position_embedding.weight": ((size // 14) ** 2 + 1, width),
        "visual_projection.weight": (projection, width),
    }
    norms = [f"{root}.pre_layrnorm", f"{root}.post_layernorm"]
    linear = {}
    for n in range(layers):
        layer = f"{root}.encoder.layers.{n}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linear |= {f"{layer}.self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")}
        linear |= {f"{layer}.mlp.fc1": (4 * width, width), f"{layer}.mlp.fc2": (width, 4 * width)}
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def filled(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights near 1 / sqrt(fan in), norms near 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name == "latents" or len(shape) > 1:
            noise = noise / math.sqrt(math.prod(shape[1:]))
        else:
            noise = noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        weights[name] = noise.to(dtype)
    return weights


def write_vision(path: Path, width: int = 64, projection: int = 48, seed: int = 1) -> Path:
    """A small tower for pictures of 28 × 28 pixels."""
    save_file(filled(vision_shapes(width, 2, projection, size=28), seed), path)
    return path


def write_adapter(
    path: Path,
    widths: Iterable[int],
    text: int,
    *,
    plus: bool = True,
    features: int = 64,
    tokens: int = 4,
    seed: int = 2,
    nested: bool = False,
) -> Path:
    """An adapter for layers of these widths; nested: as torch.save wrote the first ones."""
    proj = plus_shapes(64, 2, tokens, features, text) if plus else None
    proj = proj or plain_shapes(tokens, features, text)
    parts = {
        "image_proj": filled(proj, seed),
        "ip_adapter": filled(layer_shapes(widths, text), seed + 1),
    }
    if nested:
        torch.save(parts, path)
    else:
        flat = {f"{part}.{k}": w for part, named in parts.items() for k, w in named.items()}
        save_file(flat, path)
    return path


def write_negative(path: Path, tokens: int = 4, text: int = 32, seed: int = 9) -> Path:
    """The tokens of no picture."""
    generator = torch.Generator().manual_seed(seed)
    save_file({"data": torch.randn(1, tokens, text, generator=generator)}, path)
    return path
