"""The small pictures beside the styles: drawn ones, painted ones, and what becomes of bad files."""

import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from modules.library.style_pictures import SIDE, StylePictures
from modules.library.swatches import PALETTES, draw_swatch
from modules.prompt.style_files import Style

INK = Style("ink", "Ink", "ink drawing of {prompt}", "colour")


def test_a_swatch_is_a_picture_of_its_own_in_the_colours_of_its_words():
    drawn = draw_swatch("ink", "Ink drawing, noir")
    assert drawn == draw_swatch("ink", "Ink drawing, noir")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert PALETTES[0][1].far in drawn
    assert draw_swatch("neon", "a neon, cyberpunk street").count(PALETTES[1][1].near) == 1
    assert len({draw_swatch(f"style {n}", "") for n in range(50)}) == 50


def test_every_palette_can_be_asked_for():
    for words, palette in PALETTES:
        assert palette.near in draw_swatch("x", " ".join(words))


def test_a_painted_picture_takes_the_place_of_the_swatch(tmp_path):
    pictures = StylePictures(tmp_path / "small")
    before = pictures.version(INK)
    assert pictures.read(INK).mime_type == "image/svg+xml"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "large.png")
    pictures.keep(INK, tmp_path / "large.png")
    assert pictures.is_painted(INK)
    assert pictures.version(INK) != before
    data, mime_type = pictures.read(INK)
    assert mime_type == "image/webp"
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (SIDE, SIDE)
        assert image.getpixel((5, 5))[0] > 150
    changed = Style("ink", "Ink", "ink wash of {prompt}")
    assert not pictures.is_painted(changed)  # it would show another style
    assert [path.suffix for path in (tmp_path / "small").iterdir()] == [".webp"]


def test_what_is_no_picture_is_not_kept(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures = StylePictures(tmp_path / "small")
    with pytest.raises(OSError, match="cannot identify"):
        pictures.keep(INK, tmp_path / "broken.png")
    assert not pictures.is_painted(INK)
