"""<lora:name:weight> and <lora:name:weight:clip weight> in a prompt's text.

Tags are read after word lists, choices and arrays are filled in, so that each picture has the
LoRAs of its own text. A name is looked up among the files that are there, by file name without
its suffix, wherever it lies; it is never made into a path.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modules.prompt.parser import plain_number
from modules.spec import limits
from modules.spec.errors import LimitError, SpecError

_OPENING = "<lora:"
_TAG_CHARACTERS = 300


class LoraTag(NamedTuple):
    """A LoRA as a prompt names it; weights of the UNet and of the text encoders."""

    name: str
    weight: float = 1.0
    clip_weight: float = 1.0


def take_lora_tags(text: str) -> tuple[str, list[LoraTag]]:
    """(`text` without its tags, the tags in order). SpecError for a tag that cannot be read."""
    kept: list[str] = []
    tags: list[LoraTag] = []
    begin = search = 0
    while (at := text.find("<", search)) >= 0:
        search = at + 1
        if text[at : at + len(_OPENING)].lower() != _OPENING or _is_escaped(text, at):
            continue
        end = text.find(">", at, at + _TAG_CHARACTERS)
        if end < 0:
            raise SpecError(
                f"The tag {text[at : at + 40]!r} has no end; write <lora:name:0.8>.", "prompt"
            )
        kept.append(text[begin:at])
        tags.append(_read_tag(text[at + len(_OPENING) : end]))
        begin = search = end + 1
    kept.append(text[begin:])
    return "".join(kept), tags


def _is_escaped(text: str, at: int) -> bool:
    return at > 0 and text[at - 1] == "\\"


def _read_tag(content: str) -> LoraTag:
    name, *numbers = (part.strip() for part in content.split(":"))
    weights = [plain_number(number) for number in numbers]
    if not name or len(weights) > 2 or any(weight is None for weight in weights):
        raise SpecError(
            f"The tag <lora:{content[:80]}> cannot be read; write <lora:name:weight>, such as "
            "<lora:ink:0.8>.",
            "prompt",
        )
    known = [weight for weight in weights if weight is not None]
    most = limits.LORA_WEIGHT_MAX
    if any(abs(weight) > most for weight in known):
        raise SpecError(
            f"A weight in <lora:{content[:80]}> is beyond ±{most:g}; around 0.5 to 1 is usual.",
            "prompt",
        )
    weight = known[0] if known else 1.0
    return LoraTag(name, weight, known[1] if len(known) > 1 else weight)


def distinct(tags: Sequence[LoraTag]) -> tuple[LoraTag, ...]:
    """Each LoRA once, as it is named first. LimitError beyond the cap."""
    first: dict[str, LoraTag] = {}
    for tag in tags:
        first.setdefault(tag.name.casefold(), tag)
    if len(first) > limits.LORAS_PER_IMAGE:
        raise LimitError(
            f"The prompt names {len(first)} LoRAs for one picture, more than the "
            f"{limits.LORAS_PER_IMAGE} that fit; name fewer.",
            "prompt",
        )
    return tuple(first.values())


def index_of_names(names: Sequence[str]) -> dict[str, str]:
    """What a tag may say → the file's name in the list: whole, without suffix, or bare stem.

    Where two files share a stem, the first in the list has it.
    """
    index: dict[str, str] = {}
    stems = [name.rpartition(".")[0] or name for name in names]
    for keys in (names, stems, [stem.rpartition("/")[2] for stem in stems]):
        for key, name in zip(keys, names, strict=True):
            index.setdefault(key.casefold(), name)
    return index


def find_name(index: Mapping[str, str], name: str) -> str | None:
    """The file that a tag means, or None."""
    return index.get(name.casefold())
