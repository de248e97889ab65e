"""Learned words in a prompt, by name: `embedding:name`, up to a blank, comma or colon.

What ends a sentence or a bracket may stand right after a name. It belongs to the name if there is
a file of that name, and to the words around it otherwise.
"""

import re
from collections.abc import Callable, Iterator

REFERENCE = re.compile(r"embedding:([^\s,:]+)")
MARKS = re.compile(r'[|;!?"<>*()\[\]{}]')
"""What files are hardly called, so that a name may also end before one."""


def readings(name: str) -> tuple[str, ...]:
    """What may be meant by a name as it is written: itself, then shorter ones."""
    return tuple(dict.fromkeys((name, _bare(name), _bare(MARKS.split(name, maxsplit=1)[0]))))


def _bare(name: str) -> str:
    """`name` without the punctuation at its end."""
    end = len(name)
    while end and not (name[end - 1].isalnum() or name[end - 1] == "_"):
        end -= 1
    return name[:end] or name


def references(text: str) -> Iterator[str]:
    """The names in `text` as they are written, in order."""
    at = 0
    while match := REFERENCE.search(text, at):
        yield match[1]
        mark = MARKS.search(match[1])
        at = match.start(1) + mark.start() if mark else match.end()


def split_references(
    text: str, is_there: Callable[[str], bool]
) -> Iterator[tuple[str, str | None]]:
    """Stretches of `text` in order: (words, None), or ("", name) for an `embedding:name`.

    is_there: whether a name is known; one that is not in any reading is given as it is written.
    """
    position = 0
    while match := REFERENCE.search(text, position):
        if match.start() > position:
            yield text[position : match.start()], None
        name = next(filter(is_there, readings(match[1])), match[1])
        yield "", name
        position = match.start(1) + len(name)
    if position < len(text):
        yield text[position:], None
