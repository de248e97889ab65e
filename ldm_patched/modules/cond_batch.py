"""Conditions of a run and their evaluation: as few network calls as memory allows.

A condition as callers give it is `[tensor, options]`: `tensor` (1, tokens, width) is the prompt's
cross-attention context, `options` may hold

  pooled_output     (1, P) of the second text encoder; with width, height, … for the model's encoder
  control           an object with `get_control(x, t, cond, batched_number) -> dict | None`
  start_percent, end_percent   0..1 of the sampling in which the condition counts
  strength          its weight where several conditions meet (1.0)
  mask              (H, W) or (B, H, W), 0..1, at any resolution: where it counts, and how much
  area              (height, width, y, x) in latent pixels: the part of the picture it sees

Conditions of a kind are averaged by weight, pixel by pixel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_patched.modules.conds import CONDCrossAttn, CONDRegular, TimedInput
from ldm_patched.modules.model_sampling import sampling_progress

COND, UNCOND = 0, 1  # as written into transformer_options["cond_or_uncond"]

Area = tuple[int, int, int, int]  # height, width, y, x


@dataclass(eq=False)  # compared by identity: two equal prompts are still two conditions
class Condition:
    """One condition of a run. It counts while sigma_end <= sigma <= sigma_start."""

    inputs: dict[str, CONDRegular]  # keywords of apply_model, for the run's batch and device
    control: Any = None
    area: Area | None = None
    mask: Tensor | None = None  # (1 or B, 1, H, W) at the latents' resolution
    strength: float = 1.0
    sigma_start: float = math.inf
    sigma_end: float = 0.0

    @property
    def is_timed(self) -> bool:
        return self.sigma_end > 0.0 or self.sigma_start < math.inf

    @property
    def is_plain(self) -> bool:
        """Whether it counts the same in every pixel."""
        return self.area is None and self.mask is None


def prepare_conditions(
    model: Any, conditions: Sequence[Sequence[Any]], noise: Tensor, prompt_type: str, **extra: Any
) -> list[Condition]:
    """Conditions as callers give them → Conditions for the batch and device of `noise`.

    noise: (B, C, H, W). model: a BaseModel; its `extra_conds` makes what its family needs.
    prompt_type: "positive" or "negative". extra: more keywords for extra_conds.
    """
    prepared = []
    for context, options in conditions:
        keywords = {
            "width": noise.shape[3] * 8,
            "height": noise.shape[2] * 8,
            **extra,
            **options,
            "noise": noise,
            "device": noise.device,
            "prompt_type": prompt_type,
            "cross_attn": context,
        }
        made = {"c_crossattn": CONDCrossAttn(context), **model.extra_conds(**keywords)}
        shaped = {"batch_size": noise.shape[0], "device": noise.device, "area": options.get("area")}
        window = _sigma_window(model.model_sampling, options)
        prepared.append(
            Condition(
                {name: cond.process_cond(**shaped) for name, cond in made.items()},
                control=options.get("control"),
                area=options.get("area"),
                mask=mask_like(options.get("mask"), noise),
                strength=float(options.get("strength", 1.0)),
                sigma_start=window[0],
                sigma_end=window[1],
            )
        )
    return prepared


def _sigma_window(model_sampling: Any, options: Mapping[str, Any]) -> tuple[float, float]:
    """(sigma_start, sigma_end) of options' start_percent and end_percent."""
    start, end = float(options.get("start_percent", 0.0)), float(options.get("end_percent", 1.0))
    return (
        float(model_sampling.percent_to_sigma(start)) if start > 0.0 else math.inf,
        float(model_sampling.percent_to_sigma(end)) if end < 1.0 else 0.0,
    )


def mask_like(mask: Tensor | None, noise: Tensor) -> Tensor | None:
    """mask (H', W') or (B, H', W') → (1 or B, 1, H, W) like the latents."""
    if mask is None:
        return None
    mask = mask.to(device=noise.device, dtype=noise.dtype)
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] == noise.shape[-2:]:
        return mask
    return F.interpolate(mask, size=noise.shape[-2:], mode="bilinear", antialias=True)


