"""The picture sizes that a checkpoint paints well, read from its file's header alone.

A safetensors file may say so in its metadata: `easel.area`, the pixels it was trained on, and
`easel.ratios`, a JSON list such as ["1:1", "3:2"], the default first. Nothing else is read, so
this is quick for a file of any size.
"""

import json
from typing import Any

from modules.library.catalog import ModelFile
from modules.spec import limits
from modules.spec.sizes import SDXL, SizeTable, parse_ratio

HEADER_BYTES = 100 * 1024 * 1024


def model_sizes(file: ModelFile | None) -> SizeTable:
    """What `file` says of its sizes; SDXL's for a file that says nothing or cannot be read."""
    metadata = _metadata(file) if file else {}
    try:
        area = int(metadata.get("easel.area", ""))
        ratios = json.loads(metadata.get("easel.ratios", "[]"))
        known = [ratio for ratio in ratios if _is_ratio(ratio)]
    except (TypeError, ValueError):
        return SDXL
    if not limits.SIDE_MIN**2 <= area <= limits.PIXELS_MAX:
        return SDXL
    return SizeTable.from_area(area, known)


def _metadata(file: ModelFile) -> dict[str, Any]:
    """The text entries in a safetensors header; empty for anything that has none."""
    try:
        with file.path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(HEADER_BYTES, file.size):
                return {}
            header = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError):
        return {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _is_ratio(text: Any) -> bool:
    try:
        return 1 / 4 <= parse_ratio(str(text)) <= 4
    except ValueError:
        return False
