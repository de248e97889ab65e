"""The picture sizes that a checkpoint paints well, read from the names in its file alone.

A safetensors file may say so in its metadata: `easel.area`, the pixels it was trained on, and
`easel.ratios`, a JSON list such as ["1:1", "3:2"], the default first; or `modelspec.resolution`,
such as 512x512. Otherwise the names of its text encoder tell the family. Nothing else is read, so
this is quick for a file of any size.
"""

import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any

from modules.library.catalog import ModelFile
from modules.library.safetensors_head import HEADER_BYTES, head_of
from modules.spec import limits
from modules.spec.sizes import SD1, SD2, SDXL, SizeTable, parse_ratio

PIXELS_PER_LATENT = 8
RATIOS = 64
_FAMILIES = ((b"cond_stage_model.transformer.", SD1), (b"cond_stage_model.model.", SD2))
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)
_RESOLUTION = re.compile(r"(\d{2,4})x(\d{2,4})")


def model_sizes(file: ModelFile | None) -> SizeTable:
    """The sizes of `file`; SDXL's for one that says nothing or cannot be read."""
    if file is None:
        return SDXL
    if file.path.is_dir():
        return _sizes_of_folder(file)
    head = _head(file)
    metadata = _metadata(head)
    try:
        area = int(metadata.get("easel.area") or _area(metadata.get("modelspec.resolution")))
        ratios = json.loads(metadata.get("easel.ratios", "[]"))
        known = [ratio for ratio in ratios[:RATIOS] if _is_ratio(ratio)]
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
        area, known = 0, []
    by_area = _by_area(area, known)
    return by_area or next((table for name, table in _FAMILIES if name in head), SDXL)


def _by_area(area: int, ratios: Sequence[str] = ()) -> SizeTable | None:
    """Sizes of an area that a file names; None for one that makes no sense."""
    if not limits.SIDE_MIN**2 <= area <= limits.PIXELS_MAX:
        return None
    return SDXL if area == 1024**2 and not ratios else SizeTable.from_area(area, ratios)


def _sizes_of_folder(file: ModelFile) -> SizeTable:
    """A diffusers folder says in its network's settings how many latents a side has."""
    try:
        side = _settings_of_folder(file)["sample_size"] * PIXELS_PER_LATENT
        return _by_area(int(side) ** 2) or SDXL
    except _UNREADABLE:
        return SDXL


def _settings_of_folder(file: ModelFile) -> Any:
    path = file.path / "unet" / "config.json"
    text = path.read_text(encoding="utf-8") if path.stat().st_size <= HEADER_BYTES else ""
    return json.loads(text)


def _head(file: ModelFile) -> bytes:
    """The part of a file that names its tensors; empty for one that cannot be read."""
    try:
        with file.path.open("rb") as stream:
            if stream.read(4) == b"PK\x03\x04":
                return _names_of_pickle(file)
            stream.seek(0)
            return head_of(stream)
    except (OSError, ValueError):
        return b""


def _names_of_pickle(file: ModelFile) -> bytes:
    """The pickle of a file that torch.save wrote, as bytes to search in; nothing is unpickled."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            for info in archive.infolist():
                if info.filename.endswith("/data.pkl") and info.file_size <= HEADER_BYTES:
                    return archive.read(info)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass  # its loading says what is wrong with it
    return b""


def _metadata(head: bytes) -> dict[str, Any]:
    """The text entries in a safetensors header; empty for anything that has none."""
    try:
        header = json.loads(head)
    except (ValueError, RecursionError):
        return {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _area(resolution: Any) -> int:
    """Pixels of "768x512"; 0 for anything else."""
    match = _RESOLUTION.fullmatch(resolution) if isinstance(resolution, str) else None
    return int(match[1]) * int(match[2]) if match else 0


def _is_ratio(text: Any) -> bool:
    try:
        return 1 / 4 <= parse_ratio(str(text)) <= 4
    except ValueError:
        return False
