"""Files that a run leaves: all or nothing, and one sentence where the disk does not take them."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from extras.training.errors import TrainingFolderError

REMEDY = (
    "free some space or make its folder writable, and run the stage again with --resume "
    "(--steps 1 beside it writes what is there and trains no further)."
)
_OS_ERROR = re.compile(r"os error (\d+)")


def reason(error: Exception) -> str:
    """Why a file could not be written, in a few words; safetensors hides the system's number."""
    if found := _OS_ERROR.search(str(error)):
        return os.strerror(int(found[1])).lower()
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


@contextmanager
def writing(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Around the writing of `what`. Raises TrainingFolderError where it fails."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is no OSError, even for a full disk
        raise TrainingFolderError(
            f"{what} could not be written ({reason(error)}): {remedy}"
        ) from error


def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` in float16."""
    return {name: weight.detach().to("cpu", torch.float16) for name, weight in weights.items()}


def sweep_unfinished(folder: Path, start: str) -> None:
    """Remove what is named `start` and a process's number, unless that one may still write it."""
    for left in folder.iterdir():
        number = left.name.removeprefix(start)
        if number == left.name or not number.isdecimal() or _is_another(int(number)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_another(number: int) -> bool:
    """Whether another process of this number runs, or that cannot be known."""
    if number == os.getpid():
        return False
    if os.name == "nt":  # there, signal 0 is Ctrl+C
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_weights(
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    remedy: str = REMEDY,
) -> None:
    """Write tensors of any device to a safetensors file. Raises TrainingFolderError."""
    whole = {name: w.detach().to("cpu").contiguous() for name, w in weights.items()}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with writing(f"The file {path.name}", remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_unfinished(path.parent, f"{path.name}.")
            save_file(whole, beside, metadata=dict(metadata) if metadata else None)
            beside.replace(path)
        finally:
            if path.parent.is_dir():
                beside.unlink(missing_ok=True)
