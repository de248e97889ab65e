import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.style_files import read_file, title_of
from modules.prompt.styles import PLACE, RANDOM_STYLE, Style, StyleBook, apply_styles
from modules.spec.errors import LimitError, SpecError

OIL = Style("oil", "Oil", "oil painting of {prompt}\nbrush strokes", "photo")
MOOD = Style("mood", "Mood", "misty mood", "crowd\nnoise")
BOOK = StyleBook([OIL, MOOD, Style("Oil", "Other oil", "x")])


def written(tmp_path, text, name="mine.json"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path)


def test_a_style_sets_the_prompt_into_its_words():
    styled = apply_styles([OIL, MOOD], "a cat")
    assert styled.positive == ("oil painting of a cat", "brush strokes", "misty mood")
    assert styled.negative == ("photo", "crowd", "noise")


def test_the_prompt_comes_first_when_no_style_has_a_place_for_it():
    assert apply_styles([MOOD], "a cat").positive == ("a cat", "misty mood")
    assert apply_styles([], "a cat").positive == ("a cat",)
    assert apply_styles([], "").positive == ()


def test_a_prompt_that_names_the_place_is_not_filled_in_twice():
    assert apply_styles([OIL], "a {prompt}").positive[0] == "oil painting of a {prompt}"


def test_many_places_for_a_long_prompt_are_refused_before_they_are_made():
    with pytest.raises(LimitError, match="32 KiB"):
        apply_styles([Style("x", "X", PLACE * 1_000)] * 32, "y" * 8_192)


def test_names_and_titles_are_found_whatever_their_case():
    assert BOOK.find("OIL") is OIL
    assert BOOK.find("Mood") is MOOD
    assert len(BOOK) == 2  # the second "Oil" is shadowed
    with pytest.raises(SpecError, match="'nope' is not known") as caught:
        BOOK.find("nope")
    assert caught.value.field == "styles"


def test_order_is_kept_and_each_counts_once():
    assert BOOK.chosen(["mood", "oil", "Mood"], 1) == (MOOD, OIL)


def test_random_style_is_decided_by_the_seed():
    drawn = [BOOK.chosen([RANDOM_STYLE], seed)[0].name for seed in range(40)]
    assert set(drawn) == {"oil", "mood"}
    assert drawn == [BOOK.chosen(["Random style"], seed)[0].name for seed in range(40)]
    assert StyleBook().chosen([RANDOM_STYLE], 1) == ()


def test_fooocus_json_is_read(tmp_path):
    entries = [{"name": "sai-line-art", "prompt": "line art {prompt}", "negative_prompt": "photo"},
               {"name": "Only Negative", "negative_prompt": "x"}]  # fmt: skip
    styles, notices = written(tmp_path, json.dumps(entries))
    assert notices == []
    assert [(s.name, s.title, s.group) for s in styles] == [
        ("sai-line-art", "SAI Line Art", "mine"),
        ("Only Negative", "Only Negative", "mine"),
    ]


def test_a1111_csv_is_read(tmp_path):
    text = (
        "\ufeffname,prompt,negative_prompt\r\n"
        '"Photo, old","old photo of {prompt}, ""sepia""","digital"\r\n'
        "Behind,fine detail,\r\n"
        "--- heading ---,,\r\n"
    )
    styles, notices = written(tmp_path, text, "styles.csv")
    assert notices == []
    assert [(s.name, s.prompt, s.negative_prompt) for s in styles] == [
        ("Photo old", 'old photo of {prompt}, "sepia"', "digital"),
        ("Behind", "{prompt}, fine detail", ""),
    ]


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("not json", "a.json", "not valid JSON (line 1)"),
        ("{}", "a.json", "list of styles"),
        ("[" * 100_000, "a.json", "nested too deeply"),
        ('[{"name": "x"}]', "a.json", "says nothing"),
        ('[{"prompt": "x"}]', "a.json", "no name"),
        ('[{"name": "x", "prompt": 5}]', "a.json", "no text under 'prompt'"),
        ('[{"name": "x", "prompt": "y", "colour": "z"}]', "a.json", "unknown key 'colour'"),
        ("[5]", "a.json", "not an object"),
        (r'[{"name": "cut \ud83d", "prompt": "x"}]', "a.json", "half a character under 'name'"),
        (r'[{"name": "x", "prompt": "\ud83d"}]', "a.json", "half a character under 'prompt'"),
        (json.dumps([{"name": "x", "prompt": "y" * 9_000}]), "a.json", "more than 8,192"),
        (b"\xff\xfe", "a.json", "not UTF-8"),
        (b" " * (4 * 1024**2 + 1), "a.json", "larger than 4 MiB"),
        ("a,b\n1,2\n", "a.csv", "no column 'name'"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, name, reason):
    styles, notices = written(tmp_path, text, name)
    assert styles == []
    assert len(notices) == 1
    assert reason in notices[0]
    assert notices[0].endswith(".")
    assert str(tmp_path) not in notices[0]


def test_one_broken_entry_costs_no_other(tmp_path):
    styles, notices = written(tmp_path, '[{"name": "a", "prompt": "x"}, 7]')
    assert [s.name for s in styles] == ["a"]
    assert "entry 2" in notices[0]


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_file_name_of_any_bytes_is_a_group_that_can_be_told(tmp_path):
    (style,), _ = written(tmp_path, '[{"name": "a", "prompt": "x"}]', "caf\udce9.json")
    assert style.group == "caf?"


def test_own_styles_come_first_and_shadow_the_shipped(tmp_path):
    for folder, text in (("own", "mine"), ("shipped", "theirs")):
        (tmp_path / folder).mkdir()
        entries = [{"name": "Film", "prompt": text}, {"name": folder, "prompt": text}]
        (tmp_path / folder / "a.json").write_text(json.dumps(entries))
    book = StyleBook.load([tmp_path / "own", tmp_path / "none", tmp_path / "shipped"])
    assert [(s.name, s.prompt) for s in book] == [
        ("Film", "mine"),
        ("own", "mine"),
        ("shipped", "theirs"),
    ]


@given(st.text(max_size=80))
def test_a_title_can_be_made_of_any_name(name):
    assert title_of(title_of(name)) == title_of(name) or title_of(name) == ""
