"""An exponential moving average of a network's weights, for training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Shadow copies of a model's trained parameters, as buffers of this module.

    The decay warms up as (1 + n) / (10 + n) after n updates, so that the random start is soon
    forgotten, and never exceeds `decay`.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_updates: bool = True):
        """use_num_updates: False averages with `decay` from the first update on.

        Raises ValueError unless decay is in 0..1.
        """
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError("Decay must be between 0 and 1")
        self.m_name2s_name: dict[str, str] = {}
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        count = 0 if use_num_updates else -1
        self.register_buffer("num_updates", torch.tensor(count, dtype=torch.int))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # A buffer's name must hold no dot.
                shadow = name.replace(".", "")
                self.m_name2s_name[name] = shadow
                # float32, because small steps vanish in half precision
                self.register_buffer(shadow, parameter.detach().float().clone())
        self.collected_params: list[Tensor] = []

    def reset_num_updates(self) -> None:
        """Start the warm-up again."""
        self.num_updates.zero_()

    def _decay(self) -> float:
        decay = float(self.decay)
        updates = int(self.num_updates)
        if updates < 0:
            return decay
        self.num_updates += 1
        updates += 1
        return min(decay, (1 + updates) / (10 + updates))

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
        shadows = dict(self.named_buffers())
        parameters = dict(model.named_parameters())
        return [(shadows[s], parameters[m]) for m, s in self.m_name2s_name.items()]

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the shadows towards the model's weights by 1 - decay."""
        share = 1.0 - self._decay()
        for shadow, parameter in self._pairs(model):
            shadow.lerp_(parameter.detach().to(shadow), share)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into the model."""
        for shadow, parameter in self._pairs(model):
            parameter.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep copies of these parameters, for `restore`."""
        self.collected_params = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Write what `store` kept back, in the same order, and let go of it."""
        for kept, parameter in zip(self.collected_params, parameters, strict=True):
            parameter.copy_(kept)
        self.collected_params = []
