"""What a prompt leaves open, and how one picture fills it in.

    {cat|dog|owl}          one of these
    [[red, green, blue]]   picture by picture; several arrays give every combination, the first
                           array changing fastest
    __animal__             a line of the word list animal.txt; lists may name other lists

A template is read once into a tree; each picture then walks it. Both take linear time, and what
one picture may grow to is capped. A bracket without its partner stays as it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from modules.prompt.parser import is_escape
from modules.spec import limits
from modules.spec.errors import LimitError

_MARKS = re.compile(r"[\\{}|\[\],_]")  # one character each: nothing to backtrack over
_NAME = re.compile(r"[\w./-]", re.UNICODE)
_TAG_WINDOW = 300
_DEPTH = 4 * limits.PROMPT_NESTING  # brackets and lists inside each other, while filling in


class Choice(NamedTuple):
    """{a|b}."""

    options: tuple["Template", ...]


class Array(NamedTuple):
    """[[a, b]]."""

    items: tuple["Template", ...]


class Wildcard(NamedTuple):
    """__name__. in_tag: it stands inside <lora:…>, where an unknown name is left as written."""

    name: str
    in_tag: bool = False


Node = str | Choice | Array | Wildcard
Template = tuple[Node, ...]
Lines = Callable[[str], Sequence[str] | None]
"""The lines of the word list of a name; None when there is no such list."""


# --- Reading ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Frame:
    """An open bracket: the finished parts of it, and the part being read."""

    opening: str  # "{", "[[" or "" for the whole text
    parts: list[list[Node]] = field(default_factory=list)
    current: list[Node] = field(default_factory=list)

    def raw(self) -> Iterator[Node]:
        """The frame as plain text, for a bracket that is never closed."""
        yield self.opening
        for part in self.parts:
            yield from part
            yield "|" if self.opening == "{" else ","
        yield from self.current


class _Reader:
    """One pass over a text with a stack of open brackets, at most PROMPT_NESTING deep."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.stack = [_Frame("")]

    def read(self) -> Template:
        begin = position = 0
        while (mark := _MARKS.search(self.text, position)) is not None:
            at = mark.start()
            handled = self._mark(at)
            if handled:
                self._text(self.text[begin:at])
                position = begin = handled()
            else:
                position = at + 1
        self._text(self.text[begin:])
        while len(self.stack) > 1:
            self._give_up()
        return tuple(_joined(self.stack[0].current))

    def _mark(self, at: int) -> Callable[[], int] | None:
        """What to do at a mark, giving the position after it; None if it is plain text."""
        text, top = self.text, self.stack[-1]
        char = text[at]
        if char == "\\":
            return (lambda: self._escape(at)) if is_escape(text, at) else None
        if char == "{" and len(self.stack) <= limits.PROMPT_NESTING:
            return lambda: self._open("{", at)
        if char == "|" and top.opening == "{":
            return lambda: self._next(at)
        if char == "}" and self._is_open("{"):
            return lambda: self._close_choice(at)
        if text.startswith("[[", at) and len(self.stack) <= limits.PROMPT_NESTING:
            return lambda: self._open("[[", at)
        if char == "," and top.opening == "[[":
            return lambda: self._next(at)
        if text.startswith("]]", at) and self._is_open("[["):
            return lambda: self._close_array(at)
        if char == "_" and (end := _wildcard_end(text, at)):
            return lambda: self._wildcard(at, end)
        return None

    def _text(self, text: str) -> None:
        if text:
            self.stack[-1].current.append(text)

    def _escape(self, at: int) -> int:
        """Marks of this file are resolved here; those of emphasis keep their backslash."""
        escaped = self.text[at + 1]
        self._text(escaped if escaped in "{}|[],_" else self.text[at : at + 2])
        return at + 2

    def _open(self, opening: str, at: int) -> int:
        self.stack.append(_Frame(opening))
        return at + len(opening)

    def _next(self, at: int) -> int:
        top = self.stack[-1]
        top.parts.append(top.current)
        top.current = []
        return at + 1

    def _close_choice(self, at: int) -> int:
        frame = self._close("{")
        options = tuple(tuple(_joined(part)) for part in frame.parts)
        whole: list[Node] = ["{", *options[0], "}"] if len(options) == 1 else [Choice(options)]
        self.stack[-1].current.extend(whole)
        return at + 1

    def _close_array(self, at: int) -> int:
        frame = self._close("[[")
        items = tuple(tuple(_joined(part)) for part in frame.parts)
        self.stack[-1].current.append(Array(items))
        return at + 2

    def _close(self, opening: str) -> _Frame:
        """The innermost open frame of a kind, ended; frames inside it were never closed."""
        while self.stack[-1].opening != opening:
            self._give_up()
        frame = self.stack.pop()
        frame.parts.append(frame.current)
        return frame

    def _give_up(self) -> None:
        frame = self.stack.pop()
        self.stack[-1].current.extend(frame.raw())

    def _is_open(self, opening: str) -> bool:
        return any(frame.opening == opening for frame in self.stack)

    def _wildcard(self, at: int, end: int) -> int:
        before = self.text[max(0, at - _TAG_WINDOW) : at]
        in_tag = before.rfind("<lora:") > before.rfind(">")
        self.stack[-1].current.append(Wildcard(self.text[at + 2 : end - 2], in_tag))
        return end


def _wildcard_end(text: str, at: int) -> int:
    """The position after __name__ that begins at `at`, or 0. A name begins with no underscore."""
    if not text.startswith("__", at):
        return 0
    last = min(len(text), at + 2 + limits.WILDCARD_NAME_CHARACTERS)
    for position in range(at + 2, last):
        if text[position] == "_":
            if position == at + 2:
                return 0
            if text.startswith("__", position):
                return position + 2
        elif not _NAME.match(text[position]):
            return 0
    return 0


