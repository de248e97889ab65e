"""Small copies of pictures: made once, bounded in number, and never in the way."""

import io
import os

import pytest
from PIL import Image

from modules.api import thumbnails
from modules.api.thumbnails import Thumbnails


def picture(size=(64, 48), form="PNG", mode="RGB"):
    target = io.BytesIO()
    Image.new(mode, size, 90).save(target, form)
    target.seek(0)
    return target


def size_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.size


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_sides_are_at_most_320(tmp_path, form):
    data = Thumbnails(tmp_path / "t").of(picture((400, 1600), form), "a")
    assert size_of(data) == ("WEBP", (80, 320))


def test_small_and_odd_pictures_keep_their_size(tmp_path):
    folder = Thumbnails(tmp_path)
    assert size_of(folder.of(picture((8, 8), mode="L"), "a")) == ("WEBP", (8, 8))
    assert size_of(folder.of(picture((9, 7), mode="RGBA"), "b")) == ("WEBP", (9, 7))


def test_it_is_made_once(tmp_path, monkeypatch):
    folder = Thumbnails(tmp_path / "t")
    first = folder.of(picture(), "a")
    monkeypatch.setattr(thumbnails, "_shrink", None)
    assert folder.of(io.BytesIO(b""), "a") == first


def test_the_folder_is_bounded_and_what_is_used_stays(tmp_path):
    folder = Thumbnails(tmp_path, files_max=6)
    for number in range(6):
        folder.of(picture(), f"p{number}")
        os.utime(tmp_path / f"p{number}.webp", (number, number))
    folder.of(picture(), "p0")  # used now
    folder.of(picture(), "p6")
    assert {path.stem for path in tmp_path.iterdir()} == {"p0", "p4", "p5", "p6"}


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", picture().getvalue()[:60], b"GIF89a" + b"\0" * 40],
    ids=["empty", "header", "cut", "other format"],
)
def test_what_is_no_picture_has_none(tmp_path, data):
    assert Thumbnails(tmp_path / "t").of(io.BytesIO(data), "a") is None
    assert not (tmp_path / "t").exists()


def test_a_bomb_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "PIXELS_MAX", 100)
    assert Thumbnails(tmp_path).of(picture((11, 10)), "a") is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert Thumbnails(tmp_path).of(picture((10, 10)), "a") is None


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    assert size_of(Thumbnails(tmp_path / "file" / "t").of(picture(), "a"))
