"""CLIP's byte-pair tokenizer: text in, token ids out.

The vocabulary is data that the `open_clip_torch` distribution carries; it is read from there, as a
file, without importing that package, and its SHA-256 is checked. It is loaded at the first use and
kept. Text is cleaned as CLIP's own tokenizer does: Unicode NFC, white space collapsed, lower case;
then cut into contractions, runs of letters, single digits and runs of anything else; each piece is
merged byte pair by byte pair. Time is O(n log n) in the length of the text.
"""

import gzip
import hashlib
import heapq
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

from ldm_patched.modules.errors import VocabularyMissing

DISTRIBUTION = "open_clip_torch"
VOCABULARY_FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGE_COUNT = 49152 - 256 - 2
START_TOKEN = 49406
END_TOKEN = 49407

END_OF_WORD = "</w>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Unicode's White_Space property; str.isspace() also counts four control characters.
WHITE_SPACE = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
KEPT_CHARACTERS = 64  # of a word whose tokens are remembered; so the memory for them has a bound
REMEDY = "run 'python launch.py setup' to install it again"


def vocabulary_path() -> Path:
    """Where the installed vocabulary file is. Raises VocabularyMissing if it is not installed."""
    try:
        path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(VOCABULARY_FILE)))
    except metadata.PackageNotFoundError as error:
        raise VocabularyMissing(
            f"The CLIP vocabulary is not installed (package {DISTRIBUTION}): {REMEDY}."
        ) from error
    if not path.is_file():
        raise VocabularyMissing(
            f"The CLIP vocabulary file is missing from package {DISTRIBUTION}: {REMEDY}."
        )
    return path


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a vocabulary file, most frequent first. Raises VocabularyMissing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocabularyMissing(f"The CLIP vocabulary cannot be read: {REMEDY}.") from error
    if hashlib.sha256(data).hexdigest() != VOCABULARY_SHA256:
        raise VocabularyMissing(f"The CLIP vocabulary file is not the known one: {REMEDY}.")
    lines = gzip.decompress(data).decode("utf-8").split("\n")
    merges = (line.split() for line in lines[1 : MERGE_COUNT + 1])  # line 0 is a header
    return [(left, right) for left, right in merges]


def byte_symbols() -> dict[int, str]:
    """A printable character for each of the 256 bytes, in the order of their token ids.

    Printable Latin-1 bytes stand for themselves and come first; the others follow as U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + index) for index, byte in enumerate(others)}


def clean(text: str) -> str:
    """NFC, runs of white space as one blank, lower case character by character.

    Not str.lower() on the whole: that writes a Greek sigma at the end of a word in another way.
    """
    text = unicodedata.normalize("NFC", text)
    blanks = "".join(" " if char in WHITE_SPACE else char for char in text)
    return "".join(char.lower() for char in " ".join(part for part in blanks.split(" ") if part))


def _kind(char: str) -> str:
    """L letter, N number, S white space, O other."""
    if char in WHITE_SPACE:
        return "S"
    category = unicodedata.category(char)[0]
    return category if category in "LN" else "O"


def split_words(text: str) -> Iterator[str]:
    """Pieces of cleaned `text` that are merged on their own; white space is dropped."""
    position, end = 0, len(text)
    while position < end:
        start, kind = position, _kind(text[position])
        position += 1
        if kind == "S":
            continue
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, start)), None)
        if contraction:
            position = start + len(contraction)
        elif kind != "N":  # digits stay single
            while position < end and _kind(text[position]) == kind:
                position += 1
        yield text[start:position]


class BytePairTokenizer:
    """Token ids for text, given the merges of a vocabulary. Holds no state but a cache."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.byte_symbols = byte_symbols()
        symbols = list(self.byte_symbols.values())
        symbols += [symbol + END_OF_WORD for symbol in symbols]
        symbols += [left + right for left, right in merges]
        self.ids = {symbol: index for index, symbol in enumerate(symbols)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._encode_word = lru_cache(maxsize=65_536)(self._merge_word)

    def encode_words(self, text: str) -> list[tuple[int, ...]]:
        """The ids of each word of `text`, without start or end token."""
        return [
            self._encode_word(word) if len(word) <= KEPT_CHARACTERS else self._merge_word(word)
            for word in split_words(clean(text))
        ]

    def encode(self, text: str) -> list[int]:
        """All ids of `text`, without start or end token."""
        return [token for word in self.encode_words(text) for token in word]

    def _merge_word(self, word: str) -> tuple[int, ...]:
        """Merge the pair of lowest rank, leftmost first, until none is left.

        A heap of candidate pairs over a linked list of symbols; a candidate whose symbols have
        changed since it was pushed is skipped.
        """
        parts: list[str | None] = [
            self.byte_symbols[byte] for byte in word.encode("utf-8", errors="replace")
        ]
        parts[-1] = f"{parts[-1]}{END_OF_WORD}"
        after = [*range(1, len(parts)), -1]
        before = [*range(-1, len(parts) - 1)]
        heap: list[tuple[int, int, str, str]] = []

        def push(left: int, right: int) -> None:
            pair = (parts[left] or "", parts[right] or "")
            rank = self.ranks.get(pair)
            if rank is not None:
                heapq.heappush(heap, (rank, left, *pair))

        for index in range(len(parts) - 1):
            push(index, index + 1)
        while heap:
            _, left, first, second = heapq.heappop(heap)
            right = after[left]
            if right < 0 or parts[left] != first or parts[right] != second:
                continue
            parts[left], parts[right] = first + second, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
                push(left, after[right])
            if before[left] >= 0:
                push(before[left], left)
        return tuple(self.ids[part] for part in parts if part is not None)


@cache
def clip_tokenizer() -> BytePairTokenizer:
    """The tokenizer of all CLIP text encoders, loaded once. Raises VocabularyMissing."""
    return BytePairTokenizer(read_merges(vocabulary_path()))
