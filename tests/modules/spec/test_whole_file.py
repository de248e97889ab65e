"""Small files are written whole or not at all."""

import os

import pytest

from modules.spec.whole_file import write_whole


def test_a_file_is_written_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "a.bin"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.bin"]


def test_what_was_there_stays_when_the_end_cannot_be_reached(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_whole(path, b"first")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.bin"]
