"""Where the training of the autoencoder begins: its outermost layers are fitted to pictures.

Of a fresh network's features, a linear reading tells the mean colour of each 8×8 pixels well.
Training from random readings finds brightness in a hundred steps, but the hues that vary least in
thousands; fitted, all of them are there before the first step, and training adds the shapes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from extras.training.latent_space import whitener
from ldm_patched.ldm.models.autoencoder import AutoencoderKL

_RIDGE = 1e-2  # of the features' mean square: large weights would throw training off
_SPREAD = 1.5  # of what pictures do to the features; the constants of the norms have about this


@torch.no_grad()
def fit_to_colours(vae: AutoencoderKL, x: Tensor) -> None:
    """Let latents be what pictures look like from afar, and be decoded as such.

    x: (B, 3, H, W) in -1..1, on the CPU like `vae`. Three latents become the uncorrelated axes of
    the blocks' mean colours, the fourth the strongest pattern within a block; each with a spread
    of 1. Sets the last layers of both halves and both convolutions around the latents, and scales
    the first layers, the encoder's so that every hue comes in as strong as brightness.
    """
    wanted = block_targets(x, vae.config.downscale)
    channels = vae.config.embed_dim
    colours = x.permute(0, 2, 3, 1).flatten(0, 2)
    into = vae.encoder.conv_in.weight
    into.copy_(torch.einsum("ocyx,cd->odyx", into, whitener(colours.T.cov())))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:channels] = torch.eye(channels, conv.in_channels)[:, :, None, None]
        conv.bias[:channels] = 0.0
    _fit(vae.encoder, x, wanted)
    _fit(vae.decoder, vae.encode(x), x)


def block_targets(x: Tensor, side: int) -> Tensor:
    """(B, 4, H/side, W/side) of x (B, 3, H, W): see fit_to_colours."""
    means = F.avg_pool2d(x, side)
    height, width = means.shape[2:]
    inner = x - F.interpolate(means, scale_factor=side)
    patterns = F.unfold(inner, side, stride=side)  # (B, 3 · side², blocks)
    first = _axes(patterns.transpose(1, 2).flatten(0, 1))[:, -1:]
    strongest = torch.einsum("bpn,pk->bkn", patterns, first).unflatten(2, (height, width))
    colours = means.permute(0, 2, 3, 1).flatten(0, 2)
    turned = torch.einsum("bchw,ck->bkhw", means, _axes(colours - colours.mean(dim=0)))
    rows = torch.cat([turned, strongest], dim=1)
    across = (0, 2, 3)
    spread = rows.std(dim=across, keepdim=True).clamp(min=1e-3)
    return (rows - rows.mean(dim=across, keepdim=True)) / spread


def _axes(rows: Tensor) -> Tensor:
    """(D, D): the principal axes of rows (N, D) as columns, the strongest last."""
    return torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors


def _fit(network: torch.nn.Module, x: Tensor, wanted: Tensor) -> None:
    """Set the first rows of the last layer of `network` so that x (B, …) becomes `wanted`
    (B, K, h, w) as closely as a linear reading of each place with small weights allows; scale the
    first layer, so that what pictures do to the features has the spread _SPREAD."""
    conv = network.conv_out
    felt = _inputs(network, network.norm_out, x)
    spread = felt.std(dim=(0, 2, 3)).square().mean().sqrt()
    network.conv_in.weight *= _SPREAD / spread
    network.conv_in.bias *= _SPREAD / spread
    features = _inputs(network, conv, x).permute(0, 2, 3, 1).flatten(0, 2).double()
    targets = wanted.permute(0, 2, 3, 1).flatten(0, 2).double()
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    square = features.T @ features
    ridge = torch.full((len(square),), float(_RIDGE * square.diagonal()[:-1].mean()))
    ridge[-1] = 0.0  # of the constant: it is no reading
    square += ridge.to(square).diag()
    solved = torch.linalg.solve(square, features.T @ targets).T.to(conv.weight)
    count, middle = wanted.shape[1], conv.kernel_size[0] // 2
    conv.weight[:count] = 0.0
    conv.weight[:count, :, middle, middle] = solved[:, :-1]
    conv.bias[:count] = solved[:, -1]


def _inputs(network: torch.nn.Module, layer: torch.nn.Module, x: Tensor) -> Tensor:
    """What `layer` is given when `network` is given x."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(x)
    finally:
        hook.remove()
    return seen[0]
