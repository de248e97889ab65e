"""A picture from outside, read within bounds: bytes in, pixels out, or a sentence why not.

Nothing is decoded before its size is known. Whatever the file's kind (palette, CMYK, 16 bits,
turned by EXIF, animated, transparent), what comes out is upright 8-bit RGB of the first frame.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

from modules.gallery.metadata.carriers import BROKEN_FILE
from modules.spec import limits
from modules.spec.errors import LimitError, SpecError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
WHITE = (255, 255, 255, 255)
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TURNED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Texts that may say which side is up."""
BAND = 64
"""Rows that are turned into pixels at a time."""


def read_image(source: bytes | Path, field: str = "") -> np.ndarray:
    """uint8 (H, W, 3), RGB. field: the TaskSpec field that a complaint is about.

    What is transparent shows white. Raises SpecError for what is no picture or shows nothing,
    LimitError for one that is too large, OSError if a path cannot be read.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with _opened(data, field) as image:
            return _pixels(image, field)
    except (SpecError, LimitError, MemoryError):
        raise
    except BROKEN_FILE:
        raise _no_picture(field) from None


def image_size(data: bytes, field: str = "") -> tuple[int, int]:
    """(width, height) as `read_image` would give them, without decoding. Raises as it does."""
    try:
        with _opened(data, field) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except (SpecError, LimitError, MemoryError):
        raise
    except BROKEN_FILE:
        raise _no_picture(field) from None


def image_type(data: bytes) -> str:
    """Media type of a picture that `read_image` reads; of anything else, that of bytes."""
    try:
        with Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS) as image:
            kind = str(image.format).lower()
            return f"image/{'jpeg' if kind == 'mpo' else kind}"  # what phones put behind a JPEG
    except BROKEN_FILE:
        return "application/octet-stream"


def _without_texts(data: bytes) -> bytes:
    """A PNG less its texts, since Pillow refuses a picture for a long one. What is no PNG, or has a
    chunk cut off, stays as it is."""
    if not data.startswith(_PNG):
        return data
    parts, kept_from, at, name = [], 0, len(_PNG), b""
    while name != b"IEND":
        if at + 12 > len(data):
            return data
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return data
        if name in _TEXTS and not data.startswith(_TURNED, at + 8):
            parts.append(data[kept_from:at])
            kept_from = end
        at = end
    return b"".join([*parts, data[kept_from:]]) if parts else data


def _opened(data: bytes, field: str) -> Image.Image:
    """The picture, its header read and its size found to be within bounds."""
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(field) from None
    if image.width * image.height > limits.INPUT_PIXELS_MAX:
        raise _too_large(field)
    return image


def _pixels(image: Image.Image, field: str) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a grey pixel, which Pillow would cut off at 255
        wide = np.array(image)
        grey = (wide.clip(0, 65_535, out=wide) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = _on_white(image, field)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND):  # the whole at once would stand there three times
        end = min(top + BAND, image.height)
        pixels[top:end] = np.asarray(image.crop((0, top, image.width, end)).convert("RGB"))
    return pixels


def _on_white(image: Image.Image, field: str) -> Image.Image:
    """RGBA, of which RGB is what shows; `image` itself where it is RGBA."""
    clear = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = clear.getchannel("A")
    if alpha.getbbox() is None:
        raise SpecError(
            "The picture is transparent all over; choose one that shows something.", field
        )
    clear.paste(WHITE, mask=ImageChops.invert(alpha))
    return clear


def _no_picture(field: str) -> SpecError:
    return SpecError(
        "The file is no picture that can be read; choose a PNG, JPEG, WebP, GIF or BMP.", field
    )


def _too_large(field: str) -> LimitError:
    megapixels = limits.INPUT_PIXELS_MAX // 1_000_000
    return LimitError(
        f"The picture has more than the {megapixels} megapixels that are read; make it smaller.",
        field,
    )
