from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.template import Filler, count_combinations, read_template, wildcard_names
from modules.spec.errors import LimitError

LISTS = {"color": ["red", "green", "blue"], "pet": ["a __color__ cat", "a {big|small} dog"]}


def fill(text, index=0, seed=1, lists=LISTS, **options):
    return Filler(index, seed, lists.get, **options).fill(read_template(text), "prompt")


def test_arrays_give_every_combination_and_the_first_changes_fastest():
    found = [fill("[[a,b]]-[[x, y, z]]", index).replace(" ", "") for index in range(7)]
    assert found == ["a-x", "b-x", "a-y", "b-y", "a-z", "b-z", "a-x"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("plain", 1),
        ("[[a]]", 1),
        ("[[a,b]] [[c,d,e]]", 6),
        ("{[[a,b]]|[[c,d,e]]}", 3),
        ("[[a,[[b,c]]]]", 4),
        ("[[1,2,3,4,5,6,7,8,9,0]]" * 4, 10_000),
    ],
)
def test_counting(text, count):
    assert count_combinations(read_template(text)) == count


def test_ten_million_combinations_are_refused_without_making_them():
    with pytest.raises(LimitError, match="10,000 combinations"):
        count_combinations(read_template("[[1,2,3,4,5,6,7,8,9,0]]" * 7))


def test_arrays_in_word_lists_are_bounded_too():
    lists = {"a": ["[[1,2,3,4,5,6,7,8,9,0]]"]}
    with pytest.raises(LimitError, match="combinations"):
        fill("__a__ " * 5, lists=lists)


def test_choices_and_lists_are_drawn_evenly_by_the_seed():
    counts = Counter(fill("{a|b|c}", seed=seed) for seed in range(3_000))
    assert set(counts) == {"a", "b", "c"}
    assert all(900 < count < 1_100 for count in counts.values())
    lines = Counter(fill("__color__", seed=seed) for seed in range(3_000))
    assert all(900 < count < 1_100 for count in lines.values())


def test_in_order_the_pictures_go_through_the_lines():
    assert [fill("__color__", i, in_order=True) for i in range(4)] == [
        "red",
        "green",
        "blue",
        "red",
    ]
    assert [fill("{x|y}", i, in_order=True) for i in range(3)] == ["x", "y", "x"]


def test_lists_name_lists():
    found = {fill("__pet__", seed=seed) for seed in range(100)}
    assert found == {"a red cat", "a green cat", "a blue cat", "a big dog", "a small dog"}


def test_golden():
    """The draws are part of the recipe: they must be the same on every machine, for ever."""
    assert [fill("{a|b|c} __color__ __pet__", seed=seed) for seed in (0, 1, 2**63 - 1)] == GOLDEN


GOLDEN = ["b green a green cat", "c green a big dog", "c green a green cat"]


def test_streams_do_not_disturb_each_other():
    filler = Filler(0, 5, LISTS.get)
    filler.fill(read_template("__color__" * 9), "negative")
    assert filler.fill(read_template("{a|b|c|d|e|f}"), "prompt") == fill("{a|b|c|d|e|f}", seed=5)


@pytest.mark.parametrize(
    "text",
    ["{x}", "{", "}", "{a|b", "a|b}", "[[a, b", "a]]", "[a|b]", "{a [[b }"],
)
def test_brackets_without_partners_stay(text):
    assert fill(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\{a|b\}", "{a|b}"),
        (r"\_\_color\_\_", "__color__"),
        (r"\[\[a, b\]\]", "[[a, b]]"),
        (r"\(a\) \\ \x", r"\(a\) \\ \x"),
        ("____", "____"),
        ("__a b__", "__a b__"),
        ("__" + "x" * 200 + "__", "__" + "x" * 200 + "__"),
    ],
)
def test_escapes_and_what_is_no_name(text, expected):
    assert fill(text) == expected


def test_an_unknown_list_becomes_its_bare_word():
    filler = Filler(0, 1, LISTS.get)
    template = read_template("a __clothes/winter-hat__ and __color__")
    assert filler.fill(template, "prompt").startswith("a winter hat and ")
    assert list(filler.missing) == ["clothes/winter-hat"]
    assert list(filler.used) == ["color"]


def test_a_lora_keeps_underscores_that_name_no_list():
    assert fill("<lora:my__style__v1:1>") == "<lora:my__style__v1:1>"
    assert fill("<lora:__color__:1>", in_order=True) == "<lora:red:1>"


@pytest.mark.parametrize(
    "lines", [["x __a__ y"], ["__a__ __a__"], ["{__a__|__a__}"], ["[[__a__]]"], ["__b__"]]
)
def test_a_list_that_names_itself_is_one_clear_sentence(lines):
    lists = {"a": lines, "b": ["__a__"]}
    with pytest.raises(LimitError, match=r"names itself, so it has no end|more than 1,000 lines"):
        fill("__a__", lists=lists)


def test_a_list_that_names_itself_sometimes_has_an_end():
    lists = {"a": ["x", "x", "y __a__"]}
    assert fill("__a__", seed=3, lists=lists).endswith("x")


def test_output_is_bounded():
    with pytest.raises(LimitError, match="32 KiB"):
        fill("__a__" * 20, lists={"a": ["word " * 800]})


def test_deep_brackets_in_deep_lists_are_bounded():
    nest = "{" * 40 + "__a__" + "|x}" * 40
    with pytest.raises(LimitError):
        fill("__a__", lists={"a": [nest]}, in_order=True)


@given(st.text(alphabet="{}[]|,_ab\\ ", max_size=200), st.integers(0, 2**63 - 1))
def test_any_text_can_be_filled(text, seed):
    try:
        template = read_template(text)
        count_combinations(template)
        first = fill(text, 3, seed)
    except LimitError:
        return
    assert fill(text, 3, seed) == first
    assert all(isinstance(name, str) for name in wildcard_names(template))
