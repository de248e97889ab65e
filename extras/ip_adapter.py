"""IP-Adapter: a picture as a prompt (Ye et al. 2023, arXiv:2308.06721).

`load_ip_adapter` reads an image encoder, a negative embedding and an adapter; `preprocess` turns a
picture into keys and values for each cross-attention layer; `patch_model` puts those into a clone
of the UNet's patcher. Loaded models and the keys and values of pictures are kept by an
`IPAdapterStore`; the functions use a default one.

Plain and "plus" adapters (plus-face among them) of Stable Diffusion 1 and SDXL, and of any network
whose cross-attention the adapter has as many layers for.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from extras.ip_attention import MODES, ImagePrompt, ImagePromptAttention, Mode, sdp, sites_for
from extras.ip_networks import (
    SD_V12_CHANNELS,
    SD_XL_CHANNELS,
    ImageProjModel,
    IPAdapterModel,
    To_KV,
)
from extras.ip_store import ImageConds, IPAdapterStore, WrongImageSize, clip_preprocess
from extras.resampler import Resampler

__all__ = [
    "SD_V12_CHANNELS",
    "SD_XL_CHANNELS",
    "IPAdapterModel",
    "IPAdapterStore",
    "ImageProjModel",
    "ImagePrompt",
    "Resampler",
    "To_KV",
    "WrongImageSize",
    "clip_preprocess",
    "default_store",
    "load_ip_adapter",
    "patch_model",
    "preprocess",
    "sdp",
]


@cache
def default_store() -> IPAdapterStore:
    """The store that the functions of this module use."""
    return IPAdapterStore()


def load_ip_adapter(clip_vision_path: Any, ip_negative_path: Any, ip_adapter_path: Any) -> None:
    """Load what is not loaded yet; a path that is no path (None, say) is left out.

    clip_vision_path: a CLIP image encoder. ip_negative_path: the tokens of "no picture".
    ip_adapter_path: the adapter, by whose path `preprocess` finds it.
    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    default_store().load_ip_adapter(clip_vision_path, ip_negative_path, ip_adapter_path)


def preprocess(img: np.ndarray, ip_adapter_path: Any) -> ImageConds:
    """Keys and values in turn for each layer, of the picture and of no picture, (1, T, C) each.

    img: uint8 (H, W, 3), squashed to the encoder's size. Kept: the same picture costs nothing
    again. Raises KeyError for an adapter that was not loaded.
    """
    return default_store().preprocess(img, ip_adapter_path)


def patch_model(model: Any, tasks: Sequence[Any], *, mode: Mode = "joint") -> Any:
    """A clone of `model` whose cross-attention sees the pictures of `tasks`.

    model: anything with `clone()`, `model_options["transformer_options"]` and
    `model.diffusion_model.current_step`; it stays as it was. tasks: ImagePrompts, or tuples
    (what preprocess gave, stop, weight[, region[, start[, mode]]]). mode: of tasks that name none,
    see ip_attention. Layers that are replaced already keep their replacement. Raises
    UnsupportedModel if the tasks' layers are not those of the network, ValueError for an unknown
    mode.
    """
    prompts = [ImagePrompt(*task) for task in tasks]
    for each in (mode, *(prompt.mode for prompt in prompts if prompt.mode is not None)):
        if each not in MODES:
            raise ValueError(f"Image prompts are {' or '.join(MODES)}, not {each!r}.")
    new_model = model.clone()
    if not prompts:
        return new_model
    network = new_model.model.diffusion_model
    plans = {tuple(k.shape[-1] for k in prompt.conds[0][::2]) for prompt in prompts}
    sites = [sites_for(network, widths) for widths in plans][0]
    pictures = ImagePromptAttention(network, prompts, mode)
    options = dict(new_model.model_options)
    transformer = dict(options.get("transformer_options", {}))
    replacements = dict(transformer.get("patches_replace", {}))
    attn2 = dict(replacements.get("attn2", {}))
    for number, site in enumerate(sites):
        attn2.setdefault(site, pictures.at(number))
    replacements["attn2"] = attn2
    transformer["patches_replace"] = replacements
    options["transformer_options"] = transformer
    new_model.model_options = options
    return new_model
