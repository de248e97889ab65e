"""How a family's latents are scaled between its VAE and its diffusion network."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LatentFormat:
    """Latents times one factor. `channels` is their number of channels."""

    scale_factor: float = 1.0
    channels: int = 4
    taesd_decoder_name: str | None = None
    interposer_name: str | None = None  # of its VAE's latents, in the names of interposer files

    def process_in(self, latent: Tensor) -> Tensor:
        """What the VAE encodes to → what the network is trained on."""
        return latent * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        """What the network gives → what the VAE decodes."""
        return latent / self.scale_factor


class SD15(LatentFormat):
    """Stable Diffusion 1 and 2."""

    scale_factor = 0.18215
    taesd_decoder_name = "taesd_decoder"
    interposer_name = "v1"
    # The linear fit that K. Turner published for Stable Diffusion 1.4: R, G, B of each channel.
    latent_rgb_factors = (
        (0.298, 0.207, 0.208),
        (0.187, 0.286, 0.173),
        (-0.158, 0.189, 0.264),
        (-0.184, -0.271, -0.473),
    )


class SDXL(LatentFormat):
    """Stable Diffusion XL, base and refiner."""

    scale_factor = 0.13025
    taesd_decoder_name = "taesdxl_decoder"
    interposer_name = "xl"


class SD_X4(LatentFormat):  # noqa: N801 - the field's name
    """The ×4 upscaler of Stable Diffusion 2."""

    scale_factor = 0.08333


PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
PLAYGROUND_STD = (8.4927, 5.9022, 6.5498, 5.2299)


class SDXL_Playground_2_5(LatentFormat):  # noqa: N801 - the field's name
    """Playground 2.5: each channel is centred and scaled by its own statistics."""

    scale_factor = 0.5
    taesd_decoder_name = "taesdxl_decoder"
    interposer_name = "xl"

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        """mean, std: of the four channels, as the file gives them; None: the published ones."""
        self.latents_mean = torch.tensor(mean or PLAYGROUND_MEAN).view(1, 4, 1, 1)
        self.latents_std = torch.tensor(std or PLAYGROUND_STD).view(1, 4, 1, 1)

    def process_in(self, latent: Tensor) -> Tensor:
        mean, std = self.latents_mean.to(latent), self.latents_std.to(latent)
        return (latent - mean) * self.scale_factor / std

    def process_out(self, latent: Tensor) -> Tensor:
        mean, std = self.latents_mean.to(latent), self.latents_std.to(latent)
        return latent * std / self.scale_factor + mean
