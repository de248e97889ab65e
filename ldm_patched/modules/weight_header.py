"""The header of a safetensors file, checked in full before any tensor is touched.

Limits are far above any real file's, so that a hostile header is refused in little time and memory.
"""

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_patched.modules.errors import CorruptModelFile

HEADER_BYTES = 16 * 1024 * 1024
TENSOR_COUNT = 20_000
DIMENSIONS = 8
KEY_LENGTH = 256
WORD = re.compile(r"<[^\x00-\x20<>]{1,254}>")
"""A learned word in brackets, as diffusers names it; some emoji in one are not printable."""
DUNDER = re.compile(r"__.*__|_{2,3}")
"""What Python's own attributes are called; weights of a layer may have `__` within."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DOWNLOAD_AGAIN = "Download it again."


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file. start, end: its bytes, counted from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries by name and the metadata of a safetensors file, checked in full.

    Raises CorruptModelFile for anything that a sound file of this size cannot hold.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES:
            raise damaged(path, "its header is larger than any real one")
        if 8 + length > size:
            raise _truncated(path)
        raw = file.read(length)
    if raw.count(b'"data_offsets"') > TENSOR_COUNT:
        raise damaged(path, f"it lists more than {TENSOR_COUNT:,} tensors")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header cannot be read") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header cannot be read")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(path, "its metadata is not text")
    if len(header) > TENSOR_COUNT:
        raise damaged(path, f"it lists more than {TENSOR_COUNT:,} tensors")
    entries = {key: _entry(path, key, value, 8 + length) for key, value in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated names. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(path: Path, key: str, value: Any, base: int) -> Entry:
    named = 0 < len(key) <= KEY_LENGTH and (key.isprintable() or WORD.fullmatch(key))
    if not named or any(map(DUNDER.fullmatch, key.split("."))):
        raise damaged(path, "it holds a tensor with an impossible name")
    wrong = damaged(path, "the description of one of its tensors is wrong")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    shape, offsets = value["shape"], value["data_offsets"]
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise damaged(path, "it holds a number format that is not known here")
    if not (isinstance(shape, list) and len(shape) <= DIMENSIONS and all(map(_is_count, shape))):
        raise wrong
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets))):
        raise wrong
    start, end = offsets
    if end - start != math.prod(shape) * dtype.itemsize:
        raise wrong
    return Entry(dtype, tuple(shape), base + start, base + end)


def _check_layout(path: Path, entries: Mapping[str, Entry], base: int, size: int) -> None:
    """Tensors must follow each other without a gap, up to the very end of the file."""
    position = base
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        if entry.start != position:
            raise damaged(path, "its tensors overlap or leave gaps")
        position = entry.end
    if position > size:
        raise _truncated(path)
    if position < size:
        raise damaged(path, "it has more bytes than its tensors")


def damaged(path: Path, why: str) -> CorruptModelFile:
    """The error for a file that is not as it was written."""
    return CorruptModelFile(f"{path.name} is damaged: {why}. {DOWNLOAD_AGAIN}")


def _truncated(path: Path) -> CorruptModelFile:
    return CorruptModelFile(
        f"{path.name} is incomplete: its end is missing, so its download was cut short. "
        f"{DOWNLOAD_AGAIN}"
    )


def count_of(numbers: Set[int]) -> int:
    """How many layers these numbers count from 0. Raises ValueError if one is left out: a number in
    a name can be anything, and as many layers would be made."""
    if numbers and max(numbers) >= len(numbers):
        raise ValueError(f"Layer {len(numbers)} or one before it is missing.")
    return len(numbers)
