"""Whose fault it is when numbers turn invalid: a file's, if it holds invalid ones itself.

Reading every weight to see that would slow each start down, so it is done when a network fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch
from torch import nn

from ldm_patched.modules.errors import NotFinite
from modules.spec.errors import ModelCorrupt, NotANumber

if TYPE_CHECKING:
    from modules.worker.pipeline import LoadedModel


@contextmanager
def blaming_files(model: "LoadedModel") -> Iterator[None]:
    """Turn NotFinite and NotANumber into ModelCorrupt if a file of `model` has broken weights."""
    try:
        yield
    except (NotFinite, NotANumber) as error:
        broken = broken_part(model)
        if broken is None:
            raise
        name, part = broken
        raise ModelCorrupt(
            f"{name} is damaged: weights of its {part} are no valid numbers. Download it again, "
            "or choose another file."
        ) from error


def broken_part(model: "LoadedModel") -> tuple[str, str] | None:
    """(file, part in words) of the first part with a weight that is not finite, or None."""
    vae_file = model.name if model.vae_stamp is None else PurePath(model.vae_stamp[0]).name
    parts: tuple[tuple[str, str, nn.Module], ...] = (
        (model.name, "diffusion network", model.unet.model),
        (model.name, "text encoders", model.clip.cond_stage_model),
        (vae_file, "VAE", model.vae.first_stage_model),
    )
    return next(((name, part) for name, part, module in parts if not is_sound(module)), None)


@torch.inference_mode()
def is_sound(module: nn.Module) -> bool:
    """Whether every weight is a finite number. Reads all of them."""
    return all(bool(torch.isfinite(p.float()).all()) for p in module.parameters())
