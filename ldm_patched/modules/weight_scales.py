"""Weights in 8 bits whose scales lie beside them in the file, as `scaled fp8` files have them.

A scale is named `X.scale_weight` or `X.weight_scale`, for the weight `X.weight`: a number to
multiply it by, or one for each of its rows. What else such files say of a layer, and their
marker `scaled_fp8`, is for programs that multiply in 8 bits.
"""

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm_patched.modules.errors import UnsupportedModel

if TYPE_CHECKING:
    from ldm_patched.modules.weight_file import WeightFile

SCALES = (".scale_weight", ".weight_scale")
BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
MARKER = "scaled_fp8"


def find_scales(file: "WeightFile") -> tuple[dict[str, Tensor], frozenset[str]]:
    """(the scales by the names of their weights, all names that are no weights themselves).

    A scale is float32, to be multiplied with the weight as it is. Raises UnsupportedModel for
    weights that are packed or scaled in another way.
    """
    scales: dict[str, Tensor] = {}
    others: set[str] = set()
    for key in file:
        layer, dot, last = key.rpartition(".")
        if last == MARKER:
            others.add(key)
        elif dot + last in (*SCALES, *BESIDE) and (weight := f"{layer}.weight") in file:
            others.add(key)
            if dot + last in SCALES:
                scales[weight] = _scale(file, key, weight)
            elif last == "comfy_quant":
                _require_plain(file, key)
    return scales, frozenset(others)


def _scale(file: "WeightFile", key: str, weight: str) -> Tensor:
    """float32, of a shape that goes with the weight's."""
    outline, scale = file.outline(weight), file.outline(key)
    is_one = scale.numel() == 1
    each_row = scale.shape[:1] == outline.shape[:1] and scale.numel() == len(scale)
    if not (outline.is_floating_point() and scale.is_floating_point() and (is_one or each_row)):
        raise _unsupported(file)
    return file.load(key, torch.float32).reshape(() if is_one else (-1, *(1,) * (outline.ndim - 1)))


def _require_plain(file: "WeightFile", key: str) -> None:
    """Raises UnsupportedModel if a layer's words on its form (JSON) tell of another than fp8."""
    try:
        said = json.loads(bytes(file.load(key).flatten().tolist()))
    except (ValueError, RecursionError, TypeError):
        said = None
    form = said.get("format") if isinstance(said, dict) else None
    if not str(form).startswith("float8_"):
        raise _unsupported(file)


def _unsupported(file: "WeightFile") -> UnsupportedModel:
    return UnsupportedModel(
        f"{file.name} is quantised in a way that is not supported: its weights are packed, or have "
        "scales of an unknown kind. Choose an fp16, bf16 or fp8 version of it."
    )
