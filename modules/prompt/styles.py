"""Styles: named texts that a prompt is set into.

    {"name": "watercolor", "title": "Watercolor",
     "prompt": "watercolor painting of {prompt}, wet paper, …", "negative_prompt": "photo, …"}

A file holds a list of such objects. The user's own folder is read before the one that ships, and
its styles come first; of two styles of one name the first counts. Files of other programs are
read too (see style_files).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from modules.prompt import style_files
from modules.prompt.style_files import PLACE, Style
from modules.spec import limits
from modules.spec.errors import LimitError, SpecError

RANDOM_STYLE = "random"
RANDOM_STYLE_TITLE = "Random style"

__all__ = [
    "PLACE",
    "RANDOM_STYLE",
    "RANDOM_STYLE_TITLE",
    "Style",
    "StyleBook",
    "StyledPrompt",
    "apply_styles",
]


@dataclass(frozen=True, slots=True)
class StyledPrompt:
    """A prompt's main line in its styles. Each text is encoded on its own."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


class StyleBook:
    """All styles by name, in the order in which a page lists them."""

    def __init__(self, styles: Sequence[Style] = (), notices: Sequence[str] = ()) -> None:
        """notices: a sentence for each file or entry that could not be used."""
        self._styles: dict[str, Style] = {}
        for style in styles:
            self._styles.setdefault(style.name.casefold(), style)
        self._titles: dict[str, Style] = {}
        for style in self._styles.values():
            self._titles.setdefault(style.title.casefold(), style)
        self.notices = tuple(notices)

    @classmethod
    def load(cls, folders: Sequence[Path]) -> "StyleBook":
        """Every style file of `folders`, earlier folders first; broken ones become notices."""
        styles: list[Style] = []
        notices: list[str] = []
        for folder in folders:
            for path in style_files.files_in(folder):
                found, complaints = style_files.read_file(path)
                styles += found
                notices += complaints
        return cls(styles, notices)

    def __iter__(self) -> Iterator[Style]:
        return iter(self._styles.values())

    def __len__(self) -> int:
        return len(self._styles)

    def __contains__(self, name: object) -> bool:
        """Whether a request may name it: what `find` finds, and the word for one by chance."""
        return isinstance(name, str) and (_is_random(name) or self._found(name) is not None)

    def find(self, name: str) -> Style:
        """The style of that name or title, whatever its case. SpecError if there is none."""
        found = self._found(name)
        if found is None:
            raise SpecError(
                f"The style {name!r} is not known; take it out, or put its file into the "
                "styles folder.",
                "styles",
            )
        return found

    def _found(self, name: str) -> Style | None:
        key = name.casefold()
        return self._styles.get(key) or self._titles.get(key)

    def chosen(self, names: Sequence[str], seed: int) -> tuple[Style, ...]:
        """The styles of `names` in order, each once. `random` draws one by the seed.

        Raises SpecError for an unknown name.
        """
        everything = tuple(self)
        chosen: dict[str, Style] = {}
        for place, name in enumerate(names):
            if _is_random(name):
                if not everything:
                    continue
                draw = Random(f"{seed}:style:{place}").random()
                style = everything[int(draw * len(everything))]
            else:
                style = self.find(name)
            chosen.setdefault(style.name, style)
        return tuple(chosen.values())


def _is_random(name: str) -> bool:
    return name.casefold() in (RANDOM_STYLE, RANDOM_STYLE_TITLE.casefold())


def apply_styles(styles: Sequence[Style], prompt: str) -> StyledPrompt:
    """`prompt` set into each style's text; it comes first by itself if no style has a place for it.

    Lines of a style are texts of their own. Empty texts are left out. Raises LimitError.
    """
    places = sum(style.prompt.count(PLACE) for style in styles)
    words = sum(len(style.prompt) + len(style.negative_prompt) for style in styles)
    if words + (places or 1) * len(prompt) > limits.PROMPT_OUTPUT_BYTES:
        raise LimitError(
            f"The prompt in its styles is longer than {limits.PROMPT_OUTPUT_BYTES // 1024} KiB; "
            "shorten it or choose fewer styles.",
            "styles",
        )
    positive = [] if any(PLACE in style.prompt for style in styles) else [prompt]
    negative: list[str] = []
    for style in styles:
        # Split first: a prompt is one line, and a style's own lines must not depend on it.
        positive += [line.replace(PLACE, prompt) for line in style.prompt.splitlines()]
        negative += style.negative_prompt.splitlines()
    return StyledPrompt(
        tuple(line for text in positive if (line := text.strip())),
        tuple(line for text in negative if (line := text.strip())),
    )
