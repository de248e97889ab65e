"""The head of a safetensors file: the JSON text that names its tensors. Weights are never read.

What is asked here is what a file says of itself; the loader checks it in full
(ldm_patched/modules/weight_header.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

HEADER_BYTES = 16 * 1024 * 1024  # as much as the loader reads


def head_of(stream: BinaryIO) -> bytes:
    """The text at the start of an open file; empty where no length that a head can have stands.

    A file that ends within its head gives what is there. Raises OSError.
    """
    length = int.from_bytes(stream.read(8), "little")
    return stream.read(length) if 2 <= length <= HEADER_BYTES else b""


def read_header(path: Path) -> Mapping[str, Any] | None:
    """The head of a file as an object; None for one that is not sound or cannot be read."""
    try:
        with path.open("rb") as stream:
            header = json.loads(head_of(stream))
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
