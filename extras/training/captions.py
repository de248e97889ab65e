"""Captions: a scene in natural English, in many phrasings, with parts left out at random.

A caption only claims what is drawn. Parts are left out often enough that short prompts work
("cat"), and kept often enough that long ones are understood.
"""

from random import Random

from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import Scene, Thing

_WITHOUT_ARTICLE = frozenset(
    {"woods", "sand dunes", "space", "outer space", "underwater", "under the sea", "indoors"}
)
_STYLE_KEPT = {"flat": 0.4, "cartoon": 0.72}  # the plain looks are what no style word means


def caption(scene: Scene, rng: Random, looks: tuple[str, ...] = ()) -> str:
    """One caption of `scene`; the words follow `rng`. looks: words for the look, one of which is
    always said, instead of those of the scene's style."""
    if looks:
        return _with_style(_unstyled(scene, rng), rng.choice(looks), rng, of=bool(scene.things))
    form = rng.random()
    if scene.things and form < 0.05:
        return _one_word(scene, rng)
    if form < 0.19:
        return _tags(scene, rng)
    return _sentence(scene, rng)


def _unstyled(scene: Scene, rng: Random) -> str:
    """A caption that says nothing of the style."""
    parts = (_things(scene, rng), _place(scene, rng, 0.8), _hour(scene, rng), _weather(scene, rng))
    return " ".join(part for part in parts if part) or _named(words.PLACES[scene.place].tag[0])


def _one_word(scene: Scene, rng: Random) -> str:
    thing = rng.choice(scene.things)
    if rng.random() < 0.6:
        return thing.subject if thing.count == 1 else words.SUBJECTS[thing.subject].plural
    return _noun(thing, rng)


def _noun(thing: Thing, rng: Random) -> str:
    """The bare noun or one of its synonyms, in the right number."""
    entry = words.SUBJECTS[thing.subject]
    if entry.synonyms and rng.random() < 0.2:
        return rng.choice(entry.synonyms)[thing.count > 1]
    return thing.subject if thing.count == 1 else entry.plural


def _color(thing: Thing, style: str, rng: Random, kept: float) -> str:
    faint = words.FAINT_COLORS.get(style, frozenset())
    if thing.color in faint or rng.random() > kept:
        return ""
    if thing.color in words.COLOR_SYNONYMS and rng.random() < 0.12:
        return rng.choice(words.COLOR_SYNONYMS[thing.color])
    return thing.color


def _phrase(thing: Thing, scene: Scene, rng: Random, *, article: bool = True) -> str:
    """ "a small red house", "two blue cats", "three fish"."""
    parts = []
    scale = words.SCALES[thing.scale]
    # Groups share the picture's room, so that a large one may not come out large.
    large_group = thing.scale == "large" and (thing.count > 1 or len(scene.things) > 1)
    if scale and not large_group and rng.random() < 0.6:
        parts.append(rng.choice(scale))
    color = _color(thing, scene.style, rng, 0.86)
    if color:
        parts.append(color)
    parts.append(_noun(thing, rng))
    phrase = " ".join(parts)
    if thing.count > 1:
        numbers = words.COUNTS[thing.count]
        return f"{rng.choices(numbers, (6, 1, 1)[: len(numbers)])[0]} {phrase}"
    if not article:
        return phrase
    if rng.random() < 0.06:
        return f"one {phrase}"
    if rng.random() < 0.08:
        return f"the {phrase}"
    return with_article(phrase)


def _things(scene: Scene, rng: Random) -> str:
    """All groups and how they stand to each other."""
    if not scene.things:
        return ""
    if len(scene.things) == 1:
        return _phrase(scene.things[0], scene, rng)
    order = [0, 1] if rng.random() < 0.6 else [1, 0]
    relation = scene.relation if order == [0, 1] else words.OPPOSITE[scene.relation]
    first, second = (_phrase(scene.things[i], scene, rng) for i in order)
    pick = rng.random()
    if pick < 0.08:
        return first
    if pick < 0.36:
        return f"{first} and {second}"
    if relation in ("left", "right"):
        if pick < 0.46:
            return f"{first} {rng.choice(('next to', 'beside'))} {second}"
        if pick < 0.56:
            other = words.OPPOSITE[relation]
            return f"{first} on the {relation} and {second} on the {other}"
    elif pick < 0.46:
        top, low = ("top", "bottom") if relation == "above" else ("bottom", "top")
        return f"{first} at the {top} and {second} at the {low}"
    return f"{first} {rng.choice(words.RELATIONS[relation])} {second}"


