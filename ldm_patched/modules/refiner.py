"""A second model that takes over for the last steps of a run.

joint      in one sampler call, so that what a sampler remembers of earlier steps is kept
separate   the sampler begins anew with the refiner, from the latents as they are
vae        the first model finishes, its picture gets new noise, and the refiner begins anew; the
           only way between models whose latents differ
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion.noise import seeds_for
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.samplers import Conditions, GuidedDenoiser, KSampler

METHODS = ("joint", "separate", "vae")
VAE_SIGMA_FACTOR = 1.4  # the finished picture needs more noise than the half-finished one had


@dataclass(frozen=True, eq=False)
class RefinerSwitch:
    """`model` does the steps from `step` (counted from 0 in the whole schedule) on.

    positive, negative: its own conditions. convert: latents of the first model → its own, both
    (B, C, H, W) in the scale of their VAEs; needed where they differ, and for "vae" only.
    """

    model: Any
    step: int
    positive: Conditions = ()
    negative: Conditions = ()
    method: str = "joint"
    convert: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Arguments:
    """What KSampler.sample takes."""

    noise: Tensor
    positive: Conditions
    negative: Conditions
    cfg: float
    latent: Tensor
    sigmas: Tensor
    mask: Tensor | None
    callback: Callable[[dict[str, Any]], None]
    seed: int | Sequence[int] | None
    sampler_options: Mapping[str, Any] | None

    def run(self, runner: KSampler, **more: Any) -> Tensor:
        """Latents in the model's scale."""
        return runner.sample(**vars(self), **more)


class SwitchingDenoiser:
    """One denoiser above a noise level, another from it on. Waits for the device at each call."""

    def __init__(
        self, first: GuidedDenoiser, sigma: float, take_over: Callable[[], GuidedDenoiser]
    ) -> None:
        """take_over: makes the second one, once, when it is needed."""
        self._current, self._sigma, self._take_over = first, sigma * (1.0 + 1e-6), take_over
        self._switched = False

    @property
    def model(self) -> Any:
        return self._current.model

    @property
    def model_options(self) -> Mapping[str, Any]:
        return self._current.model_options

    @property
    def model_sampling(self) -> Any:
        return self._current.model_sampling

    def __call__(self, x: Tensor, sigma: Tensor, seed: object = None) -> Tensor:
        """As GuidedDenoiser."""
        if not self._switched and float(sigma.max()) <= self._sigma:
            self._current, self._switched = self._take_over(), True
        return self._current(x, sigma, seed=seed)


def sample_with_refiner(
    runner: KSampler,
    other: KSampler,
    refiner: RefinerSwitch,
    at: int,
    given: Arguments,
    enter: Callable[[], None],
) -> Tensor:
    """Latents in the scale of the model that ends the run.

    runner, other: of the first model and of the refiner; at: the refiner's first step in
    given.sigmas; enter: puts the refiner's weights in their place. A mask makes joint of
    "separate". Raises ValueError for another method, UnsupportedModel where the models' latents
    differ and nothing converts them.
    """
    if refiner.method not in METHODS:
        raise ValueError(f"There is no method {refiner.method!r}; choose of {', '.join(METHODS)}.")
    same = type(runner.latent_format) is type(other.latent_format)
    if not same and (refiner.method != "vae" or refiner.convert is None):
        raise UnsupportedModel(
            "The refiner's latents are not those of the checkpoint, so it cannot go on with them; "
            "choose the method vae or a refiner of the same family."
        )
    if refiner.method == "vae" and at > 0:
        return _through_the_vae(runner, other, refiner, at, given, enter)
    if refiner.method == "separate" and given.mask is None and at > 0:
        first = replace(given, sigmas=given.sigmas[: at + 1]).run(runner)
        enter()
        return _second(given, refiner, at, first, torch.zeros_like(first), 1.0).run(other)

    def take_over() -> GuidedDenoiser:
        enter()
        parts = refiner.positive, refiner.negative, given.cfg, given.latent, given.mask
        return other.denoiser(*parts)

    level = float(given.sigmas[max(at, 0)])
    return given.run(runner, wrap=lambda base: SwitchingDenoiser(base, level, take_over))


def _through_the_vae(
    runner: KSampler,
    other: KSampler,
    refiner: RefinerSwitch,
    at: int,
    given: Arguments,
    enter: Callable[[], None],
) -> Tensor:
    last: dict[str, Tensor] = {}

    def watch(state: dict[str, Any]) -> None:
        last["noise"] = (state["x"] - state["denoised"]) / state["sigma"].to(state["x"])
        given.callback(state)

    sigmas = torch.cat([given.sigmas[:at], given.sigmas.new_zeros(1)])
    done = replace(given, sigmas=sigmas, callback=watch).run(runner)
    picture = runner.latent_format.process_out(done)
    picture = picture if refiner.convert is None else refiner.convert(picture)
    latent = other.latent_format.process_in(picture.to(done))
    seeds = [seed + 1 for seed in seeds_for(latent.shape[0], given.seed)]
    draws = (torch.Generator().manual_seed(seed) for seed in seeds)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=draw) for draw in draws])
    noise = noise.to(latent)
    if last["noise"].shape[1] == noise.shape[1]:  # colours shall stay where they were going
        axes = (2, 3)
        noise += last["noise"].mean(axes, keepdim=True) - noise.mean(axes, keepdim=True)
    enter()
    return _second(given, refiner, at, latent, noise, VAE_SIGMA_FACTOR).run(other)


def _second(
    given: Arguments, refiner: RefinerSwitch, at: int, latent: Tensor, noise: Tensor, factor: float
) -> Arguments:
    """The refiner's part: its steps are counted on from the first one's."""

    def watch(state: dict[str, Any]) -> None:
        given.callback({**state, "i": state["i"] + at})

    return replace(
        given,
        noise=noise,
        latent=latent,
        positive=refiner.positive,
        negative=refiner.negative,
        sigmas=given.sigmas[at:] * factor,
        callback=watch,
        seed=[seed + 1 for seed in seeds_for(latent.shape[0], given.seed)],
    )
