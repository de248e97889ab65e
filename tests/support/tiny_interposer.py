"""Weights of a latent interposer under the names of the released files."""

import torch
from torch import Tensor


def interposer_weights(width: int, blocks: int, seed: int = 4) -> dict[str, Tensor]:
    """Random ones, with norms off 1 and 0."""
    draw = torch.Generator().manual_seed(seed)

    def conv(name: str, c_in: int, c_out: int) -> dict[str, Tensor]:
        weight = torch.randn(c_out, c_in, 3, 3, generator=draw) / (9 * c_in) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(c_out, generator=draw) / 4}

    def norm(name: str) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 1 + torch.randn(width, generator=draw) / 8,
            f"{name}.bias": torch.randn(width, generator=draw) / 8,
            f"{name}.running_mean": torch.randn(width, generator=draw),
            f"{name}.running_var": 0.5 + torch.rand(width, generator=draw),
            f"{name}.num_batches_tracked": torch.tensor(50_000),
        }

    found = conv("head.short", 4, width) | conv("tail", width, 4)
    for place, c_in in enumerate((4, width, width)):
        found |= conv(f"head.long.{2 * place}", c_in, width)
    for block in range(1, blocks + 1):
        found |= norm(f"core.{block}.norm")
        for place in range(3):
            found |= conv(f"core.{block}.long.{2 * place}", width, width)
    return found | norm(f"core.{blocks + 1}")
