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


def lycoris_file(layers: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a file with LoHa, LoKr, LoCon and a whole difference in turn, what it adds to each layer).

    Deltas by formula in float64, given in float32.
    """
    file: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    g = torch.Generator().manual_seed(11)
    for number, (name, weight) in enumerate(layers.items()):
        module, (out, *inner) = f"lora_unet_{name.replace('.', '_')}", weight.shape
        into = weight[0].numel()

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g) * 0.15

        form = ("LoHa", "LoKr", "LoCon", "full")[number % 4]
        if form == "LoHa":
            pairs = [(draw(out, 2), draw(2, into)) for _ in range(2)]
            parts = {"hada_w1_a": pairs[0][0], "hada_w1_b": pairs[0][1]}
            parts |= {"hada_w2_a": pairs[1][0], "hada_w2_b": pairs[1][1]}
            one, two = (a.double() @ b.double() for a, b in pairs)
            delta = one * two
        elif form == "LoKr":
            small, large = draw(2, 2), draw(out // 2, inner[0] // 2, *inner[1:])
            parts = {"lokr_w1": small, "lokr_w2": large}
            kernel = large.double().reshape(out // 2, inner[0] // 2, -1)
            delta = torch.stack([torch.kron(small.double(), k) for k in kernel.unbind(-1)], dim=-1)
        elif form == "LoCon":
            up, down = draw(out, 2, *(1 for _ in inner[1:])), draw(2, *inner)
            parts = {"lora_up.weight": up, "lora_down.weight": down}
            delta = up.flatten(1).double() @ down.flatten(1).double()
        else:
            parts = {"diff": draw(*weight.shape) * 0.2}
            delta = parts["diff"].double()
        file |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        added[name] = delta.reshape(weight.shape).float()
    return file, added


def with_added(state: dict[str, Tensor], added: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with `added` (by layer) on its weights."""
    return {
        name: weight + added[layer] if (layer := name.removesuffix(".weight")) in added else weight
        for name, weight in state.items()
    }


def without(file: dict[str, Tensor], words: Iterable[str]) -> dict[str, Tensor]:
    """The entries whose names hold none of the words."""
    return {name: t for name, t in file.items() if not any(word in name for word in words)}
