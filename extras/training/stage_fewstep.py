"""Stage `fewstep`: latent consistency distillation as a LoRA (LCM-LoRA, arXiv:2311.05556).

The base model with guidance is the teacher. It takes a short step along its trajectory; the
student shall name the same picture before and after that step, and so learns to name it at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from extras.training.errors import TrainingError
from extras.training.noise import append_dims
from extras.training.objectives import STEPS
from extras.training.stage_lora import LoraStage
from ldm_patched.k_diffusion.sampling import sample_lcm

SKIP = 20
"""Timesteps of the teacher's step: the engine's schedule "lcm" has every 20th."""
HUBER = 0.001
TEACHER_CFG = 4.0


class FewstepStage(LoraStage):
    """See the module's docstring."""

    teacher_cfg = TEACHER_CFG

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As of LoraStage. Raises TrainingError for a base without a table of timesteps."""
        super().__init__(*arguments, **options)
        if self.base.objective == "edm":
            raise TrainingError("A model of the objective edm cannot be distilled: choose another.")
        few = replace(self.place.preview, steps=4, cfg=1.0)
        self.place = replace(self.place, preview=few)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "teacher_cfg": self.teacher_cfg}

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pseudo-Huber distance of the student's pictures on both sides of a teacher's step."""
        self.window.advance(step)
        batch = self.window.batch(step)
        latents = batch.pop("latents")
        cond = self.condition(batch)
        with torch.no_grad():
            empty = self.condition({**batch, **self.emptied(batch)})
        sigma, below = self.levels(len(latents))
        x = latents + self.loss.make_noise(latents) * append_dims(sigma, 4)
        guess = self.denoiser(self.network, x, sigma, cond)
        target = self.target(x, sigma, below, cond, empty)
        error = ((guess - target).square() + HUBER**2).sqrt() - HUBER
        return error.mean(), {}

    def levels(self, count: int) -> tuple[Tensor, Tensor]:
        """(sigma, the one a step below), (count,) each; below the last level is 0."""
        table = self.denoiser.sigmas
        index = torch.randint(0, STEPS, (count,)).to(self.device)
        below = table[(index - SKIP).clamp(min=0)] * (index >= SKIP)
        return table[index], below

    @torch.no_grad()
    def target(
        self,
        x: Tensor,
        sigma: Tensor,
        below: Tensor,
        cond: Mapping[str, Any],
        empty: Mapping[str, Any],
    ) -> Tensor:
        """What the student says after the teacher's step; at the end, what the teacher says."""
        with self.added.off():
            good = self.denoiser(self.network, x, sigma, cond)
            poor = self.denoiser(self.network, x, sigma, empty)
        picture = poor + self.teacher_cfg * (good - poor)
        lower = picture + (x - picture) * append_dims(below / sigma, 4)
        # Below the last level there is nothing to denoise; there the picture is the answer.
        said = self.denoiser(self.network, lower, below, cond)
        return torch.where(append_dims(below > 0, 4), said, picture)

    def emptied(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The token ids of an empty prompt for each row of a batch."""
        one = self.preview_batch([""], (64, 64))
        return {key: one[key][:1].expand_as(batch[key]) for key in ("tokens_l", "tokens_g")}

    def sample(self, model: Callable[..., Tensor], start: Tensor, sigmas: Tensor) -> Tensor:
        """In few steps, each straight to the picture."""
        return sample_lcm(model, start, sigmas, disable=True)