@dataclass
class CondBatcher:
    """Evaluates the conditions of one run; what does not change between steps is made once.

    model: a BaseModel. free_bytes: memory that a call may use; None means any amount.
    """

    model: Any
    free_bytes: int | None = None
    _joined: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)
    _most: dict[tuple[int, ...], int] = field(default_factory=dict)

    def predict(
        self,
        groups: Sequence[Sequence[Condition]],
        x: Tensor,
        sigma: Tensor,
        model_options: Mapping[str, Any],
    ) -> list[Tensor | None]:
        """The denoised x for each group of conditions, None for a group with none that counts.

        groups: the positive conditions, then the negative ones; x: (B, C, H, W); sigma: (B,).
        """
        waiting = [(kind, c) for kind, group in enumerate(groups) for c in active(group, sigma)]
        sums = [_WeightedMean(x, sum(k == kind for k, _ in waiting)) for kind in range(len(groups))]
        while waiting:
            batch = self._next_batch(waiting, x)
            try:
                outputs = self._call(batch, x, sigma, model_options)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._most[tuple(_part(x, batch[0][1].area).shape)] = 1
                continue
            for (kind, condition), output in zip(batch, outputs, strict=True):
                sums[kind].add(output, condition)
            waiting = [job for job in waiting if job not in batch]
        return [s.value() for s in sums]

    def _next_batch(
        self, waiting: Sequence[tuple[int, Condition]], x: Tensor
    ) -> list[tuple[int, Condition]]:
        """The first waiting condition and those that can share its call."""
        first = waiting[0][1]
        shape = tuple(_part(x, first.area).shape)
        mates = [job for job in waiting if _can_share(first, job[1])]
        return mates[: self._most_at_once(shape, len(mates))]

    def _most_at_once(self, shape: tuple[int, ...], wanted: int) -> int:
        """How many conditions of latents `shape` fit in memory, `wanted` at most."""
        if wanted == 1 or self.free_bytes is None:
            return min(wanted, self._most.get(shape, wanted))
        if shape not in self._most:
            fits = [
                n
                for n in range(2, wanted + 1)
                if self.model.memory_required([n * shape[0], *shape[1:]]) < self.free_bytes
            ]
            self._most[shape] = max(fits, default=1)
        return min(wanted, self._most[shape])

    def _call(
        self,
        batch: Sequence[tuple[int, Condition]],
        x: Tensor,
        sigma: Tensor,
        model_options: Mapping[str, Any],
    ) -> Sequence[Tensor]:
        """One network call for all of `batch`; its output, one part a condition."""
        kinds, conditions = [kind for kind, _ in batch], [c for _, c in batch]
        part, count = _part(x, conditions[0].area), len(batch)
        part, timestep = torch.cat([part] * count), torch.cat([sigma] * count)
        keywords = self._at(timestep, self._network_inputs(conditions))
        longest = keywords["c_crossattn"].shape[1]
        keywords["transformer_options"] = {
            **model_options.get("transformer_options", {}),
            "cond_or_uncond": kinds,
            # how often each condition's text stands there, to be as long as the others
            "text_repeats": [longest // c.inputs["c_crossattn"].cond.shape[1] for c in conditions],
            "sigmas": timestep,
        }
        if conditions[0].control is not None:
            control = conditions[0].control
            keywords["control"] = control.get_control(part, timestep, keywords, count)
        wrapper = model_options.get("model_function_wrapper")
        if wrapper is None:
            output = self.model.apply_model(part, timestep, **keywords)
        else:
            call = {"input": part, "timestep": timestep, "c": keywords, "cond_or_uncond": kinds}
            output = wrapper(self.model.apply_model, call)
        return output.chunk(count)

    def _at(self, sigma: Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` as they are at sigma (B,): of a timed one the half that counts."""
        keywords = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, TimedInput):
                keywords[name] = value.at(sampling_progress(self.model.model_sampling, sigma))
        return keywords

    def _dtype(self) -> torch.dtype:
        """The precision in which the network takes its context."""
        return getattr(self.model, "manual_cast_dtype", None) or self.model.get_dtype()

    def _network_inputs(self, conditions: Sequence[Condition]) -> dict[str, Any]:
        """The conditions' inputs joined for one call; the same objects at every step."""
        key = tuple(id(c) for c in conditions)
        if key not in self._joined:
            first, others = conditions[0].inputs, conditions[1:]
            # Networks that keep what they made of a context know it again without reading it if
            # it is the same object, which a cast at each step would prevent, and if its changes
            # are counted, which inference mode does not do.
            with torch.inference_mode(False), torch.no_grad():
                joined = {n: c.concat([o.inputs[n] for o in others]) for n, c in first.items()}
                joined["c_crossattn"] = joined["c_crossattn"].to(self._dtype())
            self._joined[key] = joined
        return self._joined[key]


def active(conditions: Sequence[Condition], sigma: Tensor) -> list[Condition]:
    """Those that count at `sigma` (B,), all entries equal. Waits for the device only if timed."""
    if not any(c.is_timed for c in conditions):
        return list(conditions)
    level = float(sigma[0])
    return [c for c in conditions if c.sigma_end <= level <= c.sigma_start]


def _can_share(a: Condition, b: Condition) -> bool:
    """Whether two conditions fit in one network call."""
    if a is b:
        return True
    if a.control is not b.control or a.area != b.area or a.inputs.keys() != b.inputs.keys():
        return False
    return all(cond.can_concat(b.inputs[name]) for name, cond in a.inputs.items())


def _part(x: Tensor, area: Area | None) -> Tensor:
    """The part of x (B, C, H, W) that `area` names."""
    if area is None:
        return x
    height, width, top, left = area
    return x[:, :, top : top + height, left : left + width]


class _WeightedMean:
    """Mean of predictions by weight; a single plain one is handed through untouched."""

    def __init__(self, like: Tensor, count: int) -> None:
        self._like, self._count = like, count
        self._only: Tensor | None = None
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, prediction: Tensor, condition: Condition) -> None:
        if self._count == 1 and condition.is_plain:
            self._only = prediction
            return
        if self._sum is None or self._weight is None:
            self._sum = torch.zeros_like(self._like)
            self._weight = torch.zeros_like(self._like[:, :1])
        mask = condition.mask if condition.mask is not None else self._weight.new_ones(1, 1, 1, 1)
        mask = (mask * condition.strength).expand_as(self._weight)
        weight = _part(mask, condition.area)
        _part(self._sum, condition.area).add_(prediction * weight)
        _part(self._weight, condition.area).add_(weight)

    def value(self) -> Tensor | None:
        """The mean; where no condition counts, 0. None if there was no condition."""
        if self._only is not None or self._sum is None or self._weight is None:
            return self._only
        return self._sum / self._weight.clamp_min(1e-30)
