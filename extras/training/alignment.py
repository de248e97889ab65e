"""What brings out the things of a page, which are a small part of the error of its latents and are
learnt late from that alone.

Representation alignment (Yu et al. 2024, arXiv:2410.06940): while a UNet learns to denoise, it also
learns to tell, from its noised input and what it is told, what a detector sees at each place of the
clean page. Emphasis: errors count more where things are.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extras.training.detector import Detector
from extras.training.pages import PagePlan
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel

ALIGNMENT_WEIGHT = 0.5
"""Of what is not told, beside the loss of the latents; the paper's."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """teacher: what it sees in a page is to be told, too; emphasis: how much more errors count
    where a thing is."""

    teacher: Detector | None = None
    emphasis: float = 1.0

    def pages(self, plan: PagePlan) -> PagePlan:
        """The pages of a plan, with what the emphasis needs."""
        return replace(plan, things=self.emphasis != 1.0)

    def frozen(self) -> dict[str, Tensor]:
        """The teacher's weights, by name."""
        taught = self.teacher.state_dict() if self.teacher else {}
        return {f"teacher.{name}": weight for name, weight in taught.items()}

    @torch.no_grad()
    def seen(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) → "seen" (B, C, H/16, W/16), if there is a teacher."""
        return {} if self.teacher is None else {"seen": self.teacher.features(images)}

    def counts(self, things: Tensor) -> dict[str, Tensor]:
        """(B, H, W), 1 where a thing is → "emphasis" (B, H/8, W/8), 1 on average in each page, if
        there is any."""
        if self.emphasis == 1.0:
            return {}
        covered = F.avg_pool2d(things.float(), 8)
        covered = F.max_pool2d(covered, 3, stride=1, padding=1)  # outlines have two sides
        counts = 1.0 + (self.emphasis - 1.0) * covered
        return {"emphasis": counts / counts.mean(dim=(1, 2), keepdim=True)}


def untold(told: Tensor, features: Tensor, counts: Tensor | None = None) -> Tensor:
    """The share of the features' variance that is not told: 1 for no idea, 0 for all of it.

    told, features: (B, N, C) of N places; each channel is brought to mean 0 and deviation 1 first.
    counts: how much the error at each place counts, (B, N); no idea is then more than 1 where
    features vary most at the places that count most.
    """
    features = features.float()
    deviation, mean = torch.std_mean(features, dim=(0, 1), keepdim=True)
    missed = (told.float() - (features - mean) / (deviation + 1e-4)).square()
    return (missed if counts is None else missed * counts[..., None]).mean()


class TellingUNet(nn.Module):
    """A UNet, and what it tells from where its second level begins to make the picture."""

    def __init__(self, unet: UNetModel, seen: int) -> None:
        """seen: channels of what the detector sees."""
        super().__init__()
        self.unet = unet
        level = unet.config.num_res_blocks[-1] + 1  # behind the blocks of the lowest level
        width = unet.config.channel_mult[-2] * unet.model_channels
        self.sight = nn.Sequential(nn.Linear(width, 2 * seen), nn.SiLU(), nn.Linear(2 * seen, seen))
        nn.init.zeros_(self.sight[-1].weight)
        self._inside: list[Tensor] | None = None  # while it is to be told from
        unet.output_blocks[level].register_forward_hook(self._look)

    def _look(self, _block: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._inside is not None:
            self._inside.append(output)

    def forward(self, x: Tensor, **told: Any) -> tuple[Tensor, Tensor]:
        """The UNet's prediction, and (B, N, seen) at the N places of its second level, a
        sixteenth of the picture's sides each way. Keywords are the UNet's."""
        self._inside = inside = []
        prediction = self.unet(x, **told)
        self._inside = None  # grids call the UNet alone
        return prediction, self.sight(inside[0].flatten(2).transpose(1, 2))
