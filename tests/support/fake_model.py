"""A stand-in for a BaseModel: no weights to speak of, but a real attention over the prompt.

It has what sampling asks of a model (noise levels, latent format, conditions, memory) and records
its calls. Its output depends on x, sigma, the context and y in ways that tests can tell apart.
"""

from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.conds import CONDRegular
from ldm_patched.modules.model_sampling import EPS, ModelSamplingDiscrete


class EpsilonSampling(ModelSamplingDiscrete, EPS):
    """The noise levels of Stable Diffusion."""


class Scale:
    """A latent format of one factor."""

    process_in = staticmethod(lambda latent: latent * 0.13025)
    process_out = staticmethod(lambda latent: latent / 0.13025)


class FakeModel(torch.nn.Module):
    """Denoises towards what attention over the context says."""

    def __init__(self, bytes_per_image: int = 1) -> None:
        super().__init__()
        self.model_sampling, self.latent_format = EpsilonSampling(), Scale()
        self.bytes_per_image = bytes_per_image
        generator = torch.Generator().manual_seed(0)
        self.query = torch.nn.Parameter(torch.randn(4, 8, generator=generator), False)
        self.value = torch.nn.Parameter(torch.randn(8, 4, generator=generator), False)
        self.calls: list[dict[str, Any]] = []

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def memory_required(self, shape: list[int]) -> int:
        return shape[0] * self.bytes_per_image

    def extra_conds(self, **options: Any) -> dict[str, Any]:
        pooled = options.get("pooled_output")
        return {} if pooled is None else {"y": CONDRegular(pooled)}

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_crossattn: Tensor,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        self.calls.append(
            {"x": x, "t": t, "context": c_crossattn, "control": control, **transformer_options}
        )
        sigma = t.view(-1, 1, 1, 1)
        scaled = (x / (1 + sigma**2).sqrt()).permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, 4)
        attention = (scaled @ self.query @ c_crossattn.transpose(1, 2)).softmax(-1)
        target = (attention @ c_crossattn @ self.value).transpose(1, 2).reshape(x.shape)
        if y is not None:
            target = target + y.mean(1).view(-1, 1, 1, 1)
        if control is not None:
            target = target + control
        return (x + sigma**2 * target.tanh()) / (1 + sigma**2)


def prompt(seed: int, tokens: int = 77, pooled: bool = True, **options: Any) -> list[list[Any]]:
    """A condition as callers give it: random context (1, tokens, 8) and pooled output (1, 6)."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, 8, generator=generator)
    if pooled:
        options["pooled_output"] = torch.randn(1, 6, generator=generator)
    return [[context, options]]
