"""How a family's latents are scaled between its VAE and its diffusion network."""

import torch
from torch import Tensor


class LatentFormat:
    """Latents times one factor. `channels` is their number of channels."""

    scale_factor: float = 1.0
    channels: int = 4
    taesd_decoder_name: str | None = None

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


class SDXL(LatentFormat):
    """Stable Diffusion XL, base and refiner."""

    scale_factor = 0.13025
    taesd_decoder_name = "taesdxl_decoder"


class SDXL_Playground_2_5(LatentFormat):  # noqa: N801 - the field's name
    """Playground 2.5: each channel is centred and scaled by its own statistics."""

    scale_factor = 0.5
    taesd_decoder_name = "taesdxl_decoder"

    def __init__(self) -> None:
        self.latents_mean = torch.tensor([-1.6574, 1.886, -1.383, 2.5155]).view(1, 4, 1, 1)
        self.latents_std = torch.tensor([8.4927, 5.9022, 6.5498, 5.2299]).view(1, 4, 1, 1)

    def process_in(self, latent: Tensor) -> Tensor:
        mean, std = self.latents_mean.to(latent), self.latents_std.to(latent)
        return (latent - mean) * self.scale_factor / std

    def process_out(self, latent: Tensor) -> Tensor:
        mean, std = self.latents_mean.to(latent), self.latents_std.to(latent)
        return latent * std / self.scale_factor + mean


class SD_X4(LatentFormat):  # noqa: N801 - the field's name
    """The ×4 upscaler of Stable Diffusion 2."""

    scale_factor = 0.08333