def _place(scene: Scene, rng: Random, kept: float) -> str:
    if rng.random() > kept:
        return ""
    if scene.place != "plain":
        return rng.choice(words.PLACES[scene.place].phrases)
    color = scene.place_color
    if rng.random() < 0.12:
        return "on a plain background"
    plain = rng.choice(("", "", "plain ", "solid "))
    if rng.random() < 0.2:
        return f"on {plain}{color}"
    ground = with_article(f"{plain}{color} background")
    return f"{rng.choice(('on', 'on', 'against', 'in front of'))} {ground}"


def _hour(scene: Scene, rng: Random) -> str:
    if not words.PLACES[scene.place].has_sky:
        return ""
    if scene.time == "day" and scene.weather != "clear":
        return ""  # "a bright day" and rain do not go together
    if scene.time == "night" and scene.weather == "fog":
        return "at night" if rng.random() < 0.88 else ""  # no moon is seen through fog
    kept = 0.24 if scene.time == "day" else 0.88
    return rng.choice(words.TIMES[scene.time]) if rng.random() < kept else ""


def _weather(scene: Scene, rng: Random) -> str:
    phrases = words.WEATHERS[scene.weather]
    if scene.time != "day":
        phrases = tuple(phrase for phrase in phrases if not phrase.endswith(" day"))
    return rng.choice(phrases) if phrases and rng.random() < 0.86 else ""


def _style(scene: Scene, rng: Random) -> str:
    kept = _STYLE_KEPT.get(scene.style, 0.9)
    return rng.choice(words.STYLES[scene.style]) if rng.random() < kept else ""


def _sentence(scene: Scene, rng: Random) -> str:
    """Things, then place, hour and weather in some order, the style before or after."""
    bare = rng.random() < 0.1
    main = _things(scene, rng)
    place = _place(scene, rng, 0.0 if bare else 0.9)
    hour, weather = ("", "") if bare else (_hour(scene, rng), _weather(scene, rng))
    setting = [part for part in (hour, weather) if part]
    rng.shuffle(setting)
    if not main and scene.place == "plain":
        main, place = f"a plain {scene.place_color} background", ""
    elif not main:
        main, place = _named(rng.choice(words.PLACES[scene.place].tag)), ""
    of = bool(scene.things)
    order = rng.random()
    if order < 0.14 and place:
        of = False
        text = " ".join(part for part in (place, *setting) if part) + f", {main}"
    elif order < 0.3:
        text = ", ".join(part for part in (main, place, *setting) if part)
    else:
        text = " ".join(part for part in (main, place, *setting) if part)
    return _finish(_with_style(text, _style(scene, rng), rng, of=of), rng)


def with_article(noun: str) -> str:
    """ "an orange cat", "a cat"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _named(place: str) -> str:
    """The tag of a place with the article that it takes."""
    return place if place in _WITHOUT_ARTICLE else with_article(place)


def _with_style(text: str, style: str, rng: Random, *, of: bool) -> str:
    """of: whether the text begins with things, so that it can follow "a drawing of"."""
    if not style:
        opening = rng.random()
        if opening >= 0.06 or not of:
            return text
        return f"a {'picture' if opening < 0.04 else 'drawing'} of {text}"
    form = rng.random()
    if 0.58 <= form < 0.8 and style in words.MATERIALS:
        return f"{text} in {style}"
    if 0.58 <= form < 0.8 and of:
        article = form >= 0.7 and style not in words.UNCOUNTED
        return f"{with_article(style) if article else style} of {text}"
    if 0.8 <= form < 0.9:
        return f"{style}, {text}"
    if form >= 0.9 and "style" not in style:
        return f"{text}, {style} style"
    return f"{text}, {style}"


def _tags(scene: Scene, rng: Random) -> str:
    """A comma list as many people write prompts."""
    tags = [_phrase(thing, scene, rng, article=rng.random() < 0.3) for thing in scene.things]
    if scene.place == "plain":
        place = f"{scene.place_color} background" if rng.random() < 0.8 or not tags else ""
    else:
        place = rng.choice(words.PLACES[scene.place].tag) if rng.random() < 0.85 else ""
    hour = ""
    if words.PLACES[scene.place].has_sky and scene.time != "day" and rng.random() < 0.88:
        hour = scene.time
    weather = ""
    if scene.weather != "clear" and rng.random() < 0.86:
        weather = rng.choice(words.WEATHER_TAGS[scene.weather])
    rest = [part for part in (place, hour, weather) if part]
    rng.shuffle(rest)
    parts = tags + rest
    style = _style(scene, rng)
    if style:
        parts.insert(0 if rng.random() < 0.3 else len(parts), style)
    return ", ".join(parts) if parts else words.PLACES[scene.place].tag[0]


def _finish(text: str, rng: Random) -> str:
    """Now and then a capital letter and a full stop."""
    if rng.random() < 0.12:
        text = text[0].upper() + text[1:]
        if rng.random() < 0.6:
            text += "."
    return text
