"""Many small pictures with their prompts on one PNG of at most a megabyte."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BYTES = 1_000_000
COLUMNS, GAP, LINES = 8, 8, 3
TEXT_HEIGHT = 11
SIDES = (144, 128, 112, 96, 80, 64)
"""Of the pictures, from the largest that is tried."""


def contact_sheet(images: Sequence[np.ndarray], prompts: Sequence[str]) -> bytes:
    """A PNG with all pictures, uint8 (H, W, 3), each above its prompt; at most BYTES long."""
    data = b""
    for side in SIDES:
        sheet = _sheet(images, prompts, side).quantize(256, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) <= BYTES:
            break
    return data


def _sheet(images: Sequence[np.ndarray], prompts: Sequence[str], side: int) -> Image.Image:
    width, height = side + GAP, side + GAP + LINES * TEXT_HEIGHT
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=9)
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        left, top = GAP + number % COLUMNS * width, GAP + number // COLUMNS * height
        small = Image.fromarray(image)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        corner = (left + (side - small.width) // 2, top + (side - small.height) // 2)
        sheet.paste(small, corner)
        lines = textwrap.wrap(prompt, side // 5)[:LINES]
        for line, text in enumerate(lines):
            place = (left, top + side + 2 + line * TEXT_HEIGHT)
            draw.text(place, text, fill=(40, 40, 48), font=font)
    return sheet
