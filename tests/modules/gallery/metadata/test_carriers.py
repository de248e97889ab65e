import io

import numpy as np
import pytest
from PIL import Image

from modules.gallery.metadata import carriers
from modules.spec.flags import OutputFormat

PARAMETERS = "a house, ünïcode 😀 مرحبا\nSteps: 3, Sampler: Euler"


def reopened(output_format):
    buffer = io.BytesIO()
    options = carriers.save_options(output_format, recipe='{"a":1}', parameters=PARAMETERS)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
        buffer, format=output_format.value, **options
    )
    buffer.seek(0)
    return Image.open(buffer)


def test_png_has_both_text_chunks():
    image = reopened(OutputFormat.PNG)
    assert image.info["parameters"] == PARAMETERS
    assert image.info["easel"] == '{"a":1}'


@pytest.mark.parametrize("output_format", [OutputFormat.JPEG, OutputFormat.WEBP])
def test_exif_holds_the_parameters_where_others_look(output_format):
    exif = reopened(output_format).getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == PARAMETERS
    assert exif[0x0131] == "Easel"


def test_the_comment_has_the_type_that_the_standard_wants():
    raw = carriers.exif_bytes(PARAMETERS)
    tag_and_type = (b"\x92\x86\x00\x07", b"\x86\x92\x07\x00")
    assert any(pattern in raw for pattern in tag_and_type)


def test_xmp_is_well_formed_xml():
    import xml.etree.ElementTree as ElementTree

    text = '{"prompt":"<b> & \ufffe \uffff \\"q\\" 😀"}'
    root = ElementTree.fromstring(carriers.xmp_packet(text).decode())
    (recipe,) = root.iter("{urn:easel:recipe:1}recipe")
    assert recipe.text == text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def test_a_picture_is_saved_though_its_jpeg_has_room_for_no_recipe():
    endless = np.random.default_rng(1).bytes(80_000).hex()
    options = carriers.save_options(
        OutputFormat.JPEG, recipe=endless, parameters=endless, shorter=endless
    )
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, format="JPEG", **options)
    assert carriers.read_recipe_text(buffer) is None


def test_a_compressed_bomb_is_refused():
    packet = carriers.xmp_packet("0" * 50_000_000)
    assert len(packet) < 100_000
    with pytest.raises(ValueError, match="longer"):
        carriers.recipe_of_xmp(packet)
