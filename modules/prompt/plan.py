"""From a request's words to what each picture is painted from.

    template  →  word lists, choices, arrays filled in  →  LoRA tags taken out  →  lines
    first line  →  set into the styles, expanded;  every line is encoded on its own

A plan is made before anything is painted, by the worker and by whoever wants to look first: the
same request, files and seed give the same plan. Making it is linear in what it writes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from modules.prompt import lora_tags, parser
from modules.prompt.conflicts import find_conflicts
from modules.prompt.expansion import Expands
from modules.prompt.language_model import LanguageModel
from modules.prompt.lora_tags import LoraTag
from modules.prompt.styles import Style, StyleBook, apply_styles
from modules.prompt.template import (
    Filler,
    Template,
    count_combinations,
    read_template,
    wildcard_names,
)
from modules.prompt.wildcards import WildcardBook
from modules.spec import limits
from modules.spec.errors import LimitError, ModelMissing
from modules.spec.task_spec import TaskSpec

_READ_CHARACTERS = 20_000  # of finished texts that a plan looks through for notices


@dataclass(frozen=True, kw_only=True)
class PromptBooks:
    """Where a plan looks things up. loras: file names as requests say them.

    language_model: one of the user's that is to add the words; `expander` is None where only the
    worker can run it.
    """

    wildcards: WildcardBook = field(default_factory=lambda: WildcardBook(()))
    styles: StyleBook = field(default_factory=StyleBook)
    expander: Expands | None = None
    language_model: LanguageModel | None = None
    loras: Sequence[str] = ()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class LoraUse(_Frozen):
    """A LoRA file that a request asks for; weights of the UNet and of the text encoders."""

    file: str
    weight: float
    clip_weight: float


class PicturePrompt(_Frozen):
    """What one picture is painted from. Each text is encoded on its own; there is always one.

    pooled_count: how many of the first positive texts give the pooled output. styles: names of
    the styles in it. expansion: the words that were added, already among the texts.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    pooled_count: int = 1
    loras: tuple[LoraUse, ...] = ()
    styles: tuple[str, ...] = ()
    expansion: str = ""

    @property
    def positive_text(self) -> str:
        """All that is asked for as one text, for programs that know one text only."""
        tags = "".join(
            f" <lora:{use.file.rpartition('.')[0]}:{use.weight:g}>" for use in self.loras
        )
        return "\n".join(self.positive) + tags

    @property
    def negative_text(self) -> str:
        """All that is ruled out as one text."""
        return "\n".join(self.negative)


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """The pictures asked for, and what there is to say about them.

    combinations: pictures that show every combination of the arrays as written. wildcards: word
    lists that are named, found or not; missing_wildcards: those read as bare words.
    missing_loras: names in the prompt that no file has; missing_listed: those of the list.
    notices and conflicts are sentences.
    """

    pictures: tuple[PicturePrompt, ...]
    combinations: int
    wildcards: tuple[str, ...] = ()
    missing_wildcards: tuple[str, ...] = ()
    missing_loras: tuple[str, ...] = ()
    missing_listed: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    def raise_if_missing(self) -> None:
        """ModelMissing if a LoRA that the list or the prompt names is not there."""
        for names, remedy in (
            (self.missing_listed, "take it out of the list of LoRAs"),
            (self.missing_loras, "take <lora:{}…> out of the prompt"),
        ):
            if names:
                name = names[0][:80]
                raise ModelMissing(
                    f"The LoRA {name!r} is not in the loras folder of the models; put the file "
                    f"there, or {remedy.format(name)}."
                )


class Templates(NamedTuple):
    """Both prompts of a request, read."""

    positive: Template
    negative: Template


def read_templates(spec: TaskSpec) -> Templates:
    """Never raises."""
    texts = (spec.prompt, spec.negative_prompt)
    return Templates(*(read_template(parser.without_comments(text)) for text in texts))