def _joined(nodes: Sequence[Node]) -> Iterator[Node]:
    """Neighbouring texts as one."""
    texts: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            texts.append(node)
            continue
        if texts:
            yield "".join(texts)
            texts = []
        yield node
    if texts:
        yield "".join(texts)


def read_template(text: str) -> Template:
    """The tree of a text. Never raises."""
    return _Reader(text).read()


# --- Counting ---------------------------------------------------------------------------------


def count_combinations(template: Template) -> int:
    """How many pictures show every combination of the arrays as written, without making any.

    Word lists may bring more arrays; those are not counted. LimitError beyond the cap.
    """
    total = 1
    for node in template:
        if isinstance(node, Array):
            total *= len(node.items) * max(map(count_combinations, node.items))
        elif isinstance(node, Choice):
            total *= max(map(count_combinations, node.options))
        if total > limits.PROMPT_COMBINATIONS:
            raise too_many_combinations()
    return total


def too_many_combinations() -> LimitError:
    """The error for arrays whose product is beyond the cap."""
    return LimitError(
        "The arrays [[…]] of the prompt have more than "
        f"{limits.PROMPT_COMBINATIONS:,} combinations; use fewer arrays or shorter ones.",
        "prompt",
    )


def wildcard_names(template: Template) -> Iterator[str]:
    """Names of the word lists that a template asks for, in order, with repetitions."""
    for node in template:
        if isinstance(node, Wildcard):
            yield node.name
        elif isinstance(node, Choice | Array):
            for part in node[0]:
                yield from wildcard_names(part)


# --- Filling in -------------------------------------------------------------------------------


class Filler:
    """Fills in the templates of one picture; what it may write and look up is capped in all.

    index: the picture, from 0. seed: decides every random choice. in_order: word lists and
    choices are gone through line by line, picture by picture. read: template of a list's line.
    """

    def __init__(
        self,
        index: int,
        seed: int,
        lines: Lines,
        *,
        in_order: bool = False,
        read: Callable[[str], Template] = read_template,
    ) -> None:
        self.missing: dict[str, None] = {}
        self.used: dict[str, None] = {}
        self._index, self._in_order = index, in_order
        self._seed = seed
        self._lines, self._read = lines, read
        self._bytes = self._substitutions = self._depth = 0
        self._random = Random(0)
        self._quotient, self._product = index, 1

    def fill(self, template: Template, stream: str) -> str:
        """The text of this picture. stream: names a series of random choices of its own, so
        that a change of one text leaves the choices in another as they are.

        Raises LimitError.
        """
        self._random = Random(f"{self._seed}:{stream}")
        self._quotient, self._product = self._index, 1
        out: list[str] = []
        self._fill(template, out, ())
        return "".join(out)

    def _fill(self, template: Template, out: list[str], lists: tuple[str, ...]) -> None:
        """lists: the word lists that this text stands in, outermost first."""
        self._depth += 1
        for node in template:
            if isinstance(node, str):
                self._write(node, out)
            elif isinstance(node, Wildcard):
                self._wildcard(node, out, lists)
            else:
                part = self._part(node)
                if len(part) == 1 and isinstance(part[0], str):  # most are plain words
                    self._write(part[0], out)
                else:
                    self._fill(part, out, lists)
        self._depth -= 1

    def _write(self, text: str, out: list[str]) -> None:
        self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if self._bytes > limits.PROMPT_OUTPUT_BYTES:
            raise LimitError(
                "The prompt grows beyond "
                f"{limits.PROMPT_OUTPUT_BYTES // 1024} KiB once its word lists are filled in; "
                "shorten it or the lists that it names.",
                "prompt",
            )
        out.append(text)

    def _pick(self, count: int) -> int:
        """Random.random() is the one draw that Python promises to keep from version to version."""
        number = int(self._random.random() * count)
        return self._index % count if self._in_order else number

    def _part(self, node: Choice | Array) -> Template:
        """What this picture has of it."""
        if isinstance(node, Choice):
            return node.options[self._pick(len(node.options))]
        count = len(node.items)
        self._quotient, place = divmod(self._quotient, count)
        self._product *= count
        if self._product > limits.PROMPT_COMBINATIONS:
            raise too_many_combinations()
        return node.items[place]

    def _wildcard(self, node: Wildcard, out: list[str], lists: tuple[str, ...]) -> None:
        lines = self._lines(node.name)
        if not lines:
            if node.in_tag:
                self._write(f"__{node.name}__", out)
            else:
                self.missing[node.name] = None
                self._write(bare_word(node.name), out)
            return
        self.used[node.name] = None
        self._substitutions += 1
        deep = len(lists) >= limits.PROMPT_NESTING or self._depth >= _DEPTH
        if deep or self._substitutions > limits.PROMPT_SUBSTITUTIONS:
            raise self._without_end(node.name, lists)
        line = lines[self._pick(len(lines))]
        self._fill(self._read(line), out, (*lists, node.name))

    def _without_end(self, name: str, lists: tuple[str, ...]) -> LimitError:
        if name in lists:
            return LimitError(
                f"The word list __{name}__ names itself, so it has no end; take "
                f"__{name}__ out of the list's lines, or add lines without it.",
                "prompt",
            )
        return LimitError(
            f"The prompt asks for more than {limits.PROMPT_SUBSTITUTIONS:,} lines of word lists "
            f"(or lists {limits.PROMPT_NESTING} deep) for one picture; name fewer.",
            "prompt",
        )


def bare_word(name: str) -> str:
    """What an unknown word list's name says: `clothes/winter-hat` → `winter hat`."""
    return name.rpartition("/")[2].replace("-", " ").replace("_", " ")
