"""Where texts live inside a PNG, a JPEG and a WebP, for writing and for reading.

    PNG         text chunks `parameters` (A1111's name) and `easel` (the recipe as JSON)
    JPEG, WebP  EXIF UserComment in the Exif sub-IFD, as Unicode, for `parameters`;
                an XMP packet with the recipe's JSON

JPEG bounds each of the two to one 64 KB segment. A recipe that does not fit is written compressed,
or else without what can be worked out again; `parameters` that do not fit are left out, for the
recipe says all of it. No picture is lost for want of room.
"""

import base64
import html
import re
import struct
import zlib
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin

from modules.spec.flags import OutputFormat
from modules.spec.limits import METADATA_BYTES

PNG_KEY = "easel"
SOFTWARE = "Easel"
_SEGMENT_BYTES = 64_000  # a JPEG segment holds 65,533 bytes; the rest is for headers
_PACKET_BYTES = 65_533 - len(b"http://ns.adobe.com/xap/1.0/\0")  # of an XMP packet in one
_XMP = re.compile(
    rb'<easel:recipe xmlns:easel="urn:easel:recipe:1" encoding="(json|zlib)">([^<]*)</easel:recipe>'
)
# What Pillow raises on broken files, collected from its format plugins.
BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def save_options(
    output_format: OutputFormat, *, recipe: str, parameters: str, shorter: str = ""
) -> dict[str, Any]:
    """Keyword arguments for Pillow's `Image.save` that put both texts into the file.

    shorter: takes the place of a recipe that a JPEG cannot hold. What does not fit is left out.
    """
    if output_format is OutputFormat.PNG:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", parameters)
        chunks.add_text(PNG_KEY, recipe)
        return {"pnginfo": chunks}
    exif, xmp = exif_bytes(parameters), xmp_packet(recipe)
    if output_format is OutputFormat.JPEG:
        if len(exif) > _SEGMENT_BYTES:
            exif = exif_bytes("")
        if len(xmp) > _PACKET_BYTES:
            xmp = xmp_packet(shorter) if shorter else b""
        if len(xmp) > _PACKET_BYTES:
            xmp = b""
    return {"exif": exif, "xmp": xmp}


def read_recipe_text(source: str | BinaryIO) -> str | None:
    """The recipe's JSON text in an image file, or None when it holds none.

    Only the headers are read; no pixel is decoded. Raises one of BROKEN_FILE when the file is no
    readable PNG, JPEG or WebP.
    """
    with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
        if image.format == "PNG":
            text = image.info.get(PNG_KEY)
            return text if isinstance(text, str) else None
        packet = image.info.get("xmp")
    if isinstance(packet, str):
        packet = packet.encode()
    return recipe_of_xmp(packet) if isinstance(packet, bytes) else None


def exif_bytes(comment: str) -> bytes:
    """An EXIF block with the program's name and `comment` as a Unicode UserComment."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    if not comment:
        return exif.tobytes()
    unicode_comment = b"UNICODE\0" + comment.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = unicode_comment
    raw = exif.tobytes()
    # Pillow writes the tag with type BYTE; the standard and strict readers want UNDEFINED.
    if raw[6:8] == b"MM":
        return raw.replace(b"\x92\x86\x00\x01", b"\x92\x86\x00\x07", 1)
    return raw.replace(b"\x86\x92\x01\x00", b"\x86\x92\x07\x00", 1)


def xmp_packet(recipe: str) -> bytes:
    """An XMP packet that holds `recipe`, compressed when it would not fit a JPEG segment."""
    # These two are the only characters that JSON leaves bare and XML forbids.
    plain = recipe.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    encoding, body = "json", html.escape(plain, quote=False).encode()
    if len(body) > _SEGMENT_BYTES:
        encoding, body = "zlib", base64.b64encode(zlib.compress(recipe.encode(), 9))
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about=""><easel:recipe xmlns:easel="urn:easel:recipe:1" encoding="'
        + encoding.encode()
        + b'">'
        + body
        + b"</easel:recipe></rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def recipe_of_xmp(packet: bytes) -> str | None:
    """The text that `xmp_packet` put in, or None; the packet is searched, never parsed as XML.

    Raises ValueError or zlib.error when the compressed form is damaged or too large.
    """
    match = _XMP.search(packet[: 4 * METADATA_BYTES])
    if match is None:
        return None
    if match[1] == b"json":
        return html.unescape(match[2].decode())
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(base64.b64decode(match[2], validate=True), METADATA_BYTES + 1)
    if len(text) > METADATA_BYTES:
        raise ValueError("the recipe is longer than a recipe may be")
    return text.decode()
