"""What a LoRA file says of itself: base family, trigger words, title and a small picture.

Only the header of a safetensors file is read, never its weights, and never more than
16 MiB of it. Trainers write `ss_…` (kohya's) and `modelspec.…` (the Stability model
specification) entries into it; where they say nothing of the family, the shapes of the tensors
do. Files of other kinds say nothing.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from modules.library.catalog import ModelFile
from modules.library.safetensors_head import read_header

_WORDS = 12  # trigger words that are told
_WORD_CHARACTERS = 80
_PICTURE_CHARACTERS = 400_000
_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
_SAID_FAMILIES = (  # beginnings of what trainers write, longest first
    ("stable-diffusion-xl", "SDXL"),
    ("stable-diffusion-v1", "SD 1.x"),
    ("stable-diffusion-v2", "SD 2.x"),
    ("stable-diffusion-3", "SD 3"),
    ("stable-diffusion-v3", "SD 3"),
    ("flux", "Flux"),
    ("sdxl", "SDXL"),
    ("sd_1", "SD 1.x"),
    ("sd_v1", "SD 1.x"),
    ("sd1", "SD 1.x"),
    ("sd_2", "SD 2.x"),
    ("sd_v2", "SD 2.x"),
    ("sd3", "SD 3"),
)
# Width of the text that cross-attention reads: what its key and value layers take in.
FAMILY_OF_WIDTH = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}
_TEXT_LAYER = re.compile(r"attn2[._]to_[kv][._].*(?:lora_down|lora_A|lora\.down)\.")


class LoraInfo(BaseModel):
    """What the page tells of a LoRA. readable: whether the file has a sound header at all.

    triggers: words that call for what it has learned, the weightiest first. picture: a data
    address, or ''. text_width: of the text that the layers which it changes read, None if it
    changes none of those.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    title: str = ""
    family: str = ""
    triggers: tuple[str, ...] = ()
    picture: str = ""
    text_width: int | None = None
    readable: bool = True


def lora_info(file: ModelFile) -> LoraInfo:
    """What `file` says of itself; kept in memory until the file changes. Never raises."""
    try:
        status = file.path.stat()
    except OSError:
        return LoraInfo(name=file.name, size=file.size, readable=False)
    return _read(file.name, file.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _read(name: str, path: Path, size: int, _time: int) -> LoraInfo:
    if path.suffix.lower() != ".safetensors":
        return LoraInfo(name=name, size=size)
    header = read_header(path)
    if header is None:
        return LoraInfo(name=name, size=size, readable=False)
    entries = header.get("__metadata__")
    entries = entries if isinstance(entries, dict) else {}
    said = {k: v for k, v in entries.items() if isinstance(v, str)}
    picture = said.get("modelspec.thumbnail", "")
    width = _text_width(header)
    return LoraInfo(
        name=name,
        size=size,
        title=_line(said.get("modelspec.title") or said.get("ss_output_name", "")),
        family=_family(said) or FAMILY_OF_WIDTH.get(width or 0, ""),
        triggers=_triggers(said),
        picture=picture if _is_picture(picture) else "",
        text_width=width,
    )


def _family(said: Mapping[str, str]) -> str:
    for key in ("modelspec.architecture", "ss_base_model_version"):
        word = said.get(key, "").lower()
        found = next((name for start, name in _SAID_FAMILIES if word.startswith(start)), "")
        if found:
            return found
    return ""


def _text_width(header: Mapping[str, Any]) -> int | None:
    for name, tensor in header.items():
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if _TEXT_LAYER.search(name) and isinstance(shape, list) and len(shape) >= 2:
            return shape[1] if isinstance(shape[1], int) else None
    return None


def _triggers(said: Mapping[str, str]) -> tuple[str, ...]:
    """What the author names, else the tags that most training pictures had."""
    phrase = said.get("modelspec.trigger_phrase", "")
    words = [line for part in phrase[:4_000].split(",") if (line := _line(part))]
    if not words:
        words = [line for tag in _common_tags(said) if (line := _line(tag))]
    return tuple(dict.fromkeys(words))[:_WORDS]


def _common_tags(said: Mapping[str, str]) -> list[str]:
    """Tags of kohya's {folder: {tag: count}} by how often they were seen."""
    try:
        folders = json.loads(said.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag] += count
    return [tag for tag, _ in counts.most_common(_WORDS * 2)]


def _line(text: str) -> str:
    """One short line without control characters."""
    words = " ".join(text[: 4 * _WORD_CHARACTERS].split())
    return "".join(char for char in words if char.isprintable())[:_WORD_CHARACTERS]


def _is_picture(text: str) -> bool:
    return len(text) <= _PICTURE_CHARACTERS and _PICTURE.fullmatch(text) is not None
