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
    autoencoder does as a whole stays the same. The posterior's variances, which nothing reads
    after training, stay those of the old directions. On the CPU, where products are exact.
    """
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = vae.config.embed_dim
    change = whitener(covariance.double()) / LATENT_FORMAT.scale_factor
    change = change if turn is None else turn.double() @ change
    mean = mean.double()
    with torch.no_grad():
        weight, bias = inward.weight[:channels, :, 0, 0], inward.bias[:channels]
        weight.copy_(change @ weight.double())
        bias.copy_(change @ (bias.double() - mean))
        weight = outward.weight[:, :, 0, 0]
        outward.bias += (weight.double() @ mean).to(outward.bias)
        weight.copy_(weight.double() @ torch.linalg.inv(change))


def whitener(covariance: Tensor) -> Tensor:
    """(D, D), symmetric: takes rows of that covariance to a covariance of 1."""
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=1e-6 * float(values[-1]))
    return axes * values.rsqrt() @ axes.T


def preview_turn(latents: Tensor, colours: Tensor) -> Tensor:
    """(4, 4): the rotation of whitened latents (N, 4) by which SDXL's previews come nearest to
    colours (N, 3), which are theirs (the orthogonal Procrustes problem)."""
    shown = (colours - colours.mean(dim=0)).T @ latents / len(latents)  # (3, 4): colour of each
    left, _, right = torch.linalg.svd(torch.tensor(SDXL_FACTORS).to(shown) @ shown)
    # Three colours leave the sign of the fourth axis open; it must not hang on rounding.
    left[:, -1] *= torch.linalg.det(left @ right).sign()
    return left @ right
