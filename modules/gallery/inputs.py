"""Pictures that requests refer to: stored once, by the SHA-256 of their bytes.

    data_path/inputs/ab/ab12…   the file as it was sent

A request names the hash, so that it stays small, repeats for nothing, and means the same picture
for as long as the file is there.
"""

import contextlib
import hashlib
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from modules.gallery.read_image import image_size, read_image
from modules.spec import limits
from modules.spec.errors import DiskFull, LimitError, NotFound, SpecError
from modules.spec.image_prompt import ImagePrompt
from modules.spec.whole_file import write_whole

FIELD = "image_prompts"
UNUSED_SECONDS = 30 * 86_400
PIXELS_READ = 4 * 1024**2
"""More than maps and encoders take; a task may name 32 pictures and regions."""
_HASH = re.compile(r"[0-9a-f]{64}")
_adding = threading.Lock()  # one server writes here; two uploads must not both take the last room


@dataclass(frozen=True, slots=True)
class StoredInput:
    """A picture in the store."""

    image: str
    """SHA-256 of the file, 64 small hex digits."""
    width: int
    height: int


class InputStore:
    """The input pictures below a folder. Safe from any thread and process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, data: bytes) -> StoredInput:
        """Store a picture, if it is one. The same bytes are kept once.

        Raises SpecError for what is no picture, LimitError for one that is too large or where no
        more are kept, DiskFull.
        """
        width, height = image_size(data, FIELD)
        image = hashlib.sha256(data).hexdigest()
        path = self._path(image)
        if not _holds(path, data):  # after a power cut it may be there and empty
            read_image(data, FIELD)  # a sound header may be followed by anything
            with _adding:
                if not _holds(path, data):
                    self._require_room(len(data))
                    self._write(path, data)
        self._touch(image)
        return StoredInput(image, width, height)

    def _touch(self, image: str) -> None:
        """The time of its file is when it was last asked for."""
        with contextlib.suppress(OSError):
            os.utime(self._path(image))

    def has(self, image: str) -> bool:
        """Whether the picture with this hash is there."""
        return bool(_HASH.fullmatch(image)) and self._path(image).is_file()

    def bytes_of(self, image: str) -> bytes:
        """The file as it was sent. Raises NotFound."""
        try:
            if not _HASH.fullmatch(image):
                raise FileNotFoundError
            return self._path(image).read_bytes()
        except OSError:
            raise NotFound("There is no such input picture; send it again.") from None

    def read(self, image: str, *, whole: bool = False) -> np.ndarray:
        """Its pixels, as `read_image` gives them; of a huge picture fewer, in the same ratio,
        unless it is to be whole.

        Raises SpecError if it is gone or damaged.
        """
        try:
            pixels = read_image(self.bytes_of(image), FIELD)
            self._touch(image)
        except NotFound:
            raise missing_input() from None
        high, wide = pixels.shape[:2]
        factor = (PIXELS_READ / (high * wide)) ** 0.5
        if whole or factor >= 1.0:
            return pixels
        size = max(1, round(wide * factor)), max(1, round(high * factor))
        return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))

    def require(self, prompts: tuple[ImagePrompt, ...]) -> None:
        """Raises SpecError unless the picture of every prompt is there."""
        for number, prompt in enumerate(prompts, 1):
            if not self.has(prompt.image):
                raise missing_input(f"The picture of image prompt {number}")
            if prompt.region is not None and not self.has(prompt.region):
                raise missing_input(f"The region of image prompt {number}")
            for image in filter(None, (prompt.image, prompt.region)):
                self._touch(image)

    def _path(self, image: str) -> Path:
        return self._folder / image[:2] / image

    def _require_room(self, size: int) -> None:
        """What nobody has asked for in a month makes room, that of longest ago first."""
        found = []
        for folder in _folders(self._folder):
            for entry in os.scandir(folder):
                if entry.is_file():
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
        used = sum(file_size for _, file_size, _ in found)
        for used_at, file_size, path in sorted(found):
            if used + size <= limits.INPUTS_BYTES or used_at > time.time() - UNUSED_SECONDS:
                break
            with contextlib.suppress(OSError):  # of another's making: it counts on
                os.unlink(path)
                used -= file_size
        if used + size > limits.INPUTS_BYTES:
            raise LimitError(
                f"The input pictures fill their {limits.INPUTS_BYTES // 1024**3} GB; delete old "
                "ones from the inputs folder of the data folder.",
                FIELD,
            )

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data)
        except OSError as error:
            raise DiskFull(
                "The picture could not be stored; make room on the disk of the data folder."
            ) from error


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []


def missing_input(what: str = "The picture of an image prompt") -> SpecError:
    """What to say where a request names a picture that is not stored here."""
    return SpecError(f"{what} is not stored here; send it to /api/inputs first.", FIELD)
