"""What the inspector says of a request, and of one that nobody could paint."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.inspector import SHOWN, inspect_spec
from modules.prompt.plan import PromptBooks
from modules.prompt.styles import Style, StyleBook
from modules.prompt.wildcards import WildcardBook
from modules.spec.task_spec import LoraSpec, TaskSpec

EMBEDDINGS = {"haze": 8, "old": None}


def vectors(names):
    return {name: EMBEDDINGS[name] for name in names if name in EMBEDDINGS}


@pytest.fixture
def books(tmp_path):
    (tmp_path / "animal.txt").write_text("cat\ndog\n")
    ink = Style("ink", "Ink", "ink drawing of {prompt}", "photo, colour")
    return PromptBooks(
        wildcards=WildcardBook((tmp_path,)),
        styles=StyleBook([ink]),
        loras=("brush.safetensors",),
    )


def words(texts):
    return [" | ".join("".join(text for text, _ in chunk.parts) for chunk in t) for t in texts]


def test_arrays_are_counted_and_the_first_fifty_shown(books):
    ten = "[[" + ",".join("abcdefghij") + "]]"
    seen = inspect_spec(
        TaskSpec(prompt=" ".join([ten] * 4), image_count=3, seed=2**60), books, vectors
    )
    assert (seen.pictures, seen.combinations, len(seen.prompts)) == (3, 10_000, SHOWN)
    assert [line.text for line in seen.prompts[:11:10]] == ["a a a a", "a b a a"]
    assert [line.painted for line in seen.prompts[:5]] == [True, True, True, False, False]
    assert seen.prompts[1].seed == 2**60 + 1
    assert any("10,000 combinations; 3 of them are painted" in n for n in seen.notices)


@pytest.mark.parametrize("mark", [". A", ";", "!", "|b", "]"])
def test_a_learned_word_is_there_with_punctuation_after_it(books, mark):
    spec = TaskSpec(prompt=f"a embedding:haze{mark} embedding:none!", image_count=1)
    seen = inspect_spec(spec, books, vectors)
    assert (seen.embeddings, seen.missing_embeddings) == (("haze",), ("none!",))


def test_a_picture_shows_styles_loras_and_what_is_missing(books):
    spec = TaskSpec(
        prompt="colour house, __animal__ __gone__ <lora:brush:0.5> <lora:lost> embedding:haze "
        "embedding:none embedding:old",
        negative_prompt="blur",
        styles=("ink",),
        loras=(LoraSpec(name="absent"),),
        image_count=1,
        seed=3,
    )
    seen = inspect_spec(spec, books, vectors)
    assert seen.problem is None
    assert seen.picture.styles == ("Ink",)
    (text,) = words(seen.picture.positive)
    assert text.startswith("ink drawing of colour house, ")
    assert words(seen.picture.negative) == ["photo, colour", "blur"]
    assert [(use.file, use.weight) for use in seen.picture.loras] == [("brush.safetensors", 0.5)]
    assert seen.missing_loras == ("absent", "lost")
    assert (seen.embeddings, seen.missing_embeddings) == (("haze", "old"), ("none",))
    assert (seen.wildcards, seen.missing_wildcards) == (("animal",), ("gone",))
    assert seen.conflicts == ("The prompt asks for 'colour', which the style Ink rules out.",)
    assert any("embedding:old counts as one token" in notice for notice in seen.notices)


def test_the_chosen_picture_is_detailed(books):
    spec = TaskSpec(prompt="[[red, green]] hills", image_count=2, seed=1)
    assert words(inspect_spec(spec, books, vectors, 1).picture.positive) == ["green hills"]
    assert inspect_spec(spec, books, vectors, 49).picture.index == 1


@pytest.mark.parametrize(
    ("spec", "by_chance"),
    [
        (TaskSpec(prompt="hills"), False),
        (TaskSpec(prompt="[[a, b]]"), False),
        (TaskSpec(prompt="[[a, {b|c}]]"), True),
        (TaskSpec(prompt="__animal__"), True),
        (TaskSpec(prompt="__gone__"), False),
        (TaskSpec(prompt="__animal__", wildcards_in_order=True), False),
        (TaskSpec(styles=("Random",)), True),
        (TaskSpec(negative_prompt="{a|b}"), True),
    ],
)
def test_whether_another_seed_gives_other_words(books, spec, by_chance):
    assert inspect_spec(spec, books, vectors).by_chance is by_chance


def test_long_lines_begin_where_they_differ(books):
    spec = TaskSpec(prompt="very " * 200 + "[[red, green]] hills", image_count=2, seed=1)
    lines = [line.text for line in inspect_spec(spec, books, vectors).prompts]
    assert [line.rpartition("very ")[2] for line in lines] == ["red hills", "green hills"]
    assert all(line.startswith("…") and len(line) < 60 for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "[[a,b,c,d,e,f,g,h,i,j]]" * 7}, "more than 10,000 combinations"),
        ({"prompt": "<lora:a:nan>"}, "cannot be read"),
        ({"styles": ("nowhere",)}, "is not known"),
        ({"prompt": "__loop__"}, "names itself"),
    ],
)
def test_what_cannot_be_painted_is_one_sentence(books, tmp_path, changes, said):
    (tmp_path / "loop.txt").write_text("__loop__ __loop__\n")
    seen = inspect_spec(TaskSpec(**changes), books, vectors)
    assert said in seen.problem.message
    assert seen.prompts == ()


def test_a_combination_that_is_not_painted_hides_nothing(books):
    spec = TaskSpec(prompt="[[hills, <lora:a:nan>]]", image_count=1)
    seen = inspect_spec(spec, books, vectors)
    assert seen.problem is None
    assert [line.text for line in seen.prompts] == ["hills"]


@given(st.text(alphabet="ab ()[]{}|\\:_,<>lora1.5\n#\x00漢", max_size=200))
def test_any_text_gets_an_answer(text):
    seen = inspect_spec(TaskSpec(prompt=text, negative_prompt=text), PromptBooks(), vectors)
    assert (seen.problem is None) == bool(seen.prompts)
    seen.model_dump_json()


PARTS = ["a red house, ", "(a) ", "{a|b} ", "((", "x", "\u00e9\u0301\u0302", "__animal__ "]


def lines_run(books, text):
    """Lines of Python that run, which a busy machine does not change."""
    count = 0

    def tracer(_frame, event, _argument):
        nonlocal count
        count += event == "line"
        return tracer

    spec = TaskSpec(prompt=text, image_count=1, seed=1)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        inspect_spec(spec, books, vectors)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("part", PARTS)
def test_work_doubles_when_the_text_does(books, part):
    whole = part * (2_000 // len(part))
    inspect_spec(TaskSpec(prompt=part), books, vectors)  # the vocabulary is read once
    half = lines_run(books, whole[: len(whole) // 2])
    assert lines_run(books, whole) < 2.5 * half + 500
