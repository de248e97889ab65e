"""Adapter files as trainers write them, for models of the test's own, with random weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RANK = 3


def low_rank(weight: Tensor, seed: int, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """(up (out, r, …), down (r, in, …)) that fit a weight of a linear layer or a convolution."""
    g = torch.Generator().manual_seed(seed)
    out, *inner = weight.shape
    ones = (1,) * (weight.ndim - 2)
    up = torch.randn((out, RANK, *ones), generator=g) * spread
    return up, torch.randn((RANK, *inner), generator=g) * spread


def layers_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights of the linear layers and convolutions by the layer's name."""
    return {
        name: layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def deltas(layers: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """What the file made from these layers adds to each weight, float32."""
    found = {}
    for seed, (name, weight) in enumerate(layers.items()):
        up, down = low_rank(weight, seed)
        found[name] = (scale * (up.flatten(1) @ down.flatten(1))).reshape(weight.shape)
    return found


def kohya_file(layers: dict[str, Tensor], prefix: str, alpha: float) -> dict[str, Tensor]:
    """`lora_unet_…` and the like, with an alpha for each module."""
    found = {}
    for seed, (name, weight) in enumerate(layers.items()):
        up, down = low_rank(weight, seed)
        module = prefix + name.replace(".", "_")
        found[f"{module}.lora_up.weight"] = up
        found[f"{module}.lora_down.weight"] = down
        found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


def peft_file(layers: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`unet.….lora_A.weight` and the like, as diffusers writes it; no alpha."""
    found = {}
    for seed, (name, weight) in enumerate(layers.items()):
        up, down = low_rank(weight, seed)
        found[f"{prefix}{name}.lora_B.weight"] = up
        found[f"{prefix}{name}.lora_A.weight"] = down
    return found


def with_added(state: dict[str, Tensor], added: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with `added` (by layer) on its weights."""
    return {
        name: weight + added[layer] if (layer := name.removesuffix(".weight")) in added else weight
        for name, weight in state.items()
    }


def without(file: dict[str, Tensor], words: Iterable[str]) -> dict[str, Tensor]:
    """The entries whose names hold none of the words."""
    return {name: t for name, t in file.items() if not any(word in name for word in words)}
