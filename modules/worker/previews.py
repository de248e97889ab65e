"""Which previews a model gets: a tiny decoder's where there is one, the linear ones otherwise."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.latent_preview import LatentPreviewer
from ldm_patched.taesd.taesd import TaesdPreviewer, load_taesd
from modules.worker.progress import Previewer

if TYPE_CHECKING:
    from ldm_patched.modules.model_management import DevicePolicy

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FAMILY_CHANNELS = 320
"""Of the networks whose latents the released decoders know; small models have their own."""


def make_previewer(unet: Any, folder: Path | None, policy: "DevicePolicy") -> Previewer:
    """The previewer of a model. unet: its ModelPatcher; folder: of tiny decoders (vae_approx).

    A decoder that cannot be used is logged and passed over: a preview is worth no failed task.
    """
    latent_format = unet.model.latent_format
    path = decoder_file(folder, getattr(latent_format, "taesd_decoder_name", None))
    if path is not None and unet.model.diffusion_model.config.model_channels == FAMILY_CHANNELS:
        on_gpu = policy.device.type != "cpu"
        dtype = policy.vae_dtype if on_gpu else torch.float32
        try:
            decoder = load_taesd(path, dtype=dtype, device=policy.device)
        except (EngineError, OSError) as error:
            logger.warning("no previews by %s: %s", path.name, error)
        else:
            if decoder.taesd_decoder is not None:
                return TaesdPreviewer(decoder, latent_format, max_side=512 if on_gpu else 256)
    return LatentPreviewer(latent_format)


def decoder_file(folder: Path | None, name: str | None) -> Path | None:
    """The file of the decoder called `name` in the folder, or None."""
    if folder is None or name is None:
        return None
    files = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
