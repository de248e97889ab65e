"""Pictures from outside: every kind comes out as upright RGB, every oddity in words."""

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from modules.gallery.read_image import image_size, image_type, read_image
from modules.spec.errors import LimitError, SpecError

RED, BLUE = (220, 30, 40), (20, 60, 200)


def halves(mode="RGB", size=(40, 20)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image.convert(mode)


def data_of(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def bomb(width, height):
    """A PNG that claims a size and holds no pixels to speak of."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def is_halves(pixels, tolerance=30):
    assert pixels.dtype == np.uint8
    assert pixels.shape == (20, 40, 3)
    left, right = pixels[:, 4:16].reshape(-1, 3), pixels[:, 24:36].reshape(-1, 3)
    assert np.abs(left.mean(0) - RED).max() < tolerance, left.mean(0)
    assert np.abs(right.mean(0) - BLUE).max() < tolerance, right.mean(0)


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "JPEG", {"quality": 95}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "GIF", {}),
        ("RGB", "BMP", {}),
    ],
)
def test_every_kind_gives_the_same_pixels(mode, image_format, options):
    data = data_of(halves(mode), image_format, **options)
    is_halves(read_image(data))
    assert image_size(data) == (40, 20)
    assert image_type(data) == f"image/{image_format.lower()}"


def test_a_phone_s_jpeg_with_more_behind_it_is_a_jpeg():
    more = {"save_all": True, "append_images": [halves("L")], "quality": 95}
    data = data_of(halves(), "MPO", **more)
    assert image_type(data) == "image/jpeg"
    is_halves(read_image(data))


@pytest.mark.parametrize("image_format", ["WEBP", "GIF", "PNG"])
def test_of_an_animation_the_first_frame_counts(image_format):
    others = [Image.new("RGB", (40, 20), colour) for colour in ("white", "black")]
    options = {"save_all": True, "append_images": others, "duration": 100}
    if image_format == "WEBP":
        options["lossless"] = True
    is_halves(read_image(data_of(halves(), image_format, **options)))


def test_sixteen_bits_keep_their_tones():
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)[None].repeat(4, 0)
    found = read_image(data_of(Image.fromarray(ramp), "PNG"))
    assert found.shape == (4, 256, 3)
    assert np.abs(found[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_sixteen_bits_a_colour_keep_their_colours():
    wide = (np.asarray(halves())[..., ::-1].astype(np.uint16)) * 257
    png = cv2.imencode(".png", wide)[1].tobytes()
    assert png[24:26] == b"\x10\x02"  # sixteen bits, red, green and blue
    is_halves(read_image(png), tolerance=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(orientation):
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = halves() if turn is None else halves().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = data_of(stored, "JPEG", quality=95, exif=exif)
    is_halves(read_image(data))
    assert image_size(data) == (40, 20)


def test_what_is_transparent_shows_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 4, 8))
    found = read_image(data_of(image))
    assert tuple(found[0, 7]) == (255, 255, 255)
    assert tuple(found[0, 0]) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_half_transparent_mixes_with_white(mode):
    shades = np.arange(256, dtype=np.uint8)
    clear = np.dstack([*[shades[:, None].repeat(256, 1)] * 3, shades[None].repeat(256, 0)])
    image = Image.fromarray(clear).convert(mode)
    expected = 255 + (shades[:, None] - 255.0) * shades / 255  # that grey, so opaque
    found = read_image(data_of(image)).astype(float)
    assert np.abs(found - expected[..., None]).max() <= 1


PEAK = """
import io, sys
from PIL import Image
from modules.gallery.read_image import read_image

def resident(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

small = io.BytesIO()
Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(small, "PNG")
read_image(small.getvalue())  # loads the decoder
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak counts from here
before = resident("VmRSS:")
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        read_image(file.read())
print(resident("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_takes_little_more_memory_than_the_picture(tmp_path):
    paths = []
    for mode in ("RGB", "RGBA"):
        image = Image.new("RGB", (2000, 2000), RED)
        if mode == "RGBA":
            image.putalpha(99)
        paths.append(tmp_path / f"{mode}.png")
        image.save(paths[-1], compress_level=1)
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(out) / 2000**2 < 10  # Pillow's four bytes a pixel, our three, and a band's


def test_a_picture_that_shows_nothing_is_refused():
    with pytest.raises(SpecError, match="transparent all over") as caught:
        read_image(data_of(Image.new("RGBA", (8, 8), (9, 9, 9, 0))), "image_prompts")
    assert caught.value.field == "image_prompts"


@pytest.mark.parametrize("add", ["add_text", "add_itxt"])
def test_a_long_text_beside_the_picture_is_passed_over(add):
    texts = PngImagePlugin.PngInfo()
    getattr(texts, add)("workflow", "x" * 2**21, zip=True)
    for end in (b"", b"more"):
        data = data_of(halves(), pnginfo=texts) + end
        is_halves(read_image(data))
        assert image_size(data) == (40, 20)
        assert image_type(data) == "image/png"


def test_a_text_may_say_how_a_picture_is_turned():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<a tiff:Orientation="6"/>')
    data = data_of(halves().transpose(Image.Transpose.ROTATE_90), pnginfo=texts)
    is_halves(read_image(data))
    assert image_size(data) == (40, 20)


def test_a_long_thin_picture_is_read():
    assert read_image(data_of(Image.new("RGB", (1, 5000), RED))).shape == (5000, 1, 3)


@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 8_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_unread(size):
    for function in (read_image, image_size):
        with pytest.raises((LimitError, SpecError), match=r"megapixels|no picture"):
            function(bomb(*size))
    if size[0] < 100_000:
        with pytest.raises(LimitError, match="80 megapixels"):
            read_image(bomb(*size))


GOOD = data_of(halves(size=(400, 200)))
JPEG = data_of(halves(size=(400, 200)), "JPEG")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        GOOD[:40],
        GOOD[:-60],
        JPEG[: len(JPEG) // 2],
        bomb(100, 100),
        GOOD[:60] + b"\xff" * 40 + GOOD[100:],
    ],
)
def test_what_is_no_whole_picture_is_refused(data):
    with pytest.raises(SpecError, match="no picture that can be read"):
        read_image(data)


def test_a_path_is_read_too(tmp_path):
    (tmp_path / "a.png").write_bytes(data_of(halves()))
    is_halves(read_image(tmp_path / "a.png"))
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")
