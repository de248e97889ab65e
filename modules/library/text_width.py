"""How wide the texts are that a checkpoint's network reads, which tells its family.

Adapters, controls and LoRAs are made for one width. Only the header of a safetensors file is read,
or the settings in a diffusers folder.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from modules.library.catalog import ModelFile
from modules.library.lora_info import FAMILY_OF_WIDTH
from modules.library.safetensors_head import HEADER_BYTES, read_header

_NETWORK = "model.diffusion_model."
_TEXT_LAYER = "attn2.to_k.weight"
_WIDTH_OF_ENCODER = (  # part of a name in the file → the only width that its family has
    ("cond_stage_model.transformer.", 768),
    ("cond_stage_model.model.", 1024),
    ("conditioner.embedders.1.", 2048),
    ("conditioner.embedders.0.model.", 1280),
)


class TextWidth(BaseModel):
    """width: None if not known; family: in words, '' for none that LoRAs are made for."""

    model_config = ConfigDict(frozen=True)

    width: int | None = None
    family: str = ""


def text_width(file: ModelFile) -> TextWidth:
    """Of a checkpoint; kept in memory until the file changes. Never raises."""
    try:
        config = file.path / "unet" / "config.json"
        path = config if file.path.is_dir() else file.path
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return TextWidth()


@lru_cache(maxsize=64)
def _read(path: Path, size: int, _time: int) -> TextWidth:
    if path.suffix == ".json":
        return _of_config(path, size)
    header = read_header(path) if path.suffix.lower() == ".safetensors" else None
    width = None if header is None else _width(header)
    encoders = {
        known
        for part, known in _WIDTH_OF_ENCODER
        if any(name.startswith(part) for name in header or ())
    }
    # A network of the same kind with widths of its own is of no family that LoRAs are made for.
    return TextWidth(width=width, family=FAMILY_OF_WIDTH[width] if width in encoders else "")


def _width(header: Mapping[str, Any]) -> int | None:
    for name, tensor in header.items():
        if name.startswith(_NETWORK) and name.endswith(_TEXT_LAYER):
            shape = tensor.get("shape") if isinstance(tensor, dict) else None
            if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[1], int):
                return shape[1]
    return None


def _of_config(path: Path, size: int) -> TextWidth:
    try:
        if size > HEADER_BYTES:
            return TextWidth()
        width = json.loads(path.read_text(encoding="utf-8"))["cross_attention_dim"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return TextWidth()
    if isinstance(width, list) and width:  # one for each level, all alike
        width = width[0]
    if not isinstance(width, int):
        return TextWidth()
    return TextWidth(width=width, family=FAMILY_OF_WIDTH.get(width, ""))
