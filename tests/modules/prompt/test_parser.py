import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.parser import Span, parse, plain_number, split_lines, tidy, without_comments

MARKED = st.text(alphabet="ab ()\\:.,1309BREAK\n", max_size=120) | st.text(max_size=60)


def weights(text):
    [chunk] = parse(text).chunks
    return [(span.text, span.weight) for span in chunk]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) cat", [("a ", 1), ("red", 1.21), (" cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(a (b:1.2) c:0.5)", [("a ", 0.5), ("b", 1.2), (" c", 0.5)]),
        ("((a:1.5) b)", [("a", 1.5), (" b", 1.1)]),
        ("((a) b:2)", [("a", 2.2), (" b", 2)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        (r"back\slash \\", [("back\\slash \\", 1)]),
        ("[[x]] [y]", [("[[x]] [y]", 1)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a: 1.25 )", [("a", 1.25)]),
        ("(ratio 16:wide)", [("ratio 16:wide", 1.1)]),
        ("(embedding:glow:1.1)", [("embedding:glow", 1.1)]),
        ("() (:1.3) x", [("x", 1)]),
        ("", []),
    ],
)
def test_weights(text, expected):
    assert weights(text) == [(words, pytest.approx(weight)) for words, weight in expected]


@pytest.mark.parametrize(
    ("text", "expected", "notice"),
    [
        ("a (red cat", [("a (red cat", 1)], "never closed"),
        ("a (red (big:2) cat", [("a (red ", 1), ("big", 2), (" cat", 1)], "never closed"),
        ("a red) cat", [("a red) cat", 1)], "closes nothing"),
        ("(a:1000000000)", [("a", 10)], "beyond ±10"),
        ("(a:nan)", [("a:nan", 1.1)], "no plain number"),
        ("(a:1e9)", [("a:1e9", 1.1)], "no plain number"),
        ("(a:None )", [("a:None", 1.1)], "The weight 'None' is no plain number"),
        ("(a:)", [("a:", 1.1)], "has no weight after it"),
        ("(a: )", [("a:", 1.1)], "has no weight after it"),
    ],
)
def test_what_cannot_be_read_stays_and_is_said(text, expected, notice):
    assert weights(text) == expected
    assert notice in parse(text).notices[0]


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a, BREAK, b", ["a,", ", b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAKFAST b", ["a BREAKFAST b"]),
        ("a xBREAK b", ["a xBREAK b"]),
        ("a break b", ["a break b"]),
    ],
)
def test_break_begins_a_chunk_where_it_stands_alone(text, chunks):
    assert ["".join(s.text for s in chunk) for chunk in parse(text).chunks] == chunks


def test_a_weight_goes_on_after_a_break():
    assert parse("(a BREAK b:1.5)").chunks == ((Span("a", 1.5),), (Span("b", 1.5),))


def test_embeddings_are_named_once_and_in_order():
    parsed = parse("embedding:b, (embedding:a-1.x:1.2) embedding:b embedding: x")
    assert parsed.embeddings == ("b", "a-1.x")


@given(MARKED)
def test_printing_and_parsing_again_changes_nothing(text):
    first = parse(text)
    second = parse(str(first))
    assert second.chunks == first.chunks
    assert str(second) == str(first)
    assert not second.notices


@given(st.lists(st.tuples(st.text("ab c", min_size=1), st.sampled_from([0.5, 1.3, 2.0]))))
def test_spans_survive_being_written_out(spans):
    text = "|".join(f"({words}:{weight})" for words, weight in spans)
    found = [(s.text, s.weight) for chunk in parse(text).chunks for s in chunk if s.weight != 1]
    expected = [pair for pair in spans if pair[0].strip()]
    assert [(t.strip(), w) for t, w in found if t.strip()] == [(t.strip(), w) for t, w in expected]


@given(st.text())
def test_a_plain_number_is_a_number(text):
    number = plain_number(text)
    assert number is None or number == float(text)


@pytest.mark.parametrize("text", ["nan", "inf", "1e9", "", "-", ".", "1.2.3", "0x1", "1_0", "²"])
def test_other_numbers_are_not_plain(text):
    assert plain_number(text) is None


def test_comments_and_nul_are_taken_out():
    assert without_comments("# note\r\na #1 cat\n  # more\nb\x00c") == "a #1 cat\nbc"


def test_lines_are_tidied_and_empty_ones_dropped():
    assert split_lines(" a  cat ,, on a mat.\n\n , \nsecond") == ("a cat, on a mat", "second")


@given(st.text(alphabet="ab ,.\n\t", max_size=60))
def test_tidying_twice_is_tidying_once(text):
    assert tidy(tidy(text)) == tidy(text)
