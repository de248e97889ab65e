"""Saving a picture: encoded, written beside its place, flushed, then given its name in one step.

A reader never sees half a file, an existing file is never overwritten, and after any failure
nothing is left under the final name. The name holds the time, the task and the index:
`2026-11-21/14-03-59_<task id>_0.png`.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modules.gallery.recipe import Recipe
from modules.spec.errors import DiskFull, OutputFolder, StudioError
from modules.spec.flags import OutputFormat

logger = logging.getLogger(__name__)

_ENCODERS: dict[OutputFormat, dict[str, Any]] = {
    OutputFormat.PNG: {"format": "PNG", "compress_level": 4},
    OutputFormat.JPEG: {
        "format": "JPEG",
        "quality": 95,
        "subsampling": 0,
        "optimize": True,
        "progressive": True,
    },
    OutputFormat.WEBP: {"format": "WEBP", "quality": 95, "method": 4},
}
_NAMES_TRIED = 1_000
_STALE_SECONDS = 3_600
_TRIAL_BYTES = 4_096  # a disk without a free block is full


@dataclass(frozen=True)
class SavedImage:
    """A picture on disk. `relative_path` is below the output folder, with forward slashes."""

    relative_path: str
    sha256: str
    size: int
    width: int
    height: int


def save_image(
    pixels: np.ndarray,
    output_path: Path,
    *,
    task_id: str,
    index: int,
    output_format: OutputFormat = OutputFormat.PNG,
    recipe: Recipe | None = None,
    now: datetime | None = None,
    by_day: bool = True,
) -> SavedImage:
    """Write `pixels` (H, W, 3) uint8 as picture `index` (from 0) of a task.

    recipe: goes into the file as metadata; None writes none. now: local time of the name.
    by_day: put it into a folder of the day below output_path, not into output_path itself.
    Raises DiskFull or OutputFolder; then no file of this call is left.
    """
    data = encode_image(pixels, output_format, recipe)
    when = now or datetime.now()
    stem = f"{when:%H-%M-%S}{_mark(task_id, index)}"
    folder = output_path / f"{when:%Y-%m-%d}" if by_day else output_path
    try:
        path = write_new(folder, stem, output_format.suffix, data)
    except OSError as error:
        # The page counts pictures from 1.
        raise _as_studio_error(error, f"picture {index + 1} could not be saved") from error
    height, width = pixels.shape[:2]
    return SavedImage(
        relative_path=path.relative_to(output_path).as_posix(),
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        width=width,
        height=height,
    )


def require_writable(output_path: Path) -> None:
    """Raise DiskFull or OutputFolder if the output folder, which is made, takes no file now."""
    trial = output_path / f".{secrets.token_hex(8)}.tmp"
    try:
        output_path.mkdir(parents=True, exist_ok=True)
        try:
            _write_flushed(trial, bytes(_TRIAL_BYTES))
        finally:
            _remove_quietly(trial)
    except OSError as error:
        raise _as_studio_error(error, "nothing was painted") from error


def find_saved(output_path: Path, task_id: str, index: int) -> SavedImage | None:
    """Picture `index` of a task if a file of it is there, in a folder of any day.

    For a process that was killed after the file had its name and before that was recorded.
    """
    pattern = re.compile(
        rf"\d\d-\d\d-\d\d{re.escape(_mark(task_id, index))}(-\d+)?\.(png|jpg|webp)"
    )
    for path in sorted(output_path.glob(f"????-??-??/*{_mark(task_id, index)}*")):
        if not pattern.fullmatch(path.name):
            continue
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        relative_path = path.relative_to(output_path).as_posix()
        return SavedImage(relative_path, sha256, len(data), width, height)
    return None


def encode_image(pixels: np.ndarray, output_format: OutputFormat, recipe: Recipe | None) -> bytes:
    """`pixels` (H, W, 3) uint8 as the bytes of a file, with the recipe inside when there is one."""
    options = dict(_ENCODERS[output_format])
    if recipe is not None:
        options |= recipe.save_options(output_format)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Put `data` into a new file `folder/stem + suffix`, or `stem-2`, `stem-3` … if that exists.

    Durable when it returns: the file and the folder's entry are flushed. Raises OSError, and then
    leaves nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{stem}.{secrets.token_hex(4)}.tmp"
    try:
        _write_flushed(temporary, data)
        path = _claim_name(temporary, folder, stem, suffix)
    except BaseException:
        _remove_quietly(temporary)
        raise
    _remove_quietly(temporary)
    try:
        _flush_folder(folder)
    except BaseException:
        _remove_quietly(path)
        raise
    return path


def sweep_temporary_files(output_path: Path) -> int:
    """Remove what a killed process left half-written more than an hour ago; how many that were."""
    removed = 0
    oldest_kept = time.time() - _STALE_SECONDS
    for path in (*output_path.glob(".*.tmp"), *output_path.glob("????-??-??/.*.tmp")):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest_kept:
                path.unlink()
                removed += 1
    return removed


def _mark(task_id: str, index: int) -> str:
    """The part of a file's name that says whose picture it is."""
    return f"_{re.sub(r'[^A-Za-z0-9-]', '-', task_id)}_{index}"


def _write_flushed(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _claim_name(temporary: Path, folder: Path, stem: str, suffix: str) -> Path:
    """Give the finished file its name; a name that is taken is left alone and the next is tried."""
    for number in range(1, _NAMES_TRIED + 1):
        path = folder / (stem + ("" if number == 1 else f"-{number}") + suffix)
        try:
            _move_without_overwriting(temporary, path)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(errno.EEXIST, "every name for the picture is taken")


def _move_without_overwriting(source: Path, target: Path) -> None:
    """Raises FileExistsError when `target` is there. `source` may remain (as a second link)."""
    if os.name == "nt":
        os.rename(source, target)  # on Windows this refuses an existing target
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _reserve_and_replace(source, target)  # FAT and some network disks have no hard links


def _reserve_and_replace(source: Path, target: Path) -> None:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    try:
        os.replace(source, target)
    except BaseException:
        _remove_quietly(target)
        raise


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there; NTFS journals the entry
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a disk that cannot flush folders
            raise
    finally:
        os.close(handle)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        logger.warning("could not remove %s; it can be deleted by hand", path.name)


def _as_studio_error(error: OSError, outcome: str) -> StudioError:
    """The sentence for the page. outcome: what came of it, after "so"."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DiskFull(
            f"The disk with the output folder is full, so {outcome}. Free some space, or start "
            "Easel with --output-path on another disk, and generate again."
        )
    reason = {
        errno.EACCES: "Easel may not write there",
        errno.EPERM: "Easel may not write there",
        errno.EROFS: "it is read-only",
        errno.ENOENT: "it is gone",
        errno.ENOTDIR: "a file stands in its place",
        errno.EEXIST: "a file stands in its place",
        errno.EIO: "the disk reports a fault",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return OutputFolder(
        f"The output folder cannot take files ({reason}), so {outcome}. Mend that, or start "
        "Easel with --output-path at another folder, and generate again."
    )
