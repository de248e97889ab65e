"""Prompt expansion: a few words more, so that a short prompt is painted as a full one.

A phrase model of our own: short lists of phrases in the order in which a painter would add them,
for each kind of subject (`presets/expansion/phrases.json`), become bigram counts. The prompt's
words say what kind of subject it is; phrases are then drawn one after another, each by how often
it follows the one before. Seeded, offline, a few microseconds; nothing the prompt says already is
said again, and nothing that speaks against it is added.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from modules.spec.errors import ConfigError

DEFAULT_PHRASES = 6
_FILE_BYTES = 1024 * 1024
_ANY = "any"
_START = ""
_BIGRAM_SHARE = 4.0  # how much a seen pair counts beside a phrase's own count
# Words that carry no meaning of their own; two phrases may share them.
_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "into",
        "of",
        "on",
        "over",
        "the",
        "to",
        "under",
        "with",
        "very",
    ]
)


class Expands(Protocol):
    """What adds words to a prompt: the phrase model here, or one that the worker runs."""

    def expand(self, prompt: str, seed: int, *, beside: str = "") -> tuple[str, ...]:
        """Phrases for `prompt`, the same for the same arguments."""


@dataclass(frozen=True)
class Expander:
    """The phrase model. `load_expander` makes one.

    kinds: words of a prompt that tell its kind. counts: per kind, how often a phrase is used.
    pairs: per kind, how often a phrase follows another. rivals: groups of words of which a
    picture has only one (day or night, ...). words: the content words of each phrase.
    """

    kinds: Mapping[str, frozenset[str]]
    counts: Mapping[str, Mapping[str, int]]
    pairs: Mapping[str, Mapping[tuple[str, str], int]]
    rivals: tuple[tuple[frozenset[str], ...], ...]
    words: Mapping[str, frozenset[str]]

    def kinds_of(self, words: Iterable[str]) -> tuple[str, ...]:
        """The kinds of subject that `words` tell, in the model's order."""
        said = frozenset(words)
        return tuple(kind for kind, marks in self.kinds.items() if marks & said)

    def expand(
        self, prompt: str, seed: int, most: int = DEFAULT_PHRASES, *, beside: str = ""
    ) -> tuple[str, ...]:
        """Up to `most` phrases for `prompt`, in order; a larger `most` only adds to them.

        beside: texts of styles, which nothing is added against. The same arguments always give
        the same phrases; none for an empty prompt.
        """
        words = content_words(prompt)
        if not words:
            return ()
        kinds = (*self.kinds_of(words), _ANY)
        random = Random(f"{seed}:expansion")
        said, heard = set(words), words | content_words(beside)
        left = self._fitting(self._phrases(kinds), said, heard)
        chosen: list[str] = []
        before = _START
        while left and len(chosen) < most:
            before = _draw(left, [self._weight(kinds, before, p) for p in left], random.random())
            chosen.append(before)
            said |= self.words[before]
            heard |= said
            left = self._fitting(left, said, heard)
        return tuple(chosen)

    def _phrases(self, kinds: Sequence[str]) -> list[str]:
        """Each phrase of the kinds once, in the file's order."""
        return list(dict.fromkeys(p for kind in kinds for p in self.counts.get(kind, ())))

    def _weight(self, kinds: Sequence[str], before: str, phrase: str) -> float:
        """A kind that the prompt tells counts twice as much as what suits everything."""
        total = 0.0
        for kind in kinds:
            share = 1.0 if kind == _ANY else 2.0
            pair = self.pairs.get(kind, {}).get((before, phrase), 0)
            total += share * (self.counts.get(kind, {}).get(phrase, 0) + _BIGRAM_SHARE * pair)
        return total

    def _fitting(self, phrases: list[str], said: set[str], heard: frozenset[str]) -> list[str]:
        """Those of the phrases that add to what is said, and nothing against what is heard."""
        unwanted = set(said)
        for group in self.rivals:
            if any(side & heard for side in group):
                unwanted.update(*(side for side in group if not side & heard))
        return [phrase for phrase in phrases if self.words[phrase].isdisjoint(unwanted)]


def _draw(phrases: Sequence[str], weights: Sequence[float], number: float) -> str:
    """The phrase at `number` (0..1) of the way through the weights."""
    mark = number * sum(weights)
    for phrase, weight in zip(phrases, weights, strict=True):
        mark -= weight
        if mark < 0:
            return phrase
    return phrases[-1]


def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, in small letters and without a plural's s."""
    letters = "".join(char if char.isalnum() else " " for char in text.lower())
    return frozenset(stem(word) for word in letters.split() if word not in _SMALL_WORDS)


def stem(word: str) -> str:
    """`lights`, `lighting`, `lit` stay apart, `flowers` and `flower` are one."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def load_expander(path: Path) -> Expander:
    """The model of a phrase file. ConfigError if it is not one."""
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        content = json.loads(raw.decode("utf-8-sig")) if len(raw) <= _FILE_BYTES else None
        return build_expander(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(
            f"{path.name} holds no phrases that can be read; put the file that ships with Easel "
            "back, or switch prompt expansion off."
        ) from None


def build_expander(content: Any) -> Expander:
    """Counts of a phrase file's content: {"kinds": {kind: {"words": [...], "lists": [[...]]}},
    "rivals": [[[...], [...]], ...]}. Raises KeyError, TypeError or AttributeError."""
    kinds: dict[str, frozenset[str]] = {}
    counts: dict[str, dict[str, int]] = {}
    pairs: dict[str, dict[tuple[str, str], int]] = {}
    for kind, part in content["kinds"].items():
        kinds[kind] = frozenset(stem(word.lower()) for word in part["words"])
        seen, followed = counts.setdefault(kind, {}), pairs.setdefault(kind, {})
        for phrases in part["lists"]:
            before = _START
            for phrase in phrases:
                seen[phrase] = seen.get(phrase, 0) + 1
                followed[before, phrase] = followed.get((before, phrase), 0) + 1
                before = phrase
    rivals = tuple(
        tuple(frozenset(stem(word.lower()) for word in side) for side in group)
        for group in content["rivals"]
    )
    words = {phrase: content_words(phrase) for seen in counts.values() for phrase in seen}
    return Expander(kinds, counts, pairs, rivals, words)
