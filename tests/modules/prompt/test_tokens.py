"""Chunks as they are shown are the chunks that the engine encodes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldm_patched.modules.errors import VocabularyMissing
from ldm_patched.modules.sd1_clip import SDTokenizer
from modules.prompt import tokens
from modules.prompt.tokens import text_chunks
from modules.spec.errors import ModelMissing

WORDS = st.text(alphabet="ab ()\\:.,-1309BREAK'éß\u0301\n\t\x1c漢", max_size=300)
END = 49407


def counts(text):
    return [chunk.tokens for chunk in text_chunks(text)]


def engine_counts(text):
    """Tokens before the end token of each chunk that the engine makes."""
    chunks = SDTokenizer().tokenize_with_weights(text)
    return [[token for token, _ in chunk].index(END) - 1 for chunk in chunks]


@given(WORDS | st.text(max_size=200))
@example("a red house, " * 60)
@example("(a red house:1.3), " * 60)
@example("x" * 3_000)
@example("a " * 74 + "photographing-cats, and dogs")
@example("a BREAK (b BREAK c:1.2) BREAK")
@example("a \u0301b  e\u0301 İ Σς 's don't 123")
@example(" BREAK ")
def test_counts_are_the_engine_s(text):
    assert counts(text) == engine_counts(text)


def test_the_parts_are_the_text_with_its_weights():
    (chunk,) = text_chunks("A Red (house:1.3), by \\(the\\) lake")
    assert chunk.parts == (("A Red ", 1.0), ("house", 1.3), (", by (the) lake", 1.0))
    assert chunk.tokens == 9


def test_the_boundary_falls_between_words():
    first, second = text_chunks("A " * 74 + "Hill, B")
    assert first.tokens == 75
    assert first.parts[0][0].endswith("A hill")  # cut between two blanks: as the tokenizer reads
    assert second.parts == ((", B", 1.0),)


def test_learned_words_take_the_room_of_their_vectors():
    text = "embedding:haze, " * 2 + "lake"
    plain = counts("lake")[0]
    assert [c.tokens for c in text_chunks(text)] == [2 * 1 + 2 + plain]
    assert [c.tokens for c in text_chunks(text, {"haze": 8})] == [2 * 8 + 2 + plain]
    assert [c.tokens for c in text_chunks(text, {"haze": 40})] == [41, 41 + plain]


@pytest.mark.parametrize("mark", [".", ";", "!", "...", "|b", "]"])
def test_punctuation_after_a_learned_word_counts_as_words(mark):
    (chunk,) = text_chunks(f"embedding:haze{mark} lake", {"haze": 8})
    assert chunk.tokens == 8 + counts(f"{mark} lake")[0]
    assert chunk.parts == ((f"embedding:haze{mark} lake", 1.0),)


def test_a_missing_vocabulary_is_said(monkeypatch):
    def gone():
        raise VocabularyMissing("The CLIP vocabulary is not installed.")

    monkeypatch.setattr(tokens, "clip_tokenizer", gone)
    with pytest.raises(ModelMissing, match="not installed"):
        text_chunks("words that nobody counted before")
