"""Representation alignment (Yu et al. 2024, arXiv:2410.06940): while a UNet learns to denoise, it
also learns to tell, from its noised input and the words, what a detector sees at each place of the
clean page. What things are is a small part of the error of latents, and is learnt late from that
alone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel

ALIGNMENT_WEIGHT = 0.5
"""Of what is not told, beside the loss of the latents; the paper's."""


def untold(told: Tensor, features: Tensor) -> Tensor:
    """The share of the features' variance that is not told: 1 for no idea, 0 for all of it.

    told, features: (B, N, C) of N places; each channel is brought to mean 0 and deviation 1 first.
    """
    features = features.float()
    deviation, mean = torch.std_mean(features, dim=(0, 1), keepdim=True)
    return F.mse_loss(told.float(), (features - mean) / (deviation + 1e-4))


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
