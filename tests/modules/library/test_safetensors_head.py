"""What is read of a safetensors file, and of what only looks like one."""

import io
import json

import pytest

from modules.library import safetensors_head
from modules.library.safetensors_head import head_of, read_header

HEADER = {"__metadata__": {"a": "b"}, "x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}


def file_of(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + b"1234"


def test_the_head_is_read_and_no_more(tmp_path):
    text = json.dumps(HEADER).encode()
    stream = io.BytesIO(file_of(text))
    assert head_of(stream) == text
    assert stream.read() == b"1234"
    (tmp_path / "a.safetensors").write_bytes(file_of(text))
    assert read_header(tmp_path / "a.safetensors") == HEADER


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"123",
        file_of(b"{}", length=2**40),
        file_of(b"{", length=1),
        file_of(b"[1]"),
        file_of(b'{"a": 1'),
        file_of(b'{"a": "\xff"}'),
        file_of(b"[" * 100_000),
    ],
)
def test_what_is_no_sound_head_is_none(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert read_header(path) is None


def test_a_file_that_is_not_there_or_a_folder_has_none(tmp_path):
    assert read_header(tmp_path) is None
    assert read_header(tmp_path / "gone.safetensors") is None


def test_a_head_larger_than_any_real_one_is_not_read(monkeypatch):
    monkeypatch.setattr(safetensors_head, "HEADER_BYTES", 16)
    stream = io.BytesIO(file_of(b" " * 17))
    assert head_of(stream) == b""
    assert stream.tell() == 8
