"""Emphasis in a prompt: (word), (word:1.3), nested brackets, escapes, BREAK.

A bracket multiplies the weight around it by 1.1; one that ends in a plain number sets it. A
bracket without its partner, and a backslash before anything that has no meaning, are ordinary
characters. Time is linear in the text, and any text can be read.
"""

from collections.abc import Iterator

ROUND_WEIGHT = 1.1
WEIGHT_MAX = 10.0  # of either sign
BREAK = "BREAK"
ESCAPABLE = frozenset("()[]{}<>|_,#\\")
NUMBER_CHARACTERS = 24

Weighted = list[tuple[str, float]]
"""Stretches of text with their weights; neighbours differ in weight."""


def read_weights(text: str) -> list[Weighted]:
    """The stretches of each part between BREAKs, at least one part; escapes are resolved."""
    groups = _pair_brackets(text)
    parts: list[Weighted] = [[]]
    for words, weight in _join(_stretches(text, groups)):
        first, *others = _split_at_breaks(words)
        parts[-1].append((first, weight))
        parts += [[(part, weight)] for part in others]
    return [_trim(part) for part in parts]


def _pair_brackets(text: str) -> dict[int, tuple[int, int, float | None]]:
    """Opening position → (end of the group's words, closing position, its own weight)."""
    groups: dict[int, tuple[int, int, float | None]] = {}
    opened: list[int] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\" and text[position + 1 : position + 2] in ESCAPABLE:
            position += 1
        elif char == "(":
            opened.append(position)
        elif char == ")" and opened:
            start = opened.pop()
            colon = text.rfind(":", max(start + 1, position - NUMBER_CHARACTERS), position)
            weight = None if colon < 0 else _plain_number(text[colon + 1 : position])
            groups[start] = (position if weight is None else colon, position, weight)
        position += 1
    return groups


def _plain_number(text: str) -> float | None:
    """Digits with at most a sign and a point; no nan, no 1e9."""
    text = text.strip()
    digits = text[1:] if text[:1] in ("+", "-") else text
    whole, _, part = digits.partition(".")
    return float(text) if (whole + part).isdigit() and digits.isascii() else None


def _stretches(
    text: str, groups: dict[int, tuple[int, int, float | None]]
) -> Iterator[tuple[str, float]]:
    inside: list[tuple[int, int, float]] = []  # (end of words, closing position, weight around)
    weight, begin, position = 1.0, 0, 0
    while position < len(text):
        if inside and position == inside[-1][0]:
            yield text[begin:position], weight
            _, closing, weight = inside.pop()
            position = begin = closing + 1
            continue
        if text[position] == "\\" and text[position + 1 : position + 2] in ESCAPABLE:
            yield text[begin:position], weight
            begin, position = position + 1, position + 2
            continue
        if position in groups:
            yield text[begin:position], weight
            end, closing, own = groups[position]
            inside.append((end, closing, weight))
            weight = weight * ROUND_WEIGHT if own is None else own
            weight = round(max(-WEIGHT_MAX, min(WEIGHT_MAX, weight)), 6)
            begin = position + 1
        position += 1
    yield text[begin:], weight


def _join(stretches: Iterator[tuple[str, float]]) -> Weighted:
    """Neighbours of one weight as one stretch, empty ones left out."""
    runs: list[tuple[list[str], float]] = []
    for words, weight in stretches:
        if words and runs and runs[-1][1] == weight:
            runs[-1][0].append(words)
        elif words:
            runs.append(([words], weight))
    return [("".join(words), weight) for words, weight in runs]


def _split_at_breaks(text: str) -> list[str]:
    """`text` cut at each BREAK between blanks, commas or its ends."""
    parts: list[str] = []
    begin = search = 0
    while (at := text.find(BREAK, search)) >= 0:
        search = at + len(BREAK)
        around = (text[at - 1 : at] if at else "", text[search : search + 1])
        if all(not char or char.isspace() or char == "," for char in around):
            parts.append(text[begin:at])
            begin = search
    return [*parts, text[begin:]]


def _trim(part: Weighted) -> Weighted:
    """Without blanks at the two ends."""
    part = [stretch for stretch in part if stretch[0]]
    while part and not part[0][0].strip():
        del part[0]
    while part and not part[-1][0].strip():
        del part[-1]
    if part:
        part[0] = (part[0][0].lstrip(), part[0][1])
        part[-1] = (part[-1][0].rstrip(), part[-1][1])
    return part
