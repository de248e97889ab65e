"""Captions claim only what is drawn, in many forms."""

import re
from random import Random

import numpy as np
import pytest

from extras.training import picturebook
from extras.training.captions import caption
from extras.training.picturebook import Scene, Thing
from extras.training.scenes import vocabulary as words
from extras.training.scenes.finishes import FINISHES

GLUE = {
    "a", "an", "the", "one", "of", "on", "in", "at", "to", "and", "style", "picture", "drawing",
    "background", "plain", "solid", "against", "front", "next", "beside", "left", "right",
    "above", "over", "below", "under", "beneath", "top", "bottom", "night", "sunset",
}  # fmt: skip


def _phrases(scene: Scene) -> list[str]:
    """Every phrase that is true of the setting of `scene`, longest first."""
    place = words.PLACES[scene.place]
    found = [*place.phrases, *place.tag, *words.STYLES[scene.style]]
    if place.has_sky:
        found += words.TIMES[scene.time]
        found += words.WEATHERS[scene.weather]
        found += words.WEATHER_TAGS.get(scene.weather, ())
    return sorted(found, key=len, reverse=True)


def _true_words(scene: Scene) -> set[str]:
    """Words that are true of the things of `scene`."""
    found = {scene.place_color}
    for thing in scene.things:
        entry = words.SUBJECTS[thing.subject]
        nouns = [entry.plural if thing.count > 1 else thing.subject]
        nouns += [pair[thing.count > 1] for pair in entry.synonyms]
        colors = ()
        if thing.color not in words.FAINT_COLORS.get(scene.style, ()):
            colors = (thing.color, *words.COLOR_SYNONYMS.get(thing.color, ()))
        for phrase in (*nouns, *colors, *words.SCALES[thing.scale], *words.COUNTS[thing.count]):
            found |= set(phrase.split())
    return found


def test_captions_claim_only_what_is_drawn():
    for seed in range(1500):
        scene = picturebook.scene_from_seed(seed)
        text = caption(scene, Random(seed)).lower()
        rest = f" {text} "
        for phrase in _phrases(scene):
            rest = re.sub(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", " ", rest)
        left = set(re.findall(r"[\w'-]+", rest)) - GLUE - _true_words(scene)
        assert not left, (text, scene)
        if scene.time != "sunset":
            assert "sunset" not in text
        if scene.time != "night":
            assert "night" not in text.split()


SLIPS = (
    r"\bof (in|on|at|by|under|underwater|among|beside|near|inside|indoors|against|floating)\b",
    r"\ba [aeiou8](?!ne\b)",
    r"\ban [^aeiou]",
    r"\ba (sand dunes|space|woods|underwater|indoors)\b",
    rf"\ban? ({'|'.join([*words.MATERIALS, *words.UNCOUNTED])}) of\b",
    rf"\b({'|'.join(words.MATERIALS)}) of\b",
    r"(rainy|foggy|bright) day.*(night|moon|dusk|sunset|evening)",
    r"(night|moon|dusk|sunset|evening).*(rainy|foggy|bright) day",
)


@pytest.mark.parametrize("looks", [(), *(looks for _, looks in FINISHES.values())], ids=str)
def test_captions_are_english(looks):
    for seed in range(4000):
        scene = picturebook.scene_from_seed(seed)
        text = caption(scene, Random(seed), looks)
        assert not [slip for slip in SLIPS if re.search(slip, text, re.IGNORECASE)], text
        if looks:
            assert any(look in text for look in looks)


def test_a_size_is_said_of_things_that_have_it_alone():
    for seed in range(4000):
        scene = picturebook.scene_from_seed(seed)
        text = caption(scene, Random(seed)).lower()
        for scale, names in words.SCALES.items():
            if scale not in {thing.scale for thing in scene.things}:
                assert not set(names) & set(text.split()), text


def test_words_that_are_no_countable_things_are_those_of_a_look():
    looks = {word for table in words.STYLES.values() for word in table}
    looks |= {word for _, table in FINISHES.values() for word in table}
    assert looks >= words.MATERIALS | words.UNCOUNTED
    scene = Scene(things=(Thing(subject="cat", color="red"),), place="lake", style="neon")
    texts = [caption(scene, Random(seed)) for seed in range(400)]
    assert any(text.endswith(" in neon lights") for text in texts)
    assert any(text.startswith("a neon sign of a") for text in texts)


def test_sides_in_captions_are_the_sides_in_the_picture():
    checked = 0
    for seed in range(700):
        scene = picturebook.scene_from_seed(seed)
        text = caption(scene, Random(seed)).lower()
        match = re.search(r"^(.*?)\b(left of|right of|above|below|beneath|over)\b(.*)$", text)
        if not scene.relation or not match or " and " in text:
            continue
        order = [_mentions(thing, match.group(1)) for thing in scene.things]
        if order.count(True) != 1:
            continue
        boxes = picturebook.draw_scene(scene).truth.boxes
        axis = 0 if match.group(2) in ("left of", "right of") else 1
        middles = [np.mean([b[axis] + b[axis + 2] for b in group]) for group in boxes]
        subject, other = middles if order[0] else reversed(middles)
        assert (subject < other) == (match.group(2) in ("left of", "above", "over")), text
        checked += 1
    assert checked > 30


def _mentions(thing: Thing, text: str) -> bool:
    entry = words.SUBJECTS[thing.subject]
    nouns = [thing.subject, entry.plural, *(n for pair in entry.synonyms for n in pair)]
    return any(re.search(rf"\b{noun}\b", text) for noun in nouns)


@pytest.fixture
def red_boat() -> Scene:
    thing = Thing(subject="boat", color="red", scale="small")
    return Scene(things=(thing,), place="sea", time="sunset", style="watercolor")


def test_a_scene_has_many_phrasings(red_boat):
    assert len({caption(red_boat, Random(seed)) for seed in range(300)}) > 200


def test_parts_are_left_out_and_single_words_occur(red_boat):
    texts = [caption(red_boat, Random(seed)).lower() for seed in range(600)]
    assert "boat" in texts
    share = {
        word: sum(word in text for text in texts) / len(texts)
        for word in ("red", "sunset", " sea", "small")
    }
    assert 0.6 < share["red"] < 0.98
    assert 0.2 < share["sunset"] < 0.9
    assert 0.3 < share[" sea"] < 0.9
    assert 0.05 < share["small"] < 0.5


def test_colours_that_a_style_cannot_show_are_not_claimed():
    thing = Thing(subject="cat", color="black")
    scene = Scene(things=(thing,), place="space", style="neon")
    assert not any("black" in caption(scene, Random(seed)) for seed in range(200))


def test_captions_are_short_enough_for_the_text_encoders():
    longest = max(
        len(re.findall(r"\w+|[^\w\s]", caption(picturebook.scene_from_seed(seed), Random(seed))))
        for seed in range(1500)
    )
    assert longest < 60  # of the 75 tokens of a prompt; every word here is one or two tokens


def test_an_empty_plain_picture_has_a_caption_too():
    scene = Scene(things=(), place="plain", place_color="orange")
    assert all("background" in caption(scene, Random(seed)).lower() for seed in range(40))
