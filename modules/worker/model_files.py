"""What may happen to a model file while it is read, in words for a person."""

import contextlib
from collections.abc import Iterable, Iterator

from modules.library.catalog import ModelFile
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from modules.worker.failures import is_out_of_memory

FileStamp = tuple[str, int, int]


def _other(file: ModelFile) -> str:
    """What else to do about a file that cannot be read."""
    if file.kind is ModelFolder.LORAS:
        return "take the LoRA out of the list and the prompt"
    if file.kind in (ModelFolder.CONTROLNET, ModelFolder.IPADAPTER, ModelFolder.CLIP_VISION):
        return "take out the image prompts that need it"
    if file.kind is ModelFolder.VAE:
        return "choose another VAE"
    return "choose another checkpoint"


def _meant(error: OSError, file: ModelFile, others: Iterable[ModelFile]) -> ModelFile:
    """The one of `others` that the error is about, else `file`."""
    return next((other for other in others if str(other.path) == str(error.filename)), file)


@contextlib.contextmanager
def reading(file: ModelFile, *others: ModelFile) -> Iterator[None]:
    """Turn what the disk says into ModelMissing or ModelCorrupt; the engine's errors pass.

    others: files that are read as well; one is named if the disk says that it is that one.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        file = _meant(error, file, others)
        raise ModelMissing(
            f"{file.name} was there a moment ago and is gone now; put it back and press Refresh, "
            f"or {_other(file)}."
        ) from None
    except PermissionError as error:
        file = _meant(error, file, others)
        raise ModelCorrupt(
            f"{file.name} may not be read by Easel; change the file's permissions, or "
            f"{_other(file)}."
        ) from error
    except OSError as error:
        if is_out_of_memory(error):
            raise
        file = _meant(error, file, others)
        raise ModelCorrupt(
            f"{file.name} cannot be read from the disk; check the disk and copy the file there "
            f"again, or {_other(file)}."
        ) from error


def missing_part(file: ModelFile, part: str, folder: str) -> ModelUnsupported:
    """The error for a checkpoint that lacks something to paint with, to be put into `folder`."""
    choose = " and choose it in the VAE list" if folder == ModelFolder.VAE else ""
    return ModelUnsupported(
        f"{file.name} holds no {part}, so it cannot paint by itself; put a file with its {part} "
        f"into models/{folder}{choose}, or choose a complete checkpoint."
    )


def stamp_of(file: ModelFile) -> FileStamp:
    """Path, size and time of a file's content as it is now; of a folder's, all told.

    Raises as `reading`.
    """
    with reading(file):
        parts = sorted(file.path.glob("*/*")) if file.path.is_dir() else ()
        stats = [path.stat() for path in (file.path, *parts)]
    newest = max(status.st_mtime_ns for status in stats)
    return str(file.path), sum(status.st_size for status in stats), newest


def stamps_of(files: Iterable[ModelFile]) -> dict[FileStamp, ModelFile]:
    """Those of the files that the disk gives, by their stamps."""
    found = {}
    for file in files:
        with contextlib.suppress(ModelMissing, ModelCorrupt):
            found[stamp_of(file)] = file
    return found


def size_in_words(size: int) -> str:
    """74 MB, 6.9 GB: what a person expects to read."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
