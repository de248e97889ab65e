"""A small drawing for a style that nobody has painted yet: hills below a sky, in its colours.

The colours come from the style's own words, the lie of the land from its name, so that a list of
styles can be told apart at a glance without a model, and looks the same on every machine.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

SIDE = 48


class Palette(NamedTuple):
    """sky: from top to horizon; far and near: the hills."""

    sky: tuple[str, str]
    sun: str
    far: str
    near: str


# A palette and the words that ask for it; of equally many words found, the earlier entry counts.
PALETTES: tuple[tuple[frozenset[str], Palette], ...] = tuple(
    (frozenset(words.split()), Palette((top, low), sun, far, near))
    for words, top, low, sun, far, near in (
        ("noir monochrome charcoal graphite ink silhouette pencil etching linocut woodcut",
         "#3b3b3b", "#b9b7b2", "#f2f0ea", "#6d6b68", "#1e1d1c"),
        ("neon cyberpunk synthwave vaporwave holographic laser glitch arcade",
         "#180b3a", "#7a1fa2", "#ff5fa8", "#3b1470", "#0c0620"),
        ("sepia vintage daguerreotype tintype antique aged victorian parchment old",
         "#8a6a44", "#e3cba0", "#f6e7c4", "#a67f50", "#4d361f"),
        ("pastel watercolor watercolour soft gouache dreamy delicate kawaii nursery",
         "#bcd9e8", "#fbe3e0", "#fff3c9", "#b9d7b4", "#7fae9c"),
        ("gothic dark horror night moonlit shadow storm haunted eerie midnight",
         "#0d1220", "#2b3a55", "#d9dfe9", "#1b2436", "#080b12"),
        ("fire lava sunset golden warm amber autumn desert dramatic blockbuster",
         "#d9632b", "#f9c56b", "#fff0b8", "#a4422a", "#4a1d1c"),
        ("ice snow winter frozen arctic frost glacier",
         "#9cc3e0", "#eaf4fa", "#ffffff", "#c3d9e8", "#6f93b0"),
        ("forest garden botanical moss nature solarpunk leaf leaves green floral",
         "#a9d3c9", "#eef3d2", "#fff6c4", "#6ea56b", "#2f5d43"),
        ("ocean sea underwater coral nautical aquatic blue cyanotype delft",
         "#0f4c75", "#7fc4d6", "#e6f7f5", "#1f6f8b", "#0a3350"),
        ("space cosmic galaxy nebula astral futuristic sci-fi starship",
         "#0a0a24", "#3d2b73", "#f7d9ff", "#241a52", "#07061a"),
        ("pop comic cartoon toy plastic vibrant bold retro saturated candy lego",
         "#2bb3e6", "#ffe25e", "#ff5a5f", "#f59f2e", "#c2255c"),
        ("clay terracotta wood paper felt knitted leather carved stone bronze",
         "#e6d3bd", "#f5e9dc", "#e8a06a", "#bd8a66", "#7a5138"),
        ("minimal minimalist clean white studio concrete modern product",
         "#dcdedf", "#f6f6f4", "#e9b872", "#bfc4c6", "#84898c"),
    )
)  # fmt: skip
OTHERS: tuple[Palette, ...] = (
    Palette(("#6fa8c9", "#f3dfc1"), "#fff1c7", "#8fae8b", "#4a6b57"),
    Palette(("#7d6aa3", "#f0b8a0"), "#ffe9c2", "#77597f", "#3a2c4a"),
    Palette(("#4f8f9c", "#dfe8cf"), "#ffe0a3", "#7aa08a", "#315a5e"),
    Palette(("#b5727a", "#f4d6b3"), "#fff4d6", "#8c5a66", "#482c3a"),
)


def draw_swatch(name: str, words: str) -> str:
    """An SVG picture, SIDE x SIDE, for the style `name` with the text `words`."""
    dice = hashlib.sha256(name.encode()).digest()
    palette = _palette(words, dice[0])
    sun_x, sun_y, sun_r = 10 + dice[1] % 28, 9 + dice[2] % 10, 3 + dice[3] % 4
    far, near = _hill(dice[4:8], 26), _hill(dice[8:12], 34)
    key = f"g{dice[:4].hex()}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}">'
        f'<defs><linearGradient id="{key}" x1="0" y1="0" x2="0" y2="1">'
        f'<stop stop-color="{palette.sky[0]}"/><stop offset=".75" stop-color="{palette.sky[1]}"/>'
        f'</linearGradient></defs><path fill="url(#{key})" d="M0 0h{SIDE}v{SIDE}H0z"/>'
        f'<circle cx="{sun_x}" cy="{sun_y}" r="{sun_r}" fill="{palette.sun}"/>'
        f'<path fill="{palette.far}" d="{far}"/><path fill="{palette.near}" d="{near}"/></svg>'
    )


def _palette(words: str, die: int) -> Palette:
    spoken = {word.strip(".,;:()") for word in words.lower().split()}
    found, palette = max(
        ((len(asked & spoken), palette) for asked, palette in PALETTES), key=lambda pair: pair[0]
    )
    return palette if found else OTHERS[die % len(OTHERS)]


def _hill(dice: Sequence[int], height: int) -> str:
    """The outline of a hill whose ridge lies around `height`, as an SVG path."""
    left, first, second, right = (height + die % 11 - 5 for die in dice)
    return f"M0 {left}C16 {first - 6} 32 {second + 6} {SIDE} {right}V{SIDE}H0z"
