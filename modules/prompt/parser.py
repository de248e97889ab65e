"""Reading a prompt's surface: comments, lines, emphasis, chunk breaks, names of embeddings.

    a (red) cat            "red" weighs 1.1; brackets inside brackets multiply
    a (red:1.3) cat        "red" weighs 1.3, whatever is around it
    a \\(red\\) cat          brackets that mean themselves
    a cat BREAK a dog      what follows BREAK begins a new chunk of 77 tokens
    embedding:name         a learned word, kept in the text for the encoder
    # words                a line that begins with # is a note to oneself

Square brackets have no meaning of their own here. Every function takes time linear in the text
and accepts any text: what cannot be read as written stays as the characters that it is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ldm_patched.modules.embedding_names import references
from modules.spec import limits

ROUND_WEIGHT = 1.1
BREAK = "BREAK"
EMBEDDING = "embedding:"
_MARKS = re.compile(r"[\\()]")  # one character each: nothing to backtrack over
_ESCAPABLE = frozenset("()[]{}<>|_,#\\")
_NUMBER_CHARACTERS = 24
_NOTICES = 3  # of a kind; more of the same help nobody


class Span(NamedTuple):
    """A stretch of text and its weight; escapes are resolved in `text`."""

    text: str
    weight: float = 1.0


Chunk = tuple[Span, ...]
"""What stands between two BREAKs. Neighbours differ in weight; no text is empty."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """One line of a prompt. `notices` say what could not be read as it was meant."""

    chunks: tuple[Chunk, ...]
    embeddings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Text that parses to the same chunks, without nested brackets."""
        return f" {BREAK} ".join("".join(map(_span_text, chunk)) for chunk in self.chunks)

    @property
    def words(self) -> str:
        """The bare words, without weights."""
        return " ".join(span.text for chunk in self.chunks for span in chunk)


