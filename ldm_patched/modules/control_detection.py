"""Which control a weight file holds, from names and shapes: its kind, dimensions and layout."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.diffusers_names import RESNET, TOP, block_names
from ldm_patched.modules.model_detection import detect_unet_config

Shapes = Mapping[str, tuple[int, ...]]

PREFIX = "control_model."
HINT_LAYERS = {"conv_in": 0, **{f"blocks.{n}": 2 + 2 * n for n in range(6)}, "conv_out": 14}
"""diffusers' layers of the hint's way down → ours."""
FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
"""By the width of the text."""


def family_of(config: UNetConfig) -> str:
    """Words for the family that a network of this plan belongs to."""
    words = f"networks of text width {config.context_dim}"
    return FAMILIES.get(config.context_dim or 0, words)


def short_names(names: list[str]) -> dict[str, str]:
    """Each name in the file of a full ControlNet → its name in the network here."""
    if any(name.startswith("controlnet_cond_embedding.") for name in names):
        return _from_diffusers(names)
    return {name: name.removeprefix(PREFIX) for name in names}


def detect_control_config(shapes: Shapes) -> tuple[UNetConfig, int] | None:
    """(plan, channels of the picture) of a ControlNet with these names, in the layout here.

    None if it is none. The plan's way up is empty.
    """
    first, hint = shapes.get("input_blocks.0.0.weight"), shapes.get("input_hint_block.0.weight")
    if not first or not hint or len(first) != 4 or "zero_convs.0.0.weight" not in shapes:
        return None
    out = {"out.2.weight": (4, first[0], 3, 3)}  # a UNet has it; the rest is found the same way
    config = detect_unet_config({name: _Shaped(s) for name, s in {**shapes, **out}.items()}, "")
    if config is None:
        return None
    if config.context_dim == 768 and config.num_heads is None:
        config = replace(config, num_heads=8)  # Stable Diffusion 1 counts heads, not their width
    return config, hint[1]


class _Shaped:
    """Something with a shape, for functions that look at nothing else of a tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


# --- diffusers' layout ------------------------------------------------------------------------


def _from_diffusers(names: list[str]) -> dict[str, str]:
    counts = _res_blocks(names)
    # Any depths do: the names of layers do not depend on them.
    depths = (1,) * sum(counts)
    ups = (0,) * sum(n + 1 for n in counts)
    config = UNetConfig(
        channel_mult=(1,) * len(counts),
        num_res_blocks=counts,
        transformer_depth=depths,
        transformer_depth_output=ups,
    )
    places = {theirs: ours for ours, theirs in block_names(config).items()}
    tops = {theirs: ours for ours, theirs in TOP.items()}
    leaves = {theirs: ours for ours, theirs in RESNET.items()}
    return {name: _one_name(name, places, tops, leaves) for name in names}


def _res_blocks(names: list[str]) -> tuple[int, ...]:
    """Residual blocks of each level on the way down."""
    found: dict[int, int] = {}
    for name in names:
        if match := re.match(r"down_blocks\.(\d{1,2})\.resnets\.(\d{1,2})\.", name):
            level, index = int(match[1]), int(match[2])
            found[level] = max(found.get(level, 0), index + 1)
    return tuple(found[level] for level in sorted(found)) or (1,)


def _one_name(
    name: str, places: Mapping[str, str], tops: Mapping[str, str], leaves: Mapping[str, str]
) -> str:
    """Our name of a parameter; the name itself where there is none."""
    module, _, leaf = name.rpartition(".")
    if module in tops:
        return f"{tops[module]}.{leaf}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
        return f"zero_convs.{match[1]}.0.{leaf}"
    if module == "controlnet_mid_block":
        return f"middle_block_out.0.{leaf}"
    hint = HINT_LAYERS.get(module.removeprefix("controlnet_cond_embedding."))
    if hint is not None and module.startswith("controlnet_cond_embedding."):
        return f"input_hint_block.{hint}.{leaf}"
    match = re.match(r"((?:down_blocks\.\d+|mid_block)\.\w+\.\d+)\.(.+)", module)
    if match is None or match[1] not in places:
        return name
    inner = match[2]
    if ".resnets." in match[1]:
        inner = leaves.get(inner, inner)
    elif ".downsamplers." in match[1]:
        inner = "op" if inner == "conv" else inner
    return f"{places[match[1]]}.{inner}.{leaf}"


# --- control-LoRA -----------------------------------------------------------------------------


def is_control_lora(names: Any) -> bool:
    """Whether these are the names of a control-LoRA."""
    return "lora_controlnet" in names or (
        "input_hint_block.0.weight" in names
        and any(name.endswith(".down") for name in names)
        and any(name.endswith(".up") for name in names)
    )
