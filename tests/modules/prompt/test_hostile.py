"""Shapes that make careless parsers slow: each is planned in linear work, or refused in words.

Work is counted in executed lines of the program, not by the clock, so that a busy machine cannot
fail the test; a generous clock catches what runs inside built-in functions.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modules.prompt.plan import PromptBooks, make_plan
from modules.prompt.styles import Style, StyleBook
from modules.prompt.wildcards import WildcardBook
from modules.spec import limits
from modules.spec.errors import StudioError
from modules.spec.task_spec import TaskSpec

PROGRAM = str(Path(__file__).parents[3] / "modules")
CAP = limits.PROMPT_CHARACTERS

REPEATED = [
    "a", " ", ",", "a,", "(", ")", "()", "((", "(a", "a)", "(a:1.1)", "(:", ":1)", "\\", "\\(",
    "[", "[[", "]]", "[[a,", "[[a]]", "{", "}", "{}", "{|", "|", "{a|b}", "{a|", "_", "__",
    "__a", "__a__", "__a_", "<", "<lora:", "<lora:a:1>", "<lora:a", "BREAK", "BREAK ", "embedding:",
    "embedding:a ", "\n", "a\n", "#", "é", "\U0001f600", "([{", "{[[(", "\\\\(",
]  # fmt: skip
BUILT = {
    "round nest": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "weighted nest": lambda n: "(" * (n // 6) + "a" + ":1.1)" * (n // 6),
    "curly nest": lambda n: "{" * (n // 2) + "}" * (n // 2),
    "square nest": lambda n: "[[" * (n // 4) + "]]" * (n // 4),
    "choices of one": lambda n: "{" + "a|" * (n // 2 - 1) + "}",
    "unclosed after much": lambda n: "a, " * (n // 3 - 1) + "(",
    "a name without end": lambda n: "__" + "a" * (n - 2),
    "a tag without end": lambda n: "<lora:" + "a" * (n - 6),
    "digits": lambda n: "(a:" + "1" * (n - 4) + ")",
    "own list": lambda n: "__self__" * (n // 8),
}
SHAPES: dict[str, Callable[[int], str]] = {
    **{repr(unit): lambda n, unit=unit: (unit * n)[:n] for unit in REPEATED},
    **BUILT,
}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    (folder / "a.txt").write_text("x\ny\n")
    (folder / "self.txt").write_text("__self__ __self__\n")
    styles = StyleBook([Style("s", "S", "fine {prompt}", "a, b, c")])
    return PromptBooks(wildcards=WildcardBook([folder]), styles=styles, loras=("a.safetensors",))


def outcome(text: str, books: PromptBooks) -> None:
    spec = TaskSpec(prompt=text, negative_prompt="", seed=1, image_count=1, styles=("s",))
    try:
        make_plan(spec, books)
    except StudioError as error:
        assert str(error).endswith(".")
        assert len(str(error)) < 400


def work(text: str, books: PromptBooks) -> int:
    """Lines of the program that planning `text` runs through."""
    lines = 0

    def local(frame, event, _argument):
        nonlocal lines
        lines += event == "line"
        return local

    def trace(frame, _event, _argument):
        return local if frame.f_code.co_filename.startswith(PROGRAM) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outcome(text, books)
    finally:
        sys.settrace(before)
    return lines


def test_there_are_enough_shapes():
    assert len(SHAPES) >= 40
    assert all(len(shape(CAP)) <= CAP for shape in SHAPES.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_work_is_linear(books, shape):
    make = SHAPES[shape]
    work(make(64), books)  # fills the caches
    half, whole = (work(make(size), books) for size in (1_024, 2_048))
    assert whole <= 2.5 * half + 200


@pytest.mark.parametrize("shape", SHAPES)
def test_the_longest_prompt_is_quick(books, shape):
    text = SHAPES[shape](CAP)
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        outcome(text, books)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.5


def test_ten_thousand_combinations_are_counted_not_made(books):
    text = "[[1,2,3,4,5,6,7,8,9,0]]" * 4
    spec = TaskSpec(prompt=text + "a " * ((CAP - len(text)) // 2), seed=1, image_count=1)
    assert make_plan(spec, books).combinations == limits.PROMPT_COMBINATIONS
    assert len(make_plan(spec, books, range(50)).pictures) == 50
