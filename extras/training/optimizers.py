"""What changes the weights at each step: AdamW, or Muon for the matrices inside a network.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") makes the step
of a matrix orthogonal. Its steps are as long here as AdamW's (Liu et al. 2025, "Muon is scalable
for LLM training", section 2.2), so one learning rate serves both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from extras.training import checkpoints

OPTIMIZERS = ("adamw", "muon")
_SMALLEST_SIDE = 32
"""Fewer channels are those of pictures or latents, or a low rank: AdamW's."""


class Optimizer:
    """Both of PyTorch, as one."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        *,
        kind: str = "adamw",
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """named: what is trained. kind: one of OPTIMIZERS; weights that are no matrices, and
        embeddings, are AdamW's with either. Raises ValueError for another kind."""
        if kind not in OPTIMIZERS:
            raise ValueError(f"Unknown optimiser {kind!r}; known are {', '.join(OPTIMIZERS)}.")
        self.named = named
        self._matrices = {
            n: _matrix(p) for n, p in named.items() if kind == "muon" and _inner(n, p)
        }
        rest = {n: p for n, p in named.items() if n not in self._matrices}
        decayed = [p for n, p in rest.items() if p.ndim > 1 and "embedding" not in n]
        plain = [p for n, p in rest.items() if p.ndim <= 1 or "embedding" in n]
        groups = [{"params": decayed, "weight_decay": weight_decay},
                  {"params": plain, "weight_decay": 0.0}]  # fmt: skip
        self._parts: list[tuple[torch.optim.Optimizer, Mapping[str, Tensor]]] = []
        if rest:
            adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)
            self._parts.append((adamw, rest))
        if self._matrices:
            muon = torch.optim.Muon(
                list(self._matrices.values()),
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, self._matrices))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both; "lr" is read at each step."""
        return [group for optimizer, _ in self._parts for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    def step(self) -> None:
        """Change the weights by their gradients."""
        for name, matrix in self._matrices.items():
            grad = self.named[name].grad
            matrix.grad = None if grad is None else _matrix_like(grad, self.named[name])
        for optimizer, _ in self._parts:
            optimizer.step()
        for matrix in self._matrices.values():
            matrix.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered of each weight, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for optimizer, seen in self._parts:
            names = {id(parameter): name for name, parameter in seen.items()}
            found |= checkpoints.flatten_optimizer(optimizer, names)
        return found

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for optimizer, seen in self._parts:
            own = {k: v for k, v in saved.items() if k.rsplit("|", 1)[0] in seen}
            checkpoints.restore_optimizer(optimizer, seen, own)


def _inner(name: str, parameter: Tensor) -> bool:
    if parameter.ndim < 2 or "embedding" in name:
        return False
    return min(parameter.shape[:2]) >= _SMALLEST_SIDE


def _matrix(parameter: nn.Parameter) -> Tensor:
    """The weight (out, …) as a matrix (out, rest) in the same memory."""
    matrix = _matrix_like(parameter.detach(), parameter)
    if matrix.data_ptr() != parameter.data_ptr():
        raise ValueError(f"A weight of shape {tuple(parameter.shape)} lies scattered in memory.")
    return matrix


def _matrix_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor` (out, …) as a matrix (out, rest), columns as in `parameter`'s memory."""
    if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)
