"""A folder of pictures with captions as a source of groups, for LoRAs of one's own.

Beside `cat.png` lies `cat.txt` with its caption; a picture without one has an empty caption. Each
picture is scaled and cut to the nearest of the sizes that the model was trained on.
"""

import codecs
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from extras.training.caption_tokens import LENGTH, caption_ids, framed
from extras.training.errors import TrainingFolderError
from extras.training.pages import PageGroup, nearest
from extras.training.scenes.scene import SIZES

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on broken files; SyntaxError is for damaged chunks of PNG, and EXIF."""


class Pictured(NamedTuple):
    """A picture's file name, its caption, the (width, height) that it is brought to, and the
    SHA-256 of its file."""

    name: str
    caption: str
    size: tuple[int, int]
    digest: str


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """Groups of pictures of one size; see GroupSource. trigger: words put before each caption."""

    folder: str
    pictures: tuple[Pictured, ...]
    group: int = 4
    seed: int = 0
    trigger: str = ""

    def group_size(self, number: int) -> tuple[int, int]:
        """(width, height) of a group: sizes come as often as pictures have them."""
        counts = Counter(picture.size for picture in self.pictures)
        sizes = sorted(counts)
        rng = Random(f"size {self.seed} {number}")
        return rng.choices(sizes, [counts[size] for size in sizes])[0]

    def words(self, picture: Pictured) -> str:
        """What is told of a picture."""
        return ", ".join(part for part in (self.trigger, picture.caption) if part)

    def prompts(self, count: int) -> tuple[str, ...]:
        """The first so many different words of the pictures; none at all are one empty prompt."""
        told = dict.fromkeys(filter(None, map(self.words, self.pictures)))
        return tuple(told)[:count] or ("",)

    def draw_group(self, number: int) -> PageGroup:
        """Random pictures of one size, each with its caption."""
        size, rng = self.group_size(number), Random(f"pictures {self.seed} {number}")
        fitting = [picture for picture in self.pictures if picture.size == size]
        images, tokens, numbers = [], [], []
        for picture in (rng.choice(fitting) for _ in range(self.group)):
            image, six = fitted(read_picture(Path(self.folder) / picture.name), size, rng)
            images.append(image)
            numbers.append(six)
            tokens.append(framed(caption_ids(self.words(picture))))
        return PageGroup(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.array(tokens, np.int32).reshape(self.group, 1, LENGTH)),
            torch.tensor(numbers, dtype=torch.int32),
            torch.zeros(self.group, 0, dtype=torch.uint8),
            torch.zeros(self.group, 0, 0, dtype=torch.uint8),
            torch.zeros(self.group, 0, 0, dtype=torch.uint8),
        )


def open_folder(
    folder: Path, *, group: int = 4, seed: int = 0, trigger: str = "",
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> PictureFolder:  # fmt: skip
    """The pictures of a folder. sizes: (width, height) that the model was trained on.

    Raises TrainingFolderError if there are none, or one or its caption cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise TrainingFolderError(
            f"The folder of pictures {folder.name!r} {what}: name one that holds them with "
            "--pictures."
        )
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise TrainingFolderError(
            f"The folder {folder.name!r} holds no pictures: put PNG, JPEG or WebP files there, "
            "each with a text file of the same name for its caption."
        )
    found = []
    for path in files:
        height, width = read_picture(path).shape[:2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(Pictured(path.name, _caption(path), nearest(width, height, sizes), digest))
    return PictureFolder(
        folder=str(folder), pictures=tuple(found), group=group, seed=seed, trigger=trigger
    )


def _caption(path: Path) -> str:
    """In UTF-8 or, with its mark, UTF-16. Raises TrainingFolderError."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ""
    try:
        data = beside.read_bytes()
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise TrainingFolderError(
            f"The caption {beside.name} in {path.parent.name!r} cannot be read as UTF-8: save it "
            "as a text file in UTF-8, or remove it."
        ) from error
    return " ".join(text.split())


def read_picture(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), the right way up, on white. Raises TrainingFolderError."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a grey pixel: Pillow would cut it off at 255
                grey = np.asarray(image).clip(0, 65_535) // 257
                image = Image.fromarray(grey.astype(np.uint8))
            image = image.convert("RGBA")
    except BROKEN as error:
        raise TrainingFolderError(
            f"The picture {path.name} in {path.parent.name!r} cannot be read: mend or remove it."
        ) from error
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def fitted(
    image: np.ndarray, size: tuple[int, int], rng: Random
) -> tuple[np.ndarray, tuple[int, ...]]:
    """`image` scaled to cover `size`, (width, height), and cut at a random place.

    The second is what the model is told: original height and width, crop top and left, target
    height and width. The original is that of the file, before any scaling (SDXL, arXiv:2307.01952,
    section 2.2); the crop is of the scaled picture.
    """
    width, height = size
    original = image.shape[:2]
    scale = max(width / original[1], height / original[0])
    large = (max(width, round(original[1] * scale)), max(height, round(original[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, large, interpolation=way)
    left, top = rng.randrange(large[0] - width + 1), rng.randrange(large[1] - height + 1)
    piece = image[top : top + height, left : left + width]
    return piece, (*original, top, left, height, width)
