"""Weights in a pickle, as torch.save writes it, through PyTorch's unpickler of plain weights.

Nothing in such a file is executed: what it may name is listed here, and does nothing.
"""

import errno
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.errors import CorruptModelFile, UnsafeModelFile
from ldm_patched.modules.weight_header import DTYPES, TENSOR_COUNT, damaged

DISK_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO)
"""What the system says of the disk; with any other OSError PyTorch speaks of the content."""

REPEATS = 4
"""How often the bytes of a pickle may count: tensors of one can share them, or repeat one."""


class Inert:
    """Stands for what trainers leave beside the weights; takes anything and does nothing."""

    def __init__(self, *_: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, _: Any) -> None:
        """Nothing is kept."""


class Named(dict):
    """Stands for a ParameterDict, in which A1111 saved learned words: its parameters by name."""

    def __setstate__(self, state: Any) -> None:
        found = state.get("_parameters") if isinstance(state, dict) else None
        self.update(found if isinstance(found, dict) else {})


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


NAMED = (Named, "torch.nn.modules.container.ParameterDict")


def read_pickle(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    """Tensors of a file that torch.save wrote; nothing in it is executed.

    Raises UnsafeModelFile if it holds more than plain weights, CorruptModelFile if it is broken.
    """
    # By its name torch would take it for safetensors; an open file has none, nor can it be mapped.
    misnamed = path.name.endswith(".safetensors")
    if is_zip:
        _require_unpacked(path)
    try:
        with torch.serialization.safe_globals([*HARMLESS, NAMED]):
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
    return tensors


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
