"""Weight files on disk: what they are by their content, what they hold, and their tensors.

`open_weights(path)` looks at the first bytes, never at the extension. A safetensors header is
checked in full before any tensor is touched; a pickle goes through PyTorch's unpickler of plain
weights, which executes nothing. Files are only ever read.

A `WeightFile` gives a tensor in one of two ways. `mapped` is the file's own memory, without a copy:
right when the precision fits. `load` reads one tensor into its own buffer and casts it: right when
it does not, since then no more than one tensor is held twice, whatever the file's size.
"""

import operator
from collections.abc import Iterator, Mapping, MutableMapping, Set
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.weight_header import (
    DOWNLOAD_AGAIN,
    DTYPES,
    Entry,
    read_header,
)
from ldm_patched.modules.weight_pickle import read_pickle
from ldm_patched.modules.weight_scales import find_scales

AT_A_TIME = 1024 * 1024
"""Bytes that are read before they are cast: so few stay in the processor's cache meanwhile."""


class WeightFile(Mapping[str, Tensor]):
    """The tensors of a file by name; `file[name]` is `mapped(name)`. `name` has no folder in it."""

    name: str
    metadata: Mapping[str, str]
    keyed: Mapping[str, Any]
    """What the tensors are made of, by their names in the file's order."""

    def mapped(self, key: str) -> Tensor:
        """The tensor on the CPU in the file's precision, without a copy where that is possible.

        Writing to it changes this process's copy, never the file.
        """
        raise NotImplementedError

    def load(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """The tensor on the CPU; a float one in `dtype`. memory_format: of a 4-D one."""
        tensor = self.mapped(key)
        return _arrange(_cast(tensor, dtype), memory_format)

    def outline(self, key: str) -> Tensor:
        """A tensor of the same shape and kind of numbers, which need not be read for it."""
        return self.mapped(key)

    def source_of(self, key: str) -> str:  # noqa: ARG002 - of several files only JoinedWeights is
        """The name of the file that has the tensor."""
        return self.name

    def __getitem__(self, key: str) -> Tensor:
        return self.mapped(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keyed)

    def __contains__(self, key: object) -> bool:
        return key in self.keyed

    def __len__(self) -> int:
        return len(self.keyed)


def outline_of(weights: Mapping[str, Any], key: str) -> Any:
    """What has the tensor's shape and dtype; nothing is read for it if `weights` is a file."""
    return weights.outline(key) if isinstance(weights, WeightFile) else weights[key]


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


def _arrange(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor


class TensorDict(WeightFile):
    """The tensors of a pickle, which PyTorch has mapped or read already."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self.metadata = {}
        self.keyed = tensors

    def mapped(self, key: str) -> Tensor:
        return self.keyed[key]


class SafetensorsFile(WeightFile):
    """A safetensors file whose header has been checked."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptModelFile."""
        self.name = path.name
        self._path = path
        self._size = path.stat().st_size
        self.entries, self.metadata = read_header(path)
        self.keyed = self.entries
        self._storage: torch.UntypedStorage | None = None
        self._mapped: dict[str, Tensor] = {}
        self._scratch = torch.empty(AT_A_TIME, dtype=torch.uint8)

    def mapped(self, key: str) -> Tensor:
        if key in self._mapped:
            return self._mapped[key]
        entry = self.entries[key]
        with torch.inference_mode(False):
            if entry.start == entry.end or entry.start % entry.dtype.itemsize:
                # Nothing to map, or misaligned for its type: memory of its own, so not kept here.
                return self._read(entry, torch.empty(entry.shape, dtype=entry.dtype))
            self._mapped[key] = self._map(entry)
        return self._mapped[key]

    def outline(self, key: str) -> Tensor:
        entry = self.entries[key]
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")

    def _map(self, entry: Entry) -> Tensor:
        if self._storage is None:
            try:
                self._storage = torch.UntypedStorage.from_file(
                    str(self._path), shared=False, nbytes=self._size
                )
            except RuntimeError:
                if self._path.stat().st_size < self._size:  # FileNotFoundError if it is gone
                    raise self._changed() from None
                raise
        offset = entry.start // entry.dtype.itemsize
        strides = list(accumulate(entry.shape[:0:-1], operator.mul, initial=1))[::-1]
        return torch.empty(0, dtype=entry.dtype).set_(
            self._storage, offset, entry.shape, strides[: len(entry.shape)]
        )

    def load(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        entry = self.entries[key]
        moves = memory_format is not torch.contiguous_format and _has_area(entry.shape)
        if not moves and (dtype is None or entry.dtype in (dtype, *_INTEGERS)):
            return self.mapped(key)
        kept = entry.dtype if dtype is None or entry.dtype in _INTEGERS else dtype
        with torch.inference_mode(False):
            form = memory_format if moves else torch.contiguous_format
            return self._read(entry, torch.empty(entry.shape, dtype=kept, memory_format=form))

    def _read(self, entry: Entry, target: Tensor) -> Tensor:
        """`target` with the entry's numbers. Raises CorruptModelFile if the file has changed."""
        size = entry.end - entry.start
        if not size:
            return target
        rows = target if target.ndim else target[None]
        row_bytes = size // len(rows)
        step = max(1, AT_A_TIME // row_bytes)
        if self._scratch.numel() < step * row_bytes:
            self._scratch = torch.empty(step * row_bytes, dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                raw = self._scratch[: len(part) * row_bytes]
                self._fill(file, memoryview(raw.numpy()))
                part.copy_(raw.view(entry.dtype).view(part.shape))
        return target

    def _fill(self, file: BinaryIO, view: memoryview) -> None:
        position = 0
        while position < len(view):  # one call reads 2 GB at most
            count = file.readinto(view[position:])
            if not count:
                raise self._changed()
            position += count

    def _changed(self) -> CorruptModelFile:
        return CorruptModelFile(f"{self.name} changed while it was read. Load it again.")


class ScaledWeights(WeightFile):
    """A file's weights multiplied by the scales beside them, in float32 where they have one."""

    def __init__(self, file: WeightFile, scales: Mapping[str, Tensor], left_out: Set[str]) -> None:
        """scales: by the names of their weights; left_out: names that are no weights."""
        self.name, self.metadata = file.name, file.metadata
        self._file, self._scales = file, scales
        self.keyed = dict.fromkeys(key for key in file if key not in left_out)

    def mapped(self, key: str) -> Tensor:
        return self.load(key) if key in self._scales else self._file.mapped(key)

    def load(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        if key not in self._scales:
            return self._file.load(key, dtype, memory_format)
        with torch.inference_mode(False):
            weight = self._file.load(key, torch.float32, memory_format) * self._scales[key]
            return _arrange(_cast(weight, dtype), memory_format)

    def outline(self, key: str) -> Tensor:
        found = self._file.outline(key)
        if key not in self._scales:
            return found
        return torch.empty_like(found, dtype=torch.float32, device="meta")


_INTEGERS = tuple(t for t in DTYPES.values() if not t.is_floating_point)


def _has_area(shape: tuple[int, ...]) -> bool:
    """Whether a 4-D weight lies differently in memory when channels come last."""
    return len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1


# --- Opening ----------------------------------------------------------------------------------


def open_weights(path: str | Path) -> WeightFile:
    """The weight file at `path`, by what it holds rather than by its extension.

    Raises CorruptModelFile, UnsafeModelFile or UnsupportedModel, and OSError (FileNotFoundError
    among them) if the disk does not give it; the file is left as it is.
    """
    file = _open(Path(path))
    scales, left_out = find_scales(file)
    return ScaledWeights(file, scales, left_out) if left_out else file


def _open(path: Path) -> WeightFile:
    if path.is_dir():
        raise UnsupportedModel(f"{path.name} is a folder where a file is wanted. Choose another.")
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{":
        return SafetensorsFile(path)
    if head[:4] == b"PK\x03\x04":
        return TensorDict(path.name, read_pickle(path, is_zip=True))
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return TensorDict(path.name, read_pickle(path, is_zip=False))
    raise _unknown_content(path, head)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text entries in a safetensors file's header; empty for another kind, or for a folder.

    Raises CorruptModelFile or OSError.
    """
    path = Path(path)
    if path.is_dir():
        return {}
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:9] == b"{"
    return dict(read_header(path)[1]) if is_safetensors else {}


def _unknown_content(path: Path, head: bytes) -> CorruptModelFile | UnsupportedModel:
    text = head.lstrip().lower()
    if head[:4] == b"GGUF":
        return UnsupportedModel(
            f"{path.name} is a GGUF file, which is not supported. Use a .safetensors version."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return CorruptModelFile(
            f"{path.name} is a web page, not a model: the download needed a login or the address "
            f"was wrong. {DOWNLOAD_AGAIN}"
        )
    if text.startswith(b"version https://git-lfs"):
        return CorruptModelFile(
            f"{path.name} is only a pointer to the real file, which Git LFS did not fetch. "
            f"{DOWNLOAD_AGAIN}"
        )
    if not head:
        return CorruptModelFile(f"{path.name} is empty. {DOWNLOAD_AGAIN}")
    return CorruptModelFile(f"{path.name} is not a model file. {DOWNLOAD_AGAIN}")


class LazyWeights(MutableMapping[str, Tensor]):
    """Tensors of a file that are read, cast and laid out only when they are asked for.

    A network's loader can take (`pop`) one after the other, so that the file's precision and the
    network's are never in memory together for more than one tensor.
    """

    def __init__(
        self,
        file: WeightFile,
        *,
        prefix: str = "",
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """prefix: only what is under it, still with it in the names."""
        self._file = file
        self._keys = dict.fromkeys(key for key in file if key.startswith(prefix))
        self._dtype = dtype
        self._memory_format = memory_format

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.load(key, self._dtype, self._memory_format)

    def __setitem__(self, key: str, value: Tensor) -> None:
        raise TypeError("Weights that come from a file cannot be replaced here.")

    def __delitem__(self, key: str) -> None:
        del self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)
