"""How a text falls into the chunks of 77 tokens that CLIP reads, for looking at before painting.

The tokenizer is the engine's own, which needs nothing but the standard library; the packing
follows the engine's rules, and a test holds the two together. Text between blanks is counted once
and remembered: pictures of one prompt differ in few words.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from ldm_patched.modules.clip_tokenizer import clean, clip_tokenizer, split_words
from ldm_patched.modules.embedding_names import split_references
from ldm_patched.modules.errors import VocabularyMissing
from modules.prompt.parser import Span, parsed
from modules.spec.errors import ModelMissing

CHUNK_TOKENS = 75
"""Of a chunk's 77 tokens, two are its start and its end."""
_REMEMBERED_CHARACTERS = 64


class TextChunk(BaseModel):
    """One chunk. tokens: of the 75; parts: (stretch of text, weight) in order.

    A stretch that the chunk's end cuts between two blanks is shown as the tokenizer reads it, in
    small letters.
    """

    model_config = ConfigDict(frozen=True)

    tokens: int
    parts: tuple[tuple[str, float], ...]


def text_chunks(text: str, vectors: Mapping[str, int] | None = None) -> tuple[TextChunk, ...]:
    """The chunks of one line of a prompt, at least one.

    vectors: how many tokens each learned word (embedding:name) stands for; 1 for one that is not
    named here. Raises ModelMissing where the vocabulary is not installed.
    """
    named = tuple(sorted((vectors or {}).items())) if "embedding:" in text else ()
    try:
        return _text_chunks(text, named)
    except VocabularyMissing as error:
        raise ModelMissing(str(error)) from None


@lru_cache(maxsize=64)
def _text_chunks(text: str, vectors: tuple[tuple[str, int], ...]) -> tuple[TextChunk, ...]:
    packer = _Packer(dict(vectors))
    for chunk in parsed(text).chunks:
        if chunk:
            packer.begin()
            for span in chunk:
                packer.add(span)
    packer.end()
    return tuple(packer.done) or (TextChunk(tokens=0, parts=()),)


class _Packer:
    """Chunks while they are being filled."""

    def __init__(self, vectors: Mapping[str, int]) -> None:
        self.done: list[TextChunk] = []
        self._vectors = vectors
        self._parts: list[tuple[str, float]] = []
        self._open: list[str] = []  # pieces of the stretch of one weight
        self._tokens = 0
        self._is_open = False

    def begin(self) -> None:
        self.end()
        self._is_open = True

    def end(self) -> None:
        if self._is_open:
            self.done.append(TextChunk(tokens=self._tokens, parts=tuple(self._parts)))
        self._parts, self._tokens, self._is_open = [], 0, False

    def add(self, span: Span) -> None:
        pieces = span.text.split(" ")
        for place, piece in enumerate(pieces):
            blank = " " if place < len(pieces) - 1 else ""
            lengths = self._lengths(piece)
            total = sum(lengths)
            if self._tokens + total <= CHUNK_TOKENS:
                self._tokens += total
                self._open.append(piece + blank)
            else:
                self._add_by_word(piece, lengths, span.weight)
                self._open.append(blank)
        self._close_stretch(span.weight)

    def _add_by_word(self, piece: str, lengths: Sequence[int], weight: float) -> None:
        """A word moves to the next chunk whole, unless it is longer than one."""
        for word, length in zip(self._words(piece), lengths, strict=True):
            if length <= CHUNK_TOKENS < self._tokens + length:
                self._next(weight)
            self._open.append(word)
            while length > (room := CHUNK_TOKENS - self._tokens):
                self._tokens = CHUNK_TOKENS
                length -= room
                self._next(weight)
            self._tokens += length

    def _next(self, weight: float) -> None:
        self._close_stretch(weight)
        self.begin()

    def _close_stretch(self, weight: float) -> None:
        text = "".join(self._open)
        if text:
            self._parts.append((text, weight))
        self._open = []

    def _lengths(self, piece: str) -> Sequence[int]:
        if "embedding:" not in piece:
            short = len(piece) <= _REMEMBERED_CHARACTERS
            return _word_lengths(piece) if short else _word_lengths.__wrapped__(piece)
        lengths: list[int] = []
        for words, name in split_references(piece, self._vectors.__contains__):
            if name is None:
                lengths += _word_lengths.__wrapped__(words)
            else:
                lengths.append(self._vectors.get(name, 1))
        return lengths

    def _words(self, piece: str) -> Iterator[str]:
        for words, name in split_references(piece, self._vectors.__contains__):
            if name is not None:
                yield f"embedding:{name}"
            else:
                yield from split_words(clean(words))


@lru_cache(maxsize=32_768)
def _word_lengths(piece: str) -> tuple[int, ...]:
    """Tokens of each word of a text without blanks."""
    return tuple(map(len, clip_tokenizer().encode_words(piece)))
