"""Stage 1: the autoencoder, from nothing, on pages of the picture book."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from extras.training import picturebook
from extras.training.builtin_model import BuiltinSizes, make_vae
from extras.training.grids import tile
from extras.training.latent_space import normalise_latents, preview_turn, whitener
from extras.training.page_workers import draw_groups
from extras.training.pages import PageGroup, PagePlan, source_record
from extras.training.run import Stage
from extras.training.vae_start import fit_to_colours
from extras.training.writing import half, write_weights
from ldm_patched.ldm.models.autoencoder import AutoencoderKL

VAE_FILE = "vae.safetensors"
_STATISTICS_GROUP = 2**40  # these groups are never trained on; their latents tell the spread
_STATISTICS_GROUPS = 12
_START_GROUP = 2**39
_START_PIECES = 32
_START_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class VaeLoss:
    """Weights of the terms: absolute error is 1."""

    squared: float = 2.0
    edges: float = 0.5
    """The absolute error of differences between neighbours: keeps outlines sharp."""
    kl: float = 3e-5
    """Pulls the latents towards a unit normal; what it leaves of noise smooths the latent space."""


def to_network(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in -1..1, channels last."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_pixels(x: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 → uint8 (B, H, W, 3)."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def reconstruction_loss(y: Tensor, x: Tensor, weights: VaeLoss) -> Tensor:
    """How far pictures y are from x, both (B, 3, H, W): all terms of `weights` but the last."""
    error = y - x
    edges = (error[..., 1:] - error[..., :-1]).abs().mean()
    edges = edges + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + weights.squared * error.square().mean() + weights.edges * edges


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise of pictures in -1..1, decibels, the mean over the batch."""
    error = (x - y).clamp(-2, 2).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4.0 / error.clamp(min=1e-10))).mean()


@torch.no_grad()
def round_trips(
    model: AutoencoderKL, size: tuple[int, int], device: torch.device, *, bf16: bool
) -> np.ndarray:
    """uint8 (H, W, 3): held-out pages of a (width, height) above what the autoencoder makes of
    them."""
    images = np.stack([picturebook.draw(seed, size=size).image for seed in range(8)])
    x = to_network(torch.from_numpy(images).to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        y = model.decode(model.encode(x)).float()
    return tile([*to_pixels(x).cpu().numpy(), *to_pixels(y).cpu().numpy()], columns=8)


class VaeStage(Stage):
    """See the module's docstring."""

    name = "vae"

    def __init__(
        self,
        sizes: BuiltinSizes,
        pages: PagePlan,
        *,
        folder: Path,
        device: torch.device,
        workers: int = 0,
        loss: VaeLoss | None = None,
        bf16: bool = True,
        seed: int = 0,
        compile_network: bool = False,
    ) -> None:
        """A step takes one group of `pages`; `folder` is where the result goes."""
        torch.manual_seed(seed)
        model = make_vae(sizes)
        first = replace(pages, group=_START_PIECES, side=min(_START_SIDE, *map(min, pages.sizes)))
        fit_to_colours(model, to_network(first.draw_group(_START_GROUP).images))
        self.model = model.to(device, memory_format=torch.channels_last)
        self.sizes, self.pages, self.folder, self.device = sizes, pages, folder, device
        self.workers, self.weights, self.bf16 = workers, loss or VaeLoss(), bf16
        self._source: Iterator[PageGroup] | None = None
        trip = self._noisy_round_trip
        self._train_trip = torch.compile(trip) if compile_network else trip

    @property
    def pictures_per_step(self) -> int:
        return self.pages.group

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "sizes": asdict(self.sizes), "pages": source_record(self.pages),
                "loss": asdict(self.weights)}  # fmt: skip

    def begin(self, step: int) -> None:
        self._source = draw_groups(self.pages, step, self.workers)

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """Reconstruction through noised latents; the groups come in the order of the steps."""
        images = next(self._source).images.to(self.device, non_blocking=True)
        x = to_network(images)
        noise = torch.randn(len(x), 4, x.shape[2] // 8, x.shape[3] // 8, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            y, mean, log_variance = self._train_trip(x, noise)
        std = (0.5 * log_variance).exp()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1).mean()
        loss = reconstruction_loss(y, x, self.weights) + self.weights.kl * kl
        return loss, {"psnr": psnr(y, x), "kl": kl, "latent_noise": std.mean()}

    def _noisy_round_trip(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction through a draw from the posterior, its mean, its log variance)."""
        moments = self.model.quant_conv(self.model.encoder(x)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20.0, 10.0)
        y = self.model.decode(mean + (0.5 * log_variance).exp() * noise)
        return y.float(), mean, log_variance

    def grid(self) -> np.ndarray:
        return round_trips(self.model, self.pages.sizes[0], self.device, bf16=self.bf16)

    @torch.no_grad()
    def _latents_and_colours(self) -> tuple[Tensor, Tensor]:
        """(N, 4) latents and (N, 3) mean colours of their places, of pages; float64, CPU."""
        whole = replace(self.pages, side=0, captions=0)
        latents, colours = [], []
        for number in range(_STATISTICS_GROUP, _STATISTICS_GROUP + _STATISTICS_GROUPS):
            x = to_network(whole.draw_group(number).images.to(self.device))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                found = self.model.encode(x).float()
            means = F.avg_pool2d(x, self.model.config.downscale)
            for rows, part in ((latents, found), (colours, means)):
                rows.append(part.permute(0, 2, 3, 1).flatten(0, 2))
        return torch.cat(latents).cpu().double(), torch.cat(colours).cpu().double()

    def finish(self) -> list[Path]:
        """Write the autoencoder with its latents brought to SDXL's, in half precision.

        Raises TrainingFolderError.
        """
        model = copy.deepcopy(self.model).cpu()
        latents, colours = self._latents_and_colours()
        mean, covariance = latents.mean(dim=0), latents.T.cov()
        turn = preview_turn((latents - mean) @ whitener(covariance), colours)
        normalise_latents(model, mean, covariance, turn)
        path = self.folder / VAE_FILE
        write_weights(half(model.state_dict()), path)
        return [path]
