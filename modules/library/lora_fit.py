"""Whether a LoRA can be for a checkpoint, told from the headers of both before anything runs.

What decides is the width of the text that cross-attention reads, which a LoRA's key and value
layers repeat. Where a LoRA has none of them, its trainer's word on the family does.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from modules.library.catalog import ModelFile
from modules.library.lora_info import (
    FAMILY_OF_WIDTH,
    HEADER_BYTES,
    LoraInfo,
    lora_info,
    read_header,
)

_NETWORK = "model.diffusion_model."
_TEXT_LAYER = "attn2.to_k.weight"
_FAMILY_OF_ENCODER = (  # part of a name in the file → the only width that its family has
    ("cond_stage_model.transformer.", 768),
    ("cond_stage_model.model.", 1024),
    ("conditioner.embedders.1.", 2048),
    ("conditioner.embedders.0.model.", 1280),
)


class _Base(BaseModel):
    """A checkpoint's text width, and its family in words or ''."""

    model_config = ConfigDict(frozen=True)

    width: int | None = None
    family: str = ""


def misfit(lora: ModelFile, checkpoint: ModelFile) -> str:
    """A sentence if `lora` cannot be for `checkpoint`; '' if it can, or if nobody can tell.

    Headers alone are read, and kept in memory until a file changes. Never raises.
    """
    said, base = lora_info(lora), _base(checkpoint)
    if said.text_width is not None and base.width is not None:
        fits = said.text_width == base.width
    else:
        fits = not said.family or not base.family or said.family == base.family
    return "" if fits else _sentence(said, base, checkpoint.name)


def _sentence(said: LoraInfo, base: _Base, checkpoint: str) -> str:
    made_for = said.family
    if not made_for or made_for == base.family:  # its trainer's word and its shapes disagree
        made_for = "a model of another width"
    here = f"{checkpoint} is {base.family}" if base.family else f"{checkpoint} is not"
    wanted = base.family or checkpoint
    link = "and" if base.family else "which"
    return (
        f"{said.name} is made for {made_for}, {link} {here}; choose a LoRA made for {wanted}, or "
        "another checkpoint."
    )


def _base(file: ModelFile) -> _Base:
    try:
        folder = file.path / "unet" / "config.json"
        path = folder if file.path.is_dir() else file.path
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return _Base()


@lru_cache(maxsize=64)
def _read(path: Path, size: int, _time: int) -> _Base:
    if path.suffix == ".json":
        return _of_config(path, size)
    header = read_header(path, size) if path.suffix.lower() == ".safetensors" else None
    width = None if header is None else _width(header)
    encoders = {known for part, known in _FAMILY_OF_ENCODER if _has(header or {}, part)}
    # A network of the same kind with widths of its own is of no family that LoRAs are made for.
    family = FAMILY_OF_WIDTH[width] if width in encoders else ""
    return _Base(width=width, family=family)


def _has(header: Mapping[str, Any], part: str) -> bool:
    return any(name.startswith(part) for name in header)


def _width(header: Mapping[str, Any]) -> int | None:
    for name, tensor in header.items():
        if name.startswith(_NETWORK) and name.endswith(_TEXT_LAYER):
            shape = tensor.get("shape") if isinstance(tensor, dict) else None
            if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[1], int):
                return shape[1]
    return None


def _of_config(path: Path, size: int) -> _Base:
    """Of a diffusers folder, whose network has its settings beside it."""
    try:
        if size > HEADER_BYTES:
            return _Base()
        width = json.loads(path.read_text(encoding="utf-8"))["cross_attention_dim"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return _Base()
    if not isinstance(width, int):
        return _Base()
    return _Base(width=width, family=FAMILY_OF_WIDTH.get(width, ""))
