"""What a request asks for and rules out at the same time, in words."""

from collections.abc import Iterator, Sequence

from modules.prompt.expansion import content_words
from modules.prompt.parser import parsed
from modules.prompt.styles import PLACE, Style

_MOST = 20
# Rests of common negative lists that say nothing about what is to be seen.
_QUALITY = frozenset({"quality", "worst", "low", "bad", "blurry", "ugly", "deformed"})


def find_conflicts(
    prompt: str, negative: str, styles: Sequence[tuple[str, Style]]
) -> tuple[str, ...]:
    """Sentences for things that one text asks for and another rules out; at most twenty.

    styles: (title, style) in order. A phrase of up to three words counts where all of its words
    stand in one part between commas of the other text.
    """
    wanted = [("The prompt", parts_of(prompt))]
    wanted += [
        (f"The style {title}", parts_of(style.prompt.replace(PLACE, ",")))
        for title, style in styles
    ]
    unwanted = [("the negative prompt", parts_of(negative))]
    unwanted += [(f"the style {title}", parts_of(style.negative_prompt)) for title, style in styles]
    found: dict[str, None] = {}
    for sentence in _clashes(wanted, unwanted):
        found[sentence] = None
        if len(found) == _MOST:
            break
    return tuple(found)


Parts = list[tuple[str, frozenset[str]]]
"""(a part of a text between commas, its words)."""


def parts_of(text: str) -> Parts:
    """The parts of a text between commas and line ends, without weights."""
    parts = (part.strip() for part in parsed(text.replace("\n", ",")).words.split(","))
    return [(part, words) for part in parts if part and (words := content_words(part))]


def _clashes(
    wanted: Sequence[tuple[str, Parts]], unwanted: Sequence[tuple[str, Parts]]
) -> Iterator[str]:
    """Each unwanted phrase is looked for under its first word, so that time stays linear."""
    for who, parts in wanted:
        by_word: dict[str, list[frozenset[str]]] = {}
        for _, words in parts:
            for word in words:
                by_word.setdefault(word, []).append(words)
        for whose, phrases in unwanted:
            if whose[4:] == who[4:]:
                continue
            for phrase, words in phrases:
                if len(words) > 3 or words <= _QUALITY:
                    continue
                rarest = min(words, key=lambda word: (len(by_word.get(word, ())), word))
                if any(words <= part for part in by_word.get(rarest, ())[:50]):
                    yield f"{who} asks for {phrase[:60]!r}, which {whose} rules out."