def without_comments(text: str) -> str:
    """`text` without the lines that begin with #, line ends as \\n, no NUL."""
    lines = text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def tidy(line: str) -> str:
    """White space collapsed; empty parts between commas and trailing stops taken out."""
    parts = map(str.strip, " ".join(line.split()).split(","))
    return ", ".join(filter(None, parts)).strip(" ,.")


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of a prompt that say something, tidied. Each is encoded on its own."""
    return tuple(line for line in map(tidy, text.split("\n")) if line)


def parse(text: str) -> ParsedText:
    """Emphasis, breaks and embeddings of one line. Never raises."""
    groups, notices = _match_brackets(text)
    spans = _spans(text, groups)
    chunks = tuple(_chunks(spans))
    names = dict.fromkeys(
        name for chunk in chunks for span in chunk for name in references(span.text)
    )
    return ParsedText(chunks, tuple(names), tuple(notices))


@lru_cache(maxsize=64)
def parsed(text: str) -> ParsedText:
    """`parse`, remembered: the same few texts are looked at from several sides."""
    return parse(text)


def is_escape(text: str, position: int) -> bool:
    """Whether the backslash at `position` takes the meaning from the character after it."""
    return text[position + 1 : position + 2] in _ESCAPABLE


# --- Emphasis ---------------------------------------------------------------------------------


class _Group(NamedTuple):
    """A bracket pair: where its text ends, where the bracket closes, its own weight or None."""

    text_end: int
    close: int
    weight: float | None


def _match_brackets(text: str) -> tuple[dict[int, _Group], list[str]]:
    """Groups by the position of their opening bracket; an unmatched bracket has none."""
    groups: dict[int, _Group] = {}
    notices: list[str] = []
    opened: list[int] = []
    strays = 0
    after_escape = -1
    for mark in _MARKS.finditer(text):
        position = mark.start()
        char = text[position]
        if position == after_escape:
            continue
        if char == "\\":
            after_escape = position + 1 if is_escape(text, position) else -1
        elif char == "(":
            opened.append(position)
        elif char == ")":
            if opened:
                start = opened.pop()
                end, weight = _weight_before(text, start + 1, position, notices)
                groups[start] = _Group(end, position, _bounded(weight, notices))
            else:
                strays += 1
    if strays:
        notices.append(f"{_count(strays, ')')} closes nothing; it is read as it stands.")
    if opened:
        notices.append(f"{_count(len(opened), '(')} is never closed; it is read as it stands.")
    return groups, notices


def _weight_before(
    text: str, start: int, close: int, notices: list[str]
) -> tuple[int, float | None]:
    """(end of the group's text, weight) when `:number` stands right before the bracket."""
    window = max(start, close - _NUMBER_CHARACTERS)
    colon = text.rfind(":", window, close)
    if colon < 0:
        return close, None
    number = text[colon + 1 : close]
    weight = plain_number(number)
    if weight is None:
        if len(notices) >= _NOTICES:
            return close, None
        if not number.strip():
            notices.append(
                "A colon before ')' has no weight after it, so it is read as words; write "
                "(words:1.3)."
            )
        elif _is_odd_number(number):
            notices.append(
                f"The weight {number.strip()!r} is no plain number such as 1.3; it is read as "
                "words."
            )
        return close, None
    return colon, weight


def _is_odd_number(text: str) -> bool:
    """Whether it is a number to programs, though not to `plain_number`: nan, inf, 1e9, none."""
    if text.strip().casefold() in ("none", "null"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain_number(text: str) -> float | None:
    """A number written with digits, one point and a sign; None for 'nan', '1e9' or words."""
    text = text.strip()
    digits = text[1:] if text[:1] in ("+", "-") else text
    whole, _, part = digits.partition(".")
    if not (whole + part).isdigit() or not digits.isascii():
        return None
    return float(text)


def _bounded(weight: float | None, notices: list[str]) -> float | None:
    most = limits.EMPHASIS_MAX
    if weight is None or -most <= weight <= most:
        return weight
    if len(notices) < _NOTICES:
        notices.append(f"The weight {weight:g} is beyond ±{most:g}, which is taken instead.")
    return max(-most, min(most, weight))


def _spans(text: str, groups: dict[int, _Group]) -> list[Span]:
    """Stretches of equal weight, escapes resolved."""
    pieces: list[tuple[str, float]] = []
    stack: list[tuple[int, int, float]] = []  # (text_end, close, weight outside)
    weight, begin, position = 1.0, 0, 0
    while position < len(text):
        mark = _MARKS.search(text, position)
        following = mark.start() if mark else len(text)
        if stack and stack[-1][0] < following:
            following = stack[-1][0]  # the colon of a weight
        position = following
        if position == len(text):
            break
        if stack and position == stack[-1][0]:
            pieces.append((text[begin:position], weight))
            _, close, weight = stack.pop()
            position = begin = close + 1
            continue
        char = text[position]
        if char == "\\" and is_escape(text, position):
            pieces.append((text[begin:position], weight))
            begin = position + 1  # the escaped character begins the next piece
            position += 2
            continue
        if char == "(" and position in groups:
            pieces.append((text[begin:position], weight))
            group = groups[position]
            stack.append((group.text_end, group.close, weight))
            weight = _inside(weight, group.weight)
            begin = position + 1
        position += 1
    pieces.append((text[begin:], weight))
    return _merged(pieces)


def _inside(outside: float, own: float | None) -> float:
    if own is not None:
        return round(own, 6)
    most = limits.EMPHASIS_MAX
    return round(max(-most, min(most, outside * ROUND_WEIGHT)), 6)


def _merged(pieces: list[tuple[str, float]]) -> list[Span]:
    runs: list[tuple[list[str], float]] = []
    for text, weight in pieces:
        if not text:
            continue
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(text)
        else:
            runs.append(([text], weight))
    return [Span("".join(texts), weight) for texts, weight in runs]


# --- Chunks -----------------------------------------------------------------------------------


def _chunks(spans: list[Span]) -> Iterator[Chunk]:
    """The spans between BREAKs; blanks around a BREAK are dropped. At least one chunk."""
    current: list[Span] = []
    for span in spans:
        first, *others = split_at_breaks(span.text)
        current.append(Span(first, span.weight))
        for part in others:
            yield _stripped(current)
            current = [Span(part, span.weight)]
    yield _stripped(current)


def _stripped(spans: list[Span]) -> Chunk:
    spans = [span for span in spans if span.text]
    while spans and not spans[0].text.strip():
        del spans[0]
    while spans and not spans[-1].text.strip():
        del spans[-1]
    if spans:
        spans[0] = Span(spans[0].text.lstrip(), spans[0].weight)
        spans[-1] = Span(spans[-1].text.rstrip(), spans[-1].weight)
    return tuple(Span(*run) for run in _merged([(s.text, s.weight) for s in spans]))


def split_at_breaks(text: str) -> list[str]:
    """`text` cut at each BREAK that stands alone between blanks, commas or the ends."""
    parts: list[str] = []
    begin = search = 0
    while (at := text.find(BREAK, search)) >= 0:
        search = at + len(BREAK)
        if _alone(text[at - 1 : at] if at else "") and _alone(text[search : search + 1]):
            parts.append(text[begin:at])
            begin = search
    parts.append(text[begin:])
    return parts


def _alone(neighbour: str) -> bool:
    return not neighbour or neighbour.isspace() or neighbour == ","


# --- Printing ---------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """`text` so that `parse` reads it as these very characters."""
    return "".join("\\" + char if char in "()\\" else char for char in text)


def _span_text(span: Span) -> str:
    if span.weight == 1.0:
        return escaped(span.text)
    number = f"{span.weight:.6f}".rstrip("0").rstrip(".")
    return f"({escaped(span.text)}:{number})"


def _count(number: int, bracket: str) -> str:
    return f"A bracket {bracket!r}" if number == 1 else f"One of {number} brackets {bracket!r}"
