"""Files that a run leaves: all or nothing, and one sentence where the disk does not take them."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from extras.training.errors import TrainingFolderError

REMEDY = "free some space or make its folder writable, and run the stage again with --resume."
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
            save_file(whole, beside, metadata=dict(metadata) if metadata else None)
            beside.replace(path)
        finally:
            if path.parent.is_dir():
                beside.unlink(missing_ok=True)
