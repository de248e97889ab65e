"""Small copies of finished pictures for the strip, made when first asked for and kept on disk."""

import contextlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio
import numpy as np
from PIL import Image

from modules.spec.whole_file import write_whole

logger = logging.getLogger(__name__)

SIDE = 320
QUALITY = 80
FILES_MAX = 2_000  # about 25 MB
PIXELS_MAX = 64 * 1024**2
MIME_TYPE = "image/webp"

Made = TypeVar("Made", bytes, bytes | None)


class Thumbnails:
    """WebP pictures of at most SIDE × SIDE pixels in `folder`, named by their original's hash.

    The folder holds at most `files_max` of them; those used least lately make room. It may be
    deleted at any time. `limiter` bounds how many threads at once make thumbnails for requests.
    """

    def __init__(self, folder: Path, *, files_max: int = FILES_MAX) -> None:
        self.limiter = anyio.CapacityLimiter(2)
        self._folder = folder
        self._files_max = files_max

    def of(self, picture: BinaryIO, sha256: str) -> bytes | None:
        """The thumbnail of `picture`, whose content has the hash `sha256`; None if it has none."""
        return self.kept(sha256, lambda: _shrink(picture))

    def kept(self, name: str, make: Callable[[], Made]) -> bytes | Made:
        """The picture kept as `name`, a plain file name; made and kept if it is not there."""
        path = self._folder / f"{name}.webp"
        try:
            data = path.read_bytes()
            os.utime(path)
            return data
        except OSError:
            made = make()
        if made is not None:
            with contextlib.suppress(OSError):  # a full disk costs time, not the thumbnail
                self._keep(path, made)
        return made

    def _keep(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        write_whole(path, data)

    def _make_room(self) -> None:
        """Remove the older half when the folder is full, so that this is seldom done."""
        if len(os.listdir(self._folder)) < self._files_max:
            return
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                files.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(files)[: len(files) - self._files_max // 2]:
            with contextlib.suppress(OSError):
                path.unlink()


def as_webp(pixels: np.ndarray, *, side: int | None = None, lossless: bool = False) -> bytes:
    """uint8 (H, W, 3) as WebP, shrunk to `side` × `side` at most."""
    image, target = Image.fromarray(pixels), io.BytesIO()
    if side is not None:
        image.thumbnail((side, side))
    if lossless:
        image.save(target, "WEBP", lossless=True, quality=0, method=0)  # quickly, not smallest
    else:
        image.save(target, "WEBP", quality=QUALITY)
    return target.getvalue()


def _shrink(picture: BinaryIO) -> bytes | None:
    """`picture` as a small WebP, or None when it cannot be read or is too large to be ours."""
    target = io.BytesIO()
    try:
        with Image.open(picture, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > PIXELS_MAX:
                return None
            image.thumbnail((SIDE, SIDE))
            image.convert("RGB").save(target, "WEBP", quality=QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.info("a picture has no thumbnail (%s)", type(error).__name__)
        return None
    return target.getvalue()
