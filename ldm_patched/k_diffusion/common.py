"""What samplers share: the run over a schedule, exact steps, ancestral steps.

A sampler is `sample_<name>(model, x, sigmas, extra_args=None, callback=None, disable=None, ...)`,
made by `@sampler` from a method `(run, x, ...)`:
`model(x, sigma, **extra_args)` gives the denoised x, where sigma has one entry a picture;
x: (B, ...), noise of level sigmas[0] included; sigmas: (steps + 1,), falling, the last one usually
0. `callback` gets {"x", "i", "sigma", "sigma_hat", "denoised"} before the i-th update. `disable`
is the field's switch for a progress bar; there is none here. What else a method takes is given by
name.

All coefficients of a step are Python floats worked out from sigmas that were read once, so no step
waits for the device.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion.noise import BrownianNoise, NoiseSampler, PerImageNoise, seeds_for

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None]


def to_d(x: Tensor, sigma: Tensor | float, denoised: Tensor) -> Tensor:
    """The derivative dx/dsigma that a denoised prediction stands for.

    sigma: a number, or one entry for each picture of x.
    """
    if isinstance(sigma, Tensor) and sigma.ndim:
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (x - denoised) / sigma


def get_ancestral_step(sigma_from: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): step down to sigma_down, then add noise of sigma_up.

    Their squares sum to sigma_to squared; eta scales the noise that is put back.
    """
    if not eta:
        return sigma_to, 0.0
    variance = sigma_to**2 * max(sigma_from**2 - sigma_to**2, 0.0) / sigma_from**2
    sigma_up = min(sigma_to, eta * math.sqrt(variance))
    return math.sqrt(max(sigma_to**2 - sigma_up**2, 0.0)), sigma_up


class Run:
    """What every sampler needs: sigmas as floats, the model call, the callback, noise."""

    def __init__(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None,
        callback: Callback | None,
    ) -> None:
        self.model, self.callback = model, callback
        self.extra_args = dict(extra_args or {})
        self._like = x
        # sigma in at least float32, however short the latents' numbers are
        self._ones = x.new_ones(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
        levels: list[float] = sigmas.tolist()
        # a level that only repeats the one before is no step
        kept = [k for k, level in enumerate(levels) if k == 0 or level != levels[k - 1]]
        self.sigmas, self.levels = sigmas[kept], [levels[k] for k in kept]
        self.steps = max(len(kept) - 1, 0)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.model(x, self._ones * sigma, **self.extra_args)

    def report(self, i: int, x: Tensor, denoised: Tensor, sigma_hat: float | None = None) -> None:
        """Tell the callback that step i knows its denoised prediction."""
        if self.callback is None:
            return
        sigma = self.sigmas[i]
        hat = sigma if sigma_hat in (None, self.levels[i]) else torch.full_like(sigma, sigma_hat)
        self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})

    def noise(self, given: NoiseSampler | None) -> NoiseSampler:
        """`given`, or independent noise: from extra_args["seed"], else torch's own generator."""
        return given or PerImageNoise(self._like, self._seeds())

    def brownian(self, given: NoiseSampler | None) -> NoiseSampler:
        """`given`, or the increments of a seeded Brownian path over these sigmas."""
        positive = [level for level in self.levels if level > 0]
        return given or BrownianNoise(self._like, self._seeds(), min(positive), max(positive))

    def _seeds(self) -> tuple[int, ...]:
        return seeds_for(self._like.shape[0], self.extra_args.get("seed"))


def sampler(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sampler of a method `(run: Run, x, **options) -> x`; without steps x comes back."""

    @functools.wraps(method)
    @torch.no_grad()
    def sample(
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,  # noqa: ARG001 - of the field's signature
        **options: Any,
    ) -> Tensor:
        run = Run(model, x, sigmas, extra_args, callback)
        return method(run, x, **options) if run.steps else x

    shared = [*inspect.signature(sample, follow_wrapped=False).parameters.values()][:-1]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in [*inspect.signature(method).parameters.values()][2:]
    ]
    sample.__signature__ = inspect.Signature([*shared, *own], return_annotation=Tensor)
    return sample


def mix(x: Tensor, denoised: Tensor, ratio: float) -> Tensor:
    """ratio * x + (1 - ratio) * denoised: an exact step from sigma to ratio * sigma.

    At ratio 0 the prediction itself, bit for bit.
    """
    return denoised if ratio == 0.0 else x * ratio + denoised * (1.0 - ratio)
