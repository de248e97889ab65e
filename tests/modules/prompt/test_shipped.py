"""The styles and word lists that ship: every one is sound."""

import json
from pathlib import Path

import pytest

from modules.prompt.conflicts import parts_of
from modules.prompt.parser import parse
from modules.prompt.styles import PLACE, StyleBook
from modules.prompt.wildcards import WildcardBook

PRESETS = Path(__file__).parents[3] / "presets"
SHIPPED = PRESETS / "styles"
SHIPPED_STYLES = tuple(StyleBook.load([SHIPPED]))


def test_the_guide_says_how_many_ship():
    guide = (PRESETS.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
    lists = WildcardBook([PRESETS / "wildcards"]).names()
    assert f"; {len(lists)} come with Easel." in guide
    assert f"\n{len(SHIPPED_STYLES)} come with Easel (`presets/styles`)." in guide


def test_styles_ship_and_none_is_broken():
    book = StyleBook.load([SHIPPED])
    assert book.notices == ()
    assert len(book) >= 120
    files = [json.loads(path.read_text(encoding="utf-8")) for path in SHIPPED.glob("*.json")]
    assert sum(map(len, files)) == len(book)  # no name twice
    assert len({style.title for style in book}) == len(book)
    assert len({style.prompt for style in book}) == len(book)


@pytest.mark.parametrize("style", SHIPPED_STYLES, ids=lambda style: style.name)
def test_a_shipped_style_is_sound(style):
    assert style.prompt.count(PLACE) == 1
    assert "\n" not in style.prompt + style.negative_prompt
    assert style.name == style.name.lower().strip()
    for text in (style.prompt, style.negative_prompt):
        assert parse(text).notices == ()
        assert not set(text.replace(PLACE, "")) & set("{}[]|<>")
        assert "__" not in text
        assert text.isascii()
    # Room for the user's own words in one chunk of 75 tokens.
    assert 3 <= len(style.prompt.replace(PLACE, "").split()) <= 45 or style.group == "builtin"
    wanted = [words for _, words in parts_of(style.prompt.replace(PLACE, ","))]
    for phrase, words in parts_of(style.negative_prompt):
        assert not any(words <= part for part in wanted), f"{phrase} is asked for and ruled out"
    words = [part.strip() for part in style.negative_prompt.split(",") if part.strip()]
    assert len(words) == len(set(words))
    assert not {word for word in words if f" {word}," in f" {style.prompt},"}


def test_the_lists_that_ship_are_sound():
    book = WildcardBook([PRESETS / "wildcards"])
    assert len(book.names()) >= 12
    for name in book.names():
        lines = book.lines(name)
        assert lines
        assert len(lines) >= 15, name
        assert len({line.casefold() for line in lines}) == len(lines), name
    assert book.notices(book.names()) == ()