def make_plan(
    spec: TaskSpec,
    books: PromptBooks,
    indices: Iterable[int] | None = None,
    templates: Templates | None = None,
) -> PromptPlan:
    """The plan of a request; a seed that is not fixed yet counts as 0.

    indices: pictures to plan, from 0; None is every picture of the request. templates: of `spec`,
    where they were read before. Raises SpecError for an unknown style or a LoRA tag that cannot be
    read, LimitError.
    """
    planner = _Planner(spec, books, templates or read_templates(spec))
    return planner.plan(range(spec.image_count) if indices is None else indices)


class _Planner:
    """One making of a plan; gathers what is noticed on the way."""

    def __init__(self, spec: TaskSpec, books: PromptBooks, templates: Templates) -> None:
        self.spec = spec if spec.seed is not None else spec.model_copy(update={"seed": 0})
        self.books = books
        self.positive, self.negative = templates
        self.lora_files = lora_tags.index_of_names(books.loras)
        # Dictionaries as sets that keep their order.
        self.notices: dict[str, None] = dict.fromkeys(books.styles.notices if spec.styles else ())
        self.missing_wildcards: dict[str, None] = {}
        self.used_wildcards: dict[str, None] = {}
        self.missing_loras: dict[str, None] = {}
        self.missing_listed: dict[str, None] = {}
        self.listed = tuple(self._listed())
        self.embeddings: dict[str, None] = {}
        self.conflicts: dict[str, None] = {}
        self._seen: set[str] = set()
        self._unread = _READ_CHARACTERS

    def plan(self, indices: Iterable[int]) -> PromptPlan:
        combinations = count_combinations(self.positive)
        count_combinations(self.negative)
        pictures = tuple(map(self._picture, indices))
        painted = min(len(pictures), self.spec.image_count)
        if combinations > painted > 0:
            self.notices[
                f"The arrays have {combinations:,} combinations; {painted} of them "
                f"{'is' if painted == 1 else 'are'} painted. Ask for more pictures to see "
                "the others."
            ] = None
        for name in self.missing_wildcards:
            self.notices[f"There is no word list __{name}__; its name is read as words."] = None
        if self.spec.expand_prompt and self.books.language_model is not None:
            self.notices[self.books.language_model.note] = None
        elif self.spec.expand_prompt and self.books.expander is None:
            self.notices["The phrases for prompt expansion are not there; it is left out."] = None
        named = (*wildcard_names(self.positive), *wildcard_names(self.negative))
        wildcards = tuple(dict.fromkeys((*named, *self.used_wildcards)))
        return PromptPlan(
            pictures=pictures,
            combinations=combinations,
            wildcards=wildcards,
            missing_wildcards=tuple(self.missing_wildcards),
            missing_loras=tuple(self.missing_loras),
            missing_listed=tuple(self.missing_listed),
            embeddings=tuple(self.embeddings),
            notices=(*self.notices, *self.books.wildcards.notices(wildcards)),
            conflicts=tuple(self.conflicts),
        )

    def _picture(self, index: int) -> PicturePrompt:
        spec, seed = self.spec, self.spec.seed_of(index)
        filler = Filler(
            spec.first_index + index,
            seed,
            self.books.wildcards.lines,
            in_order=spec.wildcards_in_order,
            read=self.books.wildcards.template,
        )
        positive, tags = self._lines(filler, self.positive, "prompt")
        negative, ignored = self._lines(filler, self.negative, "negative")
        self.missing_wildcards |= filler.missing
        self.used_wildcards |= filler.used
        if ignored:
            self.notices[
                "LoRAs in the negative prompt have no effect; name them in the prompt."
            ] = None

        chosen = self.books.styles.chosen(spec.styles, seed)
        main, *others = positive or [""]
        styled = apply_styles(chosen, main)
        texts, style_tags = self._without_tags(styled.positive)
        texts = [text for text in (*texts, *others) if text] or [main]
        pooled = len(texts)
        expansion = self._expansion(main, seed, beside=" ".join(style.prompt for style in chosen))
        if expansion:
            texts.append(f"{main}, {expansion}")
        negatives, _ = self._without_tags(styled.negative)
        negatives = [text for text in (*negatives, *negative) if text] or [""]
        _check_length(texts, negatives)
        self._notice((*texts, *negatives))
        self._compare(positive, negative, chosen)
        return PicturePrompt(
            positive=tuple(texts),
            negative=tuple(negatives),
            pooled_count=pooled,
            loras=tuple(self._loras([*tags, *style_tags])),
            styles=tuple(style.name for style in chosen),
            expansion=expansion,
        )

    def _lines(
        self, filler: Filler, template: Template, stream: str
    ) -> tuple[list[str], list[LoraTag]]:
        text, tags = lora_tags.take_lora_tags(filler.fill(template, stream))
        return list(parser.split_lines(text)), tags

    def _without_tags(self, texts: Sequence[str]) -> tuple[list[str], list[LoraTag]]:
        taken = [lora_tags.take_lora_tags(text) for text in texts]
        texts = [parser.tidy(text) if tags else text for text, tags in taken]
        return texts, [tag for _, tags in taken for tag in tags]

    def _listed(self) -> Iterable[LoraUse]:
        """The LoRAs of the request's own list that are switched on."""
        for lora in self.spec.loras:
            file = lora_tags.find_name(self.lora_files, lora.name)
            if not lora.enabled:
                continue
            if file is None:
                self.missing_listed[lora.name] = None
                continue
            clip_weight = lora.weight if lora.clip_weight is None else lora.clip_weight
            yield LoraUse(file=file, weight=lora.weight, clip_weight=clip_weight)

    def _loras(self, tags: Sequence[LoraTag]) -> Iterable[LoraUse]:
        """Those of the list, then those of the tags; a file counts as it is named first."""
        uses: dict[str, LoraUse] = {}
        for use in self.listed:
            uses.setdefault(use.file, use)
        for tag in lora_tags.distinct(tags):
            file = lora_tags.find_name(self.lora_files, tag.name)
            if file is None:
                self.missing_loras[tag.name] = None
            else:
                use = LoraUse(file=file, weight=tag.weight, clip_weight=tag.clip_weight)
                uses.setdefault(file, use)
        if len(uses) > limits.LORAS_PER_IMAGE:
            raise LimitError(
                f"The list and the prompt name {len(uses)} LoRAs for one picture, more than the "
                f"{limits.LORAS_PER_IMAGE} that fit; name fewer.",
                "loras",
            )
        return uses.values()

    def _expansion(self, main: str, seed: int, beside: str) -> str:
        if not self.spec.expand_prompt or self.books.expander is None:
            return ""
        words = parser.parse(main).words
        return ", ".join(self.books.expander.expand(words, seed, beside=beside))

    def _compare(
        self, positive: Sequence[str], negative: Sequence[str], styles: Sequence[Style]
    ) -> None:
        """What the texts of a picture ask for and rule out at the same time."""
        asked, ruled_out = " , ".join(positive), ", ".join(negative)
        if self._may_read(f"{asked}\n{ruled_out}"):
            found = find_conflicts(asked, ruled_out, [(s.title, s) for s in styles])
            self.conflicts |= dict.fromkeys(found)

    def _may_read(self, text: str) -> bool:
        """Whether `text` is new and there is time to look through it for what is worth saying.

        Many long pictures differ in a few words; the first ones show what is odd about them.
        """
        if text in self._seen or self._unread <= 0:
            return False
        self._seen.add(text)
        self._unread -= len(text)
        return True

    def _notice(self, texts: Iterable[str]) -> None:
        """What the parser says about each text, once; and every embedding, however long it takes,
        for one that is missing must be known before the first picture is painted."""
        for text in texts:
            may_name = parser.EMBEDDING in text and text not in self._seen
            if self._may_read(text):
                self.notices |= dict.fromkeys(parser.parsed(text).notices)
            if may_name:
                self._seen.add(text)
                self.embeddings |= dict.fromkeys(parser.parsed(text).embeddings)


def _check_length(*groups: Sequence[str]) -> None:
    size = sum(len(text.encode("utf-8", "replace")) for texts in groups for text in texts)
    if size > limits.PROMPT_OUTPUT_BYTES:
        raise LimitError(
            f"The prompt in its styles is longer than {limits.PROMPT_OUTPUT_BYTES // 1024} KiB; "
            "shorten it or choose fewer styles.",
            "prompt",
        )
