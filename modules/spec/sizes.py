"""Which picture sizes a model paints well, and how a ratio such as 3:2 becomes one of them.

Pure tables and arithmetic, so that the page can offer the very sizes that the worker will paint.
A model of the SDXL family was trained on sizes of one area (about 1024²), Stable Diffusion 1 on
512² and Stable Diffusion 2 mostly on 768²; a smaller model says its own area and ratios in its
file.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

from modules.spec import limits

EVEN_STEP = 32  # pixels: eight a latent, halved twice


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> str:
        """The ratio in lowest terms, such as '9:7'; a valid TaskSpec.aspect_ratio."""
        divisor = math.gcd(self.width, self.height)
        return f"{self.width // divisor}:{self.height // divisor}"

    def __str__(self) -> str:
        return f"{self.width} × {self.height}"


@dataclass(frozen=True)
class SizeTable:
    """The sizes of one model: those it was trained on, the default among them, and its area."""

    sizes: tuple[Size, ...]
    default: Size

    @property
    def area(self) -> int:
        """Pixels of the default size: what a ratio outside the table is scaled to."""
        return self.default.width * self.default.height

    @classmethod
    def from_area(cls, area: int, ratios: Iterable[str] = ()) -> Self:
        """Sizes of about `area` pixels for ratios such as '3:2'; the first ratio is the default.

        Without ratios the table holds a few common ones, square first.
        """
        wanted = tuple(ratios) or ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")
        sizes = tuple(dict.fromkeys(_trained_size(ratio, area) for ratio in wanted))
        return cls(sizes, sizes[0])

    def choose(self, aspect_ratio: str) -> Size:
        """The size for 'width:height', or the default for ''.

        A ratio within 1 % of one in the table takes that size, for the model knows it best; any
        other ratio is given exactly, with the area of the default.
        """
        if not aspect_ratio:
            return self.default
        ratio = parse_ratio(aspect_ratio)
        nearest = min(self.sizes, key=lambda size: _distance(size, ratio))
        if _distance(nearest, ratio) <= math.log(1.01):
            return nearest
        return size_of_area(ratio, self.area)


def parse_ratio(aspect_ratio: str) -> float:
    """'3:2' → 1.5. Raises ValueError for anything that is not two positive whole numbers."""
    width, separator, height = aspect_ratio.partition(":")
    if not (separator and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"A ratio is width:height, such as 3:2; {aspect_ratio[:20]!r} is not.")
    return int(width) / int(height)


def size_of_area(ratio: float, area: int) -> Size:
    """The size of about `area` pixels nearest to `ratio` (width / height), in steps of 8."""
    height = _stepped(math.sqrt(area / ratio))
    width = _stepped(height * ratio)
    while width * height > limits.PIXELS_MAX:
        width, height = width - limits.SIDE_STEP, height - limits.SIDE_STEP
    return Size(width, height)


def _trained_size(aspect_ratio: str, area: int) -> Size:
    """The size of exactly this ratio that a three-level UNet halves evenly, if it has the area.

    Such sizes (multiples of 32 pixels) are what models of the family are trained on; a ratio that
    has none within 15 % of the area takes the nearest size in the usual steps.
    """
    ratio = parse_ratio(aspect_ratio)
    width, height = (int(part) for part in aspect_ratio.split(":"))
    divisor = math.gcd(width, height)
    width, height = width // divisor, height // divisor
    unit = round(math.sqrt(area / (width * height)) / EVEN_STEP) * EVEN_STEP
    size = Size(width * unit, height * unit)
    fits = 0.85 <= size.width * size.height / area <= 1.15
    in_range = max(size) <= limits.SIDE_MAX and min(size) >= limits.SIDE_MIN
    return size if fits and in_range else size_of_area(ratio, area)


def _stepped(side: float) -> int:
    whole = round(side / limits.SIDE_STEP) * limits.SIDE_STEP
    return max(limits.SIDE_MIN, min(limits.SIDE_MAX, whole))


def _distance(size: Size, ratio: float) -> float:
    return abs(math.log(size.width / size.height / ratio))


# The sizes that users of SDXL know, tall to wide.
SDXL = SizeTable(
    sizes=tuple(
        Size(*pair)
        for pair in (
            (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
            (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960),
            (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768),
            (1344, 768), (1344, 704), (1408, 704), (1472, 704), (1536, 640), (1600, 640),
            (1664, 576), (1728, 576),
        )
    ),
    default=Size(1152, 896),
)  # fmt: skip
SD1 = SizeTable.from_area(512 * 512)
SD2 = SizeTable.from_area(768 * 768)
