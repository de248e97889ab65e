"""Which model a state dict holds, from the names and shapes of its weights alone."""

import re
from collections.abc import Mapping
from typing import Any

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.supported_models import BASE, MODELS, UNET_PREFIX
from ldm_patched.modules.weight_file import outline_of
from ldm_patched.modules.weight_header import count_of

Shapes = Mapping[str, tuple[int, ...]]
SD1_HEADS = 8
"""No shape tells the number of heads; where projections are convolutions there are eight."""
KNOWN = "Stable Diffusion 1, 2 or SDXL"


def shapes_under(state_dict: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Names without the prefix, and shapes, of what is under it."""
    return {
        key[len(prefix) :]: tuple(outline_of(state_dict, key).shape)
        for key in state_dict
        if key.startswith(prefix)
    }


def _depth(shapes: Shapes, block: str) -> int:
    """Transformer blocks of the SpatialTransformer with the name `block`; 0 if there is none."""
    pattern = re.compile(re.escape(block) + r"\.transformer_blocks\.(\d+)\.")
    return count_of({int(m.group(1)) for name in shapes if (m := pattern.match(name))})


FIRST_ATTENTION = re.compile(r"(?!.*time_stack).*\.attn1\.to_k\.weight")


def _context_only(shapes: Shapes) -> tuple[int, ...]:
    """Widths at which the first attention does not read what it adds to."""
    found = {shape for name, shape in shapes.items() if FIRST_ATTENTION.fullmatch(name)}
    return tuple(sorted(shape[0] for shape in found if shape[0] != shape[1]))


RESAMPLING = re.compile(r"(input_blocks\.\d+\.0\.op|output_blocks\.\d+\.\d\.conv)\.weight")


def _levels(shapes: Shapes, *, conv_resample: bool) -> tuple[list[int], list[int], list[int]]:
    """(residual blocks of each level, channels of each level, depth after each such block)."""
    counts, channels, depths = [0], [0], []
    number = 1
    while True:
        block, after = f"input_blocks.{number}", f"input_blocks.{number + 1}"
        if f"{block}.0.op.weight" in shapes or (
            not conv_resample
            and f"{block}.0.out_layers.3.weight" not in shapes
            and f"{after}.0.out_layers.3.weight" in shapes
        ):
            counts.append(0)
            channels.append(0)
        elif f"{block}.0.out_layers.3.weight" in shapes:
            counts[-1] += 1
            channels[-1] = shapes[f"{block}.0.out_layers.3.weight"][0]
            depths.append(_depth(shapes, f"{block}.1"))
        else:
            return counts, channels, depths
        number += 1


def _middle_depth(shapes: Shapes) -> int | None:
    if not any(name.startswith("middle_block.") for name in shapes):
        return None
    return _depth(shapes, "middle_block.1")


def detect_unet_config(
    state_dict: Mapping[str, Any], prefix: str = UNET_PREFIX
) -> UNetConfig | None:
    """The dimensions of the UNet under `prefix`; None if there is no UNet of the known plan."""
    shapes = shapes_under(state_dict, prefix)
    first, last = shapes.get("input_blocks.0.0.weight"), shapes.get("out.2.weight")
    time_embed = shapes.get("time_embed.0.weight")
    if not (first and last and time_embed) or len(first) != 4 or len(last) != 4:
        return None
    base = first[0]
    conv_resample = any(map(RESAMPLING.fullmatch, shapes))
    counts, channels, depths = _levels(shapes, conv_resample=conv_resample)
    if 0 in counts or any(c % base for c in channels):
        return None
    ups = range(sum(n + 1 for n in counts))
    contexts = {s[-1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight")}
    projections = {len(s) for name, s in shapes.items() if name.endswith(".proj_in.weight")}
    if len(contexts) > 1 or len(projections) > 1:
        return None
    label, levels = shapes.get("label_emb.0.0.weight"), shapes.get("label_emb.weight")
    told = shapes.get("time_embed.cond_proj.weight", (0, 0))
    linear = projections != {4}
    return UNetConfig(
        in_channels=first[1],
        out_channels=last[0],
        model_channels=base,
        channel_mult=tuple(c // base for c in channels),
        num_res_blocks=tuple(counts),
        transformer_depth=tuple(depths),
        transformer_depth_middle=_middle_depth(shapes),
        projects_middle=_middle_depth(shapes) == 0 and "middle_block.1.proj_in.weight" in shapes,
        transformer_depth_output=tuple(_depth(shapes, f"output_blocks.{n}.1") for n in ups),
        context_dim=next(iter(contexts), None),
        num_classes="sequential" if label else levels[0] if levels else None,
        context_only_widths=_context_only(shapes),
        adm_in_channels=label[1] if label else 0,
        time_embed_dim=time_embed[0],
        guidance_dim=told[1],
        use_linear_in_transformer=linear,
        conv_resample=conv_resample,
        video=any(".time_stack." in name for name in shapes),
        num_heads=SD1_HEADS if levels or not linear else None,
    )


def model_config_from_unet(state_dict: Mapping[str, Any], prefix: str = UNET_PREFIX) -> BASE | None:
    """The family and dimensions of the UNet under `prefix`; None if it is not a known one."""
    unet_config = detect_unet_config(state_dict, prefix)
    if unet_config is None:
        return None
    families = [family for family in MODELS if family.matches(unet_config)]
    # Widths of two families can coincide, of a small base and a refiner for one: the text encoders
    # beside the network tell them apart.
    complete = [family for family in families if has_text_encoders(state_dict, family)]
    return next((family(unet_config) for family in complete or families), None)


def has_text_encoders(state_dict: Mapping[str, Any], family: type[BASE]) -> bool:
    """Whether each text encoder of `family` has weights in `state_dict`."""
    prefixes = family.text_encoder_prefixes.values()
    return all(any(key.startswith(prefix) for key in state_dict) for prefix in prefixes)


def require_model_config(state_dict: Mapping[str, Any], prefix: str = UNET_PREFIX) -> BASE:
    """As model_config_from_unet. Raises UnsupportedModel, with what was found, instead of None."""
    unet_config = detect_unet_config(state_dict, prefix)
    if unet_config is None:
        raise UnsupportedModel(
            f"This file holds no diffusion network of a known plan; choose a checkpoint of {KNOWN}."
        )
    config = model_config_from_unet(state_dict, prefix)
    if config is None:
        known = ", ".join(m.name for m in MODELS)
        raise UnsupportedModel(
            f"This checkpoint's network ({unet_config.model_channels} channels, text width "
            f"{unet_config.context_dim}) is of no supported family; those are: {known}."
        )
    return config
