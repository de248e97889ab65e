"""What a request will be painted from, to look at before anything runs.

Plans are made for the first pictures only; the combinations of arrays are counted, not made.
"""

import os.path
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from pydantic import BaseModel, ConfigDict

from ldm_patched.modules.embedding_names import readings
from modules.prompt.plan import (
    LoraUse,
    PicturePrompt,
    PromptBooks,
    PromptPlan,
    Templates,
    make_plan,
    read_templates,
)
from modules.prompt.styles import RANDOM_STYLE, RANDOM_STYLE_TITLE
from modules.prompt.template import (
    Array,
    Choice,
    Template,
    Wildcard,
    count_combinations,
)
from modules.prompt.tokens import TextChunk, text_chunks
from modules.spec.errors import LimitError, ModelMissing, SpecError, StudioError
from modules.spec.task_spec import TaskSpec

SHOWN = 50  # prompts
_LINE_CHARACTERS = 200
_BEFORE_CHANGE = 24  # characters of what all prompts share that a line keeps

Misfits = Callable[[Sequence[str]], Sequence[str]]
"""Files of LoRAs → a sentence on each that is not for the request's checkpoint."""
Vectors = Callable[[Sequence[str]], Mapping[str, int | None]]
"""Names of learned words → how many tokens those that there are stand for, None if unsaid."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class PromptLine(_Frozen):
    """One of the shown prompts. seed: None as long as it is not drawn.

    painted: False for a combination that would need more pictures. text: its beginning, or where
    it differs from the others.
    """

    index: int
    seed: int | None
    painted: bool
    text: str


class PictureDetail(_Frozen):
    """Everything that one picture is painted from; a text is a tuple of chunks."""

    index: int
    positive: tuple[tuple[TextChunk, ...], ...]
    negative: tuple[tuple[TextChunk, ...], ...]
    loras: tuple[LoraUse, ...]
    styles: tuple[str, ...]
    expansion: str


class Problem(_Frozen):
    """Why nothing of the request can be painted as it stands. field: of the request, or ''."""

    message: str
    field: str = ""


class Inspection(_Frozen):
    """The answer. pictures: how many will be painted; combinations: of the arrays.

    by_chance: another seed gives other words. misfits (LoRAs for another family), notices and
    conflicts are sentences.
    """

    pictures: int = 0
    combinations: int = 0
    prompts: tuple[PromptLine, ...] = ()
    picture: PictureDetail | None = None
    by_chance: bool = False
    missing_loras: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    missing_embeddings: tuple[str, ...] = ()
    wildcards: tuple[str, ...] = ()
    missing_wildcards: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    problem: Problem | None = None


def inspect_spec(
    spec: TaskSpec,
    books: PromptBooks,
    vectors: Vectors,
    picture: int = 0,
    misfits: Misfits = lambda _: (),
) -> Inspection:
    """Look at a request. What is wrong with it becomes `problem`; nothing of it is raised.

    picture: whose detail is wanted, among the shown ones.
    """
    try:
        return _inspect(spec, books, vectors, picture, misfits)
    except StudioError as error:
        return Inspection(pictures=spec.image_count, problem=problem_of(error))


def problem_of(error: StudioError) -> Problem:
    """The sentence of an error, and the field that it is about."""
    field = error.field if isinstance(error, SpecError | LimitError) else ""
    return Problem(message=str(error), field=field)


def _inspect(
    spec: TaskSpec, books: PromptBooks, find: Vectors, picture: int, misfits: Misfits
) -> Inspection:
    templates = read_templates(spec)
    plan = _plan(spec, books, templates)
    used = dict.fromkeys(use.file for each in plan.pictures for use in each.loras)
    meant = {name: readings(name) for name in plan.embeddings}
    vectors = find(list(chain.from_iterable(meant.values()))) if meant else {}
    there = {name: next((r for r in meant[name] if r in vectors), None) for name in meant}
    chosen = max(0, min(picture, len(plan.pictures) - 1))
    missing = tuple(name for name, found in there.items() if found is None)
    embeddings = tuple(dict.fromkeys(filter(None, there.values())))
    notices = [*plan.notices, *_unsaid(embeddings, vectors)]
    known = {name: count or 1 for name, count in vectors.items()}
    try:
        detail = _detail(chosen, plan.pictures[chosen], books, known)
    except ModelMissing as error:  # no vocabulary: all but the counts is known
        detail = None
        notices.append(str(error))
    return Inspection(
        pictures=spec.image_count,
        combinations=plan.combinations,
        prompts=tuple(_lines(spec, plan.pictures)),
        picture=detail,
        by_chance=_is_by_chance(spec, books, templates),
        missing_loras=(*plan.missing_listed, *plan.missing_loras),
        misfits=tuple(misfits(tuple(used))) if used else (),
        embeddings=embeddings,
        missing_embeddings=missing,
        wildcards=tuple(name for name in plan.wildcards if name not in plan.missing_wildcards),
        missing_wildcards=plan.missing_wildcards,
        notices=tuple(notices),
        conflicts=plan.conflicts,
    )


def _plan(spec: TaskSpec, books: PromptBooks, templates: Templates) -> PromptPlan:
    """Of the pictures that are painted, and of further combinations where those can be read."""
    shown = min(SHOWN, max(spec.image_count, count_combinations(templates.positive)))
    if shown > spec.image_count:
        try:
            return make_plan(spec, books, range(shown), templates)
        except StudioError:
            pass  # a combination that is not painted must not hide those that are
    return make_plan(spec, books, None, templates)


def _unsaid(names: Sequence[str], vectors: Mapping[str, int | None]) -> list[str]:
    return [
        f"embedding:{name[:80]} counts as one token here; its file does not say how many it has."
        for name in names
        if vectors[name] is None
    ]


def _detail(
    index: int, picture: PicturePrompt, books: PromptBooks, vectors: Mapping[str, int]
) -> PictureDetail:
    return PictureDetail(
        index=index,
        positive=tuple(text_chunks(text, vectors) for text in picture.positive),
        negative=tuple(text_chunks(text, vectors) for text in picture.negative),
        loras=picture.loras,
        styles=tuple(books.styles.find(name).title for name in picture.styles),
        expansion=picture.expansion,
    )


def _lines(spec: TaskSpec, pictures: Sequence[PicturePrompt]) -> list[PromptLine]:
    texts = [" · ".join(picture.positive) for picture in pictures]
    same = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0
    begin = texts[0].rfind(" ", 0, max(0, same - _BEFORE_CHANGE)) + 1 if texts else 0
    if len(set(texts)) == 1:
        begin = 0
    return [
        PromptLine(
            index=index,
            seed=None if spec.seed is None else spec.seed_of(index),
            painted=index < spec.image_count,
            text=_excerpt(text, begin),
        )
        for index, text in enumerate(texts)
    ]


def _excerpt(text: str, begin: int) -> str:
    end = begin + _LINE_CHARACTERS
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def _is_by_chance(spec: TaskSpec, books: PromptBooks, templates: Templates) -> bool:
    if spec.expand_prompt:
        return True
    if {RANDOM_STYLE, RANDOM_STYLE_TITLE.casefold()} & {name.casefold() for name in spec.styles}:
        return True
    return not spec.wildcards_in_order and any(_draws(part, books) for part in templates)


def _draws(template: Template, books: PromptBooks) -> bool:
    """Whether any part is drawn by the seed."""
    for node in template:
        if isinstance(node, Choice):
            return True
        if isinstance(node, Wildcard) and books.wildcards.lines(node.name):
            return True
        if isinstance(node, Array) and any(_draws(item, books) for item in node.items):
            return True
    return False
