"""Weight files on disk: what they are by their content, what they hold, and their tensors.

`open_weights(path)` looks at the first bytes, never at the extension. A safetensors header is
checked in full before any tensor is touched; a pickle goes through PyTorch's unpickler of plain
weights, which executes nothing. Files are only ever read.

A `WeightFile` gives a tensor in one of two ways. `mapped` is the file's own memory, without a copy:
right when the precision fits. `load` reads one tensor into its own buffer and casts it: right when
it does not, since then no more than one tensor is held twice, whatever the file's size.
"""

import errno
import pickle
import zipfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.errors import CorruptModelFile, UnsafeModelFile, UnsupportedModel
from ldm_patched.modules.weight_header import (
    DOWNLOAD_AGAIN,
    DTYPES,
    TENSOR_COUNT,
    Entry,
    damaged,
    read_header,
)

DISK_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO)
"""What the system says of the disk; with any other OSError PyTorch speaks of the content."""

REPEATS = 4
"""How often the bytes of a pickle may count: tensors of one can share them, or repeat one."""


class WeightFile(Mapping[str, Tensor]):
    """The tensors of a file by name; `file[name]` is `mapped(name)`. `name` has no folder in it."""

    name: str
    metadata: Mapping[str, str]

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

    def __getitem__(self, key: str) -> Tensor:
        return self.mapped(key)


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
        self._tensors = tensors

    def mapped(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)


class SafetensorsFile(WeightFile):
    """A safetensors file whose header has been checked."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptModelFile."""
        self.name = path.name
        self._path = path
        self._size = path.stat().st_size
        self.entries, self.metadata = read_header(path)
        self._storage: torch.UntypedStorage | None = None
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def mapped(self, key: str) -> Tensor:
        entry = self.entries[key]
        if entry.start == entry.end or entry.start % entry.dtype.itemsize:
            # Nothing to map, or misaligned for its type.
            return self._read(entry, torch.empty(entry.end - entry.start, dtype=torch.uint8))
        with torch.inference_mode(False):
            if self._storage is None:
                self._storage = torch.UntypedStorage.from_file(
                    str(self._path), shared=False, nbytes=self._size
                )
            offset = entry.start // entry.dtype.itemsize
            strides = torch.empty(entry.shape, device="meta").stride()
            return torch.empty(0, dtype=entry.dtype).set_(
                self._storage, offset, entry.shape, strides
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
        with torch.inference_mode(False):
            if self._scratch.numel() < entry.end - entry.start:
                self._scratch = torch.empty(entry.end - entry.start, dtype=torch.uint8)
            # One buffer for all: fresh memory for each tensor would cost as much time as reading.
            raw = self._read(entry, self._scratch)
            result = _arrange(_cast(raw, dtype), memory_format)
            return result.clone() if result.data_ptr() == raw.data_ptr() else result

    def _read(self, entry: Entry, buffer: Tensor) -> Tensor:
        """The tensor in `buffer`. Raises CorruptModelFile if the file has changed meanwhile."""
        size = entry.end - entry.start
        if not size:
            return torch.empty(entry.shape, dtype=entry.dtype)
        with self._path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            view, position = memoryview(buffer[:size].numpy()), 0
            while position < size:  # one call reads 2 GB at most
                count = file.readinto(view[position:])
                if not count:
                    raise CorruptModelFile(f"{self.name} changed while it was read. Load it again.")
                position += count
        return buffer[:size].view(entry.dtype).view(entry.shape)


_INTEGERS = tuple(t for t in DTYPES.values() if not t.is_floating_point)


def _has_area(shape: tuple[int, ...]) -> bool:
    """Whether a 4-D weight lies differently in memory when channels come last."""
    return len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1


# --- Pickles ----------------------------------------------------------------------------------


class Inert:
    """Stands for what trainers leave beside the weights; takes anything and does nothing."""

    def __init__(self, *_: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, _: Any) -> None:
        """Nothing is kept."""


# Old checkpoints name these, mostly as keys of a dictionary. Their names are all that is read.
HARMLESS = tuple(
    (Inert, name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    )
)


def _read_pickle(path: Path, *, is_zip: bool) -> WeightFile:
    """Tensors of a file that torch.save wrote; nothing in it is executed.

    Raises UnsafeModelFile if it holds more than plain weights, CorruptModelFile if it is broken.
    """
    # By its name torch would take it for safetensors; an open file has none, nor can it be mapped.
    misnamed = path.name.endswith(".safetensors")
    if is_zip:
        _require_unpacked(path)
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            if is_zip and not misnamed:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeModelFile(
            f"{path.name} holds more than plain weights, so it was not opened: such a file can run "
            "programs. Use a .safetensors version of the model."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken file can raise anything in the unpickler
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise damaged(path, "it is cut short or is not a weight file") from error
    tensors = _tensors_of(content)
    if not tensors:
        raise CorruptModelFile(f"{path.name} holds no weights. Choose another file.")
    if len(tensors) > TENSOR_COUNT:
        raise damaged(path, f"it lists more than {TENSOR_COUNT:,} tensors")
    if sum(tensor.nbytes for tensor in tensors.values()) > REPEATS * path.stat().st_size:
        raise damaged(path, "its tensors are larger than the file")
    return TensorDict(path.name, tensors)


def _require_unpacked(path: Path) -> None:
    """Raises CorruptModelFile for an archive that would grow: torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # its reading says what is wrong with it
    if size > path.stat().st_size:
        raise damaged(path, "it unpacks to more than its own size")


def _tensors_of(content: Any) -> dict[str, Tensor]:
    """The named dense tensors of what a pickle held, out of the wrapper that trainers put on."""
    for wrapper in ("state_dict", "params_ema", "params"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        return {}
    known = set(DTYPES.values())
    if not any(isinstance(value, Tensor) for value in content.values()):
        # Parts in a dictionary each, as IP-Adapters have them: named as in a flat file.
        parts = {part: named for part, named in content.items() if isinstance(named, dict)}
        content = {f"{part}.{key}": v for part, named in parts.items() for key, v in named.items()}
    return {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dtype in known
    }


# --- Opening ----------------------------------------------------------------------------------


def open_weights(path: str | Path) -> WeightFile:
    """The weight file at `path`, by what it holds rather than by its extension.

    Raises CorruptModelFile, UnsafeModelFile or UnsupportedModel, and OSError (FileNotFoundError
    among them) if the disk does not give it; the file is left as it is.
    """
    path = Path(path)
    if path.is_dir():
        raise UnsupportedModel(f"{path.name} is a folder where a file is wanted. Choose another.")
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{":
        return SafetensorsFile(path)
    if head[:4] == b"PK\x03\x04":
        return _read_pickle(path, is_zip=True)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _read_pickle(path, is_zip=False)
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
