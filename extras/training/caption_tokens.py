"""Captions as token ids, and the few hundred ids that captions ever use.

The text encoders carry CLIP's whole vocabulary of 49,408 tokens, but the picture book's captions
use only some of them. Those get rows of their own while training; all others share one row, which
learns to mean nothing because now and then unknown words are strewn into a caption. So a prompt
such as "masterpiece, highly detailed red house" still paints a red house.
"""

from functools import lru_cache
from random import Random

import numpy as np

from extras.training import picturebook
from extras.training.captions import caption
from extras.training.scenes import vocabulary as words
from ldm_patched.modules.clip_tokenizer import END_TOKEN, START_TOKEN, clip_tokenizer

LENGTH = 77
VOCABULARY = 49408
PAD_G = 0  # the second encoder pads with this, the first with the end token
_SURVEYED = 12_000  # captions that are looked through for the ids in use
_MARKS = ".,;:!?-()'\""


@lru_cache(maxsize=1)
def used_ids() -> tuple[int, ...]:
    """The ids that captions use, rising; the same in any process. Raises VocabularyMissing."""
    tokenizer = clip_tokenizer()
    texts = [caption(picturebook.scene_from_seed(n), Random(n)) for n in range(_SURVEYED)]
    tables = (
        list(words.SUBJECTS), [entry.plural for entry in words.SUBJECTS.values()],
        [noun for e in words.SUBJECTS.values() for pair in e.synonyms for noun in pair],
        list(words.COLORS), *words.COLOR_SYNONYMS.values(), *words.TIMES.values(),
        [p for e in words.PLACES.values() for p in (*e.phrases, *e.tag)], list(words.PLACES),
        *words.WEATHERS.values(), *words.STYLES.values(), *words.SCALES.values(),
        *words.COUNTS.values(), *words.RELATIONS.values(), list(_MARKS),
    )  # fmt: skip
    texts += [text for table in tables for text in table]
    found = {START_TOKEN, END_TOKEN, PAD_G}
    for piece in {piece for text in texts for piece in text.split()}:  # no token spans a space
        found.update(tokenizer.encode(piece))
    return tuple(sorted(found))


def caption_ids(text: str) -> list[int]:
    """The ids of a caption without start and end, at most 75. Raises VocabularyMissing."""
    return clip_tokenizer().encode(text)[: LENGTH - 2]


def strew(ids: list[int], rng: Random) -> list[int]:
    """`ids` with up to a dozen ids that captions do not use, singly or as a run of tags."""
    known = _known()
    strange: list[int] = []
    for _ in range(rng.choice((1, 1, 2, 3, 6, 12))):
        token = rng.randrange(256, START_TOKEN)
        if token not in known:
            strange.append(token)
    out = list(ids)
    if rng.random() < 0.5:
        place = rng.choice((0, len(out)))
        out[place:place] = strange
    else:
        for token in strange:
            out.insert(rng.randrange(len(out) + 1), token)
    return out[: LENGTH - 2]


@lru_cache(maxsize=1)
def _known() -> frozenset[int]:
    return frozenset(used_ids())


def framed(ids: list[int]) -> np.ndarray:
    """(77,) int32: start, the ids, end, and the end token as padding (the first encoder's way)."""
    row = np.full(LENGTH, END_TOKEN, np.int32)
    row[0] = START_TOKEN
    row[1 : 1 + len(ids)] = ids
    return row
