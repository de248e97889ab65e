"""The coordinates of a trained autoencoder's latents, brought to those of SDXL.

An autoencoder that is trained from nothing has latents of any spread and direction. A linear
change of the two convolutions around them gives them SDXL's spread, the same along every
direction, and turns them so that SDXL's previews show about the right colours.
"""

import torch
from torch import Tensor

from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.modules.latent_formats import SDXL as LATENT_FORMAT
from ldm_patched.modules.latent_preview import SDXL_FACTORS


def normalise_latents(
    vae: AutoencoderKL, mean: Tensor, covariance: Tensor, turn: Tensor | None = None
) -> None:
    """Give latents a mean of 0, no correlations and SDXL's spread, turned by `turn`.

    mean (4,), covariance (4, 4): of the latents as they are; turn (4, 4): a rotation. What the
    autoencoder does as a whole stays the same.
    """
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = vae.config.embed_dim
    change = whitener(covariance) / LATENT_FORMAT.scale_factor
    change = (change if turn is None else turn.to(change) @ change).to(inward.weight)
    mean = mean.to(change)
    with torch.no_grad():
        weight, bias = inward.weight[:channels, :, 0, 0], inward.bias[:channels]
        inward.weight[:channels, :, 0, 0] = change @ weight
        inward.bias[:channels] = change @ (bias - mean)
        inward.bias[channels:] += change.square().sum(dim=1).log()
        outward.bias += outward.weight[:, :, 0, 0] @ mean
        back = torch.linalg.inv(change.double()).to(change)
        outward.weight[:, :, 0, 0] = outward.weight[:, :, 0, 0] @ back


def whitener(covariance: Tensor) -> Tensor:
    """(D, D), symmetric: takes rows of that covariance to a covariance of 1."""
    values, axes = torch.linalg.eigh(covariance.double())
    values = values.clamp(min=1e-6 * float(values[-1]))
    return (axes * values.rsqrt() @ axes.T).to(covariance)


def preview_turn(latents: Tensor, colours: Tensor) -> Tensor:
    """(4, 4): the rotation of whitened latents (N, 4) by which SDXL's previews come nearest to
    colours (N, 3), which are theirs (the orthogonal Procrustes problem)."""
    shown = (colours - colours.mean(dim=0)).T @ latents / len(latents)  # (3, 4): colour of each
    left, _, right = torch.linalg.svd(torch.tensor(SDXL_FACTORS).to(shown) @ shown)
    return left @ right
