"""The small picture beside each style: painted by `launch.py make-thumbnails`, else drawn."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from modules.library.swatches import draw_swatch
from modules.prompt.style_files import Style
from modules.spec.whole_file import write_whole

SIDE = 192  # pixels: twice what the page shows, for dense screens
QUALITY = 82


class StylePicture(NamedTuple):
    """A file's bytes and their MIME type."""

    data: bytes
    mime_type: str


class StylePictures:
    """Painted pictures in `folder`, named after what the style says: a changed style has none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version(self, style: Style) -> str:
        """Changes with the picture, for addresses that may be kept for ever."""
        painted = "p" if self.is_painted(style) else "s"
        return painted + _key(style)[:12]

    def is_painted(self, style: Style) -> bool:
        """Whether make-thumbnails has painted this very style."""
        return self._path(style).is_file()

    def read(self, style: Style) -> StylePicture:
        """The painted picture, or a drawing."""
        try:
            return StylePicture(self._path(style).read_bytes(), "image/webp")
        except OSError:
            drawn = draw_swatch(style.name, f"{style.title} {style.prompt}")
            return StylePicture(drawn.encode(), "image/svg+xml")

    def keep(self, style: Style, picture: Path) -> None:
        """Keep a painted picture, cut square and made small. Raises OSError."""
        target = io.BytesIO()
        with Image.open(picture) as image:
            small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE))
        small.save(target, "WEBP", quality=QUALITY)
        write_whole(self._path(style), target.getvalue())

    def _path(self, style: Style) -> Path:
        return self._folder / f"{_key(style)}.webp"


def _key(style: Style) -> str:
    said = "\0".join((style.name, style.prompt, style.negative_prompt))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]
