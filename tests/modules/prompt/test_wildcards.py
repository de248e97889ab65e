import os

import pytest

from modules.prompt.wildcards import WildcardBook
from modules.spec import limits


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def book(tmp_path):
    write(tmp_path / "own/pet.txt", "own cat\n")
    write(tmp_path / "own/clothes/Winter Hat.txt", "fur hat")
    write(tmp_path / "own/clothes/winter.txt", "\ufeffcoat\r\n\r\n# a note\r\n  scarf \r\n")
    write(tmp_path / "shipped/pet.txt", "shipped cat")
    write(tmp_path / "shipped/old.txt", "caf\xe9".encode("cp1252"))
    write(tmp_path / "shipped/empty.txt", "\n# nothing\n")
    write(tmp_path / "shipped/.hidden.txt", "x")
    write(tmp_path / "shipped/notes.md", "x")
    write(tmp_path / "secret.txt", "secret")
    return WildcardBook([tmp_path / "own", tmp_path / "missing", tmp_path / "shipped"])


def test_lists_are_found_and_own_ones_come_first(book):
    assert book.names() == ("clothes/winter", "clothes/winter hat", "empty", "old", "pet")
    assert book.lines("pet") == ("own cat",)
    assert book.lines("old") == ("café",)


def test_folders_bare_names_and_case(book):
    for name in ("clothes/winter", "winter", "WINTER", "Clothes/Winter"):
        assert book.lines(name) == ("coat", "scarf")


@pytest.mark.parametrize(
    "name",
    ["../secret", "../../etc/passwd", "/etc/passwd", "clothes/../pet", "./pet", "pet.txt", "",
     "..", "C:pet", "pet\x00", "notes", ".hidden", "no-such-list"],
)  # fmt: skip
def test_nothing_else_can_be_named(book, name):
    assert book.lines(name) is None


def test_an_empty_list_counts_as_none_and_says_so(book):
    assert book.lines("empty") is None
    assert book.notices(["empty", "pet", "nothing"]) == (
        "The word list __empty__ is empty; write one entry a line.",
    )


def test_a_changed_file_is_read_again(book, tmp_path):
    assert book.lines("pet") == ("own cat",)
    write(tmp_path / "own/pet.txt", "another cat")
    os.utime(tmp_path / "own/pet.txt", (1, 1))
    book.refresh()
    assert book.lines("pet") == ("another cat",)


def test_new_files_are_seen_after_a_refresh(book, tmp_path):
    assert book.lines("new") is None
    write(tmp_path / "own/new.txt", "x")
    book.refresh()
    assert book.lines("new") == ("x",)


def test_a_file_that_went_away_is_said(book, tmp_path):
    book.names()
    (tmp_path / "own/pet.txt").unlink()
    assert book.lines("pet") is None
    assert "cannot be read" in book.notices(["pet"])[0]


def test_files_and_lines_are_bounded(tmp_path):
    write(tmp_path / "big.txt", b"x\n" * (limits.WILDCARD_FILE_BYTES // 2 + 1))
    write(tmp_path / "long.txt", "short\n" + "y" * (limits.WILDCARD_LINE_BYTES + 1))
    write(tmp_path / "many.txt", "z\n" * (limits.WILDCARD_LINES + 5))
    book = WildcardBook([tmp_path])
    assert book.lines("big") is None
    assert book.lines("long") == ("short",)
    assert len(book.lines("many")) == limits.WILDCARD_LINES
    assert len(book.notices(["big", "long", "many"])) == 3


def test_a_link_that_leads_up_ends(tmp_path):
    write(tmp_path / "sub/a.txt", "x")
    (tmp_path / "sub/loop").symlink_to(tmp_path, target_is_directory=True)
    assert WildcardBook([tmp_path]).names() == ("sub/a",)
