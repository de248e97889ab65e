"""The page and the engine read emphasis each with its own code: they must agree on any text."""

from hypothesis import example, given
from hypothesis import strategies as st

from ldm_patched.modules import prompt_weights
from ldm_patched.modules.prompt_weights import read_weights
from modules.prompt import parser
from modules.spec import limits

MARKED = st.text(alphabet="ab ()\\:.,-1309BREAK\n{[<_", max_size=120)


def as_parsed(text):
    return [tuple(part) for part in read_weights(text)]


@given(MARKED | st.text(max_size=80))
@example("(a (b:1.2) BREAK c:0.5) \\(d\\) (e")
@example("BRE()AK")
@example("(" * 60 + "a" + ")" * 60)
def test_both_read_the_same(text):
    parsed = parser.parse(text)
    expected = [tuple((s.text, s.weight) for s in chunk) for chunk in parsed.chunks]
    assert as_parsed(text) == expected
    assert as_parsed(str(parsed)) == expected


def test_both_have_the_same_bounds():
    assert prompt_weights.WEIGHT_MAX == limits.EMPHASIS_MAX
    assert prompt_weights.ROUND_WEIGHT == parser.ROUND_WEIGHT
