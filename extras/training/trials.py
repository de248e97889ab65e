"""Held-out prompts with what each of them claims, by which paintings are judged."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from extras.training import picturebook
from extras.training.captions import caption, with_article
from extras.training.pages import FIRST_TRAINING_SEED, nearest
from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import Scene


@dataclass(frozen=True)
class Trial:
    """A prompt, the scene that it was written for, and what of the scene it tells: "subject",
    "colour", "place" and "style"."""

    prompt: str
    scene: Scene
    claims: frozenset[str]


def _says(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases is in the text, word by word."""
    return any(re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) for phrase in phrases)


def _nouns(subject: str) -> list[str]:
    entry = words.SUBJECTS[subject]
    return [subject, entry.plural, *(noun for pair in entry.synonyms for noun in pair)]


def _colors(color: str) -> list[str]:
    return [color, *words.COLOR_SYNONYMS.get(color, ())]


def claims(text: str, scene: Scene) -> frozenset[str]:
    """What a caption of a scene tells of it; of several things, only what it tells of each."""
    found = set()
    place = words.PLACES[scene.place]
    where = sorted((*place.phrases, *place.tag), key=len, reverse=True)
    # "by a blue lake" and "in the mountains" tell nothing of things.
    rest = re.sub("|".join(map(re.escape, where)), "", text, flags=re.I) if where else text
    things = scene.things
    if things and all(_says(rest, _nouns(thing.subject)) for thing in things):
        found.add("subject")
        # Things of one colour might share the word, so that nothing is known of the second.
        distinct = len({thing.color for thing in things}) == len(things)
        if distinct and all(_says(rest, _colors(thing.color)) for thing in things):
            found.add("colour")
    # A plain ground never has the colour of a thing on it, so its colour's word is its own.
    if _says(text, where or [scene.place_color]):
        found.add("place")
    if _says(text, words.STYLES[scene.style]):
        found.add("style")
    return frozenset(found)


def held_out(groups: int, *, needs: frozenset[str] = frozenset()) -> Iterator[Trial]:
    """Trials of scenes with so many groups of things that training never drew.

    needs: claims without which a caption is passed over.
    """
    for seed in range(FIRST_TRAINING_SEED):
        scene = picturebook.scene_from_seed(seed)
        if len(scene.things) != groups:
            continue
        text = caption(scene, Random(f"trial {seed}"))
        told = claims(text, scene)
        if needs <= told:
            yield Trial(text, scene, told)


def some_trials(count: int, groups: int, *needs: str) -> list[Trial]:
    """The first `count` of `held_out`."""
    return list(islice(held_out(groups, needs=frozenset(needs)), count))


def on_page_of(trial: Trial, sizes: Sequence[tuple[int, int]]) -> Trial:
    """The same trial on a page of the one of `sizes`, (width, height), nearest in shape."""
    return replace(trial, scene=replace(trial.scene, size=nearest(*trial.scene.size, sizes)))


def open_prompts(count: int) -> list[tuple[str, str]]:
    """Prompts that name a colour and a subject and leave the place open; each with its subject."""
    rng = Random("open prompts")
    drawn = [(rng.choice(list(words.COLORS)), rng.choice(list(words.SUBJECTS)))
             for _ in range(count)]  # fmt: skip
    return [(with_article(f"{color} {subject}"), subject) for color, subject in drawn]


_PAIRS = (
    ("meadow", "space"), ("forest", "beach"), ("lake", "desert"), ("sea", "city"),
    ("hills", "underwater"), ("snow", "room"),
)  # fmt: skip
_UNLIKE = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


def other_place(place: str) -> str:
    """A place that has nothing to do with `place`, both as `Reading.place` has them."""
    return _UNLIKE.get(place, "forest")  # which is all but a plain ground


def words_for(place: str) -> str:
    """A negative prompt that names a place as `Reading.place` has it."""
    if place.startswith("plain "):
        return f"{place}, {place.removeprefix('plain ')} background"
    entry = words.PLACES[place]
    return ", ".join((*entry.tag, entry.phrases[0]))


def sheet_prompts(count: int = 48) -> list[str]:
    """Prompts for a contact sheet: every subject, then more, in changing colours and styles."""
    rng = Random("contact sheet")
    subjects = [*words.SUBJECTS, *rng.sample(list(words.SUBJECTS), len(words.SUBJECTS))]
    places = [name for name in words.PLACES if name != "plain"]
    made = []
    for number, subject in enumerate(subjects[:count]):
        style = list(words.STYLES)[number % len(words.STYLES)]
        faint = words.FAINT_COLORS.get(style, frozenset())
        color = rng.choice([name for name in words.COLORS if name not in faint])
        place = rng.choice(words.SUBJECTS[subject].home or places)
        ground = ""
        if place == "plain":
            ground = rng.choice([name for name in words.COLORS if name != color])
        made.append(_prompt(color, subject, place, ground, style))
    return made


def other_prompts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """For the page of each trial, a prompt with another subject than is there; and that subject."""
    rng, made = Random("other subjects"), []
    for scene in (trial.scene for trial in trials):
        there = {thing.subject for thing in scene.things}
        subject = rng.choice([name for name in words.SUBJECTS if name not in there])
        color = scene.things[0].color
        prompt = _prompt(color, subject, scene.place, scene.place_color, scene.style)
        made.append((prompt, subject))
    return made


def _prompt(color: str, subject: str, place: str, ground: str, style: str) -> str:
    """ground: the colour of a plain place."""
    where = f"on {with_article(ground)} background" if ground else words.PLACES[place].phrases[0]
    return f"{with_article(color)} {subject} {where}, {words.STYLES[style][0]}"
