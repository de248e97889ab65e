"""Whose fault it is when numbers turn invalid: a file's, if it holds invalid ones itself.

Reading every weight to see that would slow each start down, so it is done when a network fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

from torch import nn

from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.utils import is_sound, not_numbers
from modules.spec.errors import ModelCorrupt, NotANumber

if TYPE_CHECKING:
    from modules.worker.pipeline import LoadedModel


@contextmanager
def blaming_files(*models: "LoadedModel | None") -> Iterator[None]:
    """Turn NotFinite and NotANumber into ModelCorrupt if a file of these has broken weights."""
    try:
        yield
    except (NotFinite, NotANumber) as error:
        found = (broken_part(model) for model in models if model is not None)
        broken = next((part for part in found if part is not None), None)
        if broken is None:
            raise
        name, part = broken
        raise ModelCorrupt(str(not_numbers(name, part))) from error


def broken_part(model: "LoadedModel") -> tuple[str, str] | None:
    """(file, part in words) of the first part with a weight that is not finite, or None."""
    vae_stamp = model.vae_stamp or model.spare_stamp
    vae_file = model.name if vae_stamp is None else PurePath(vae_stamp[0]).name
    apart = {PurePath(stamp[0]).name for stamp in model.text_stamps}
    parts: list[tuple[str, str, nn.Module]] = [(model.name, "diffusion network", model.unet.model)]
    for name, encoder in model.clip.cond_stage_model.named_children():
        own = apart & model.clip.sources.get(name, frozenset())
        parts.append((min(own, default=model.name), "text encoders", encoder))
    parts.append((vae_file, "VAE", model.vae.first_stage_model))
    return next(((name, part) for name, part, module in parts if not is_sound(module)), None)
