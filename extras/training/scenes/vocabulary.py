"""Every word that the picture book knows: subjects, colours, places, hours, weathers, styles.

Tables only. The first name of an entry is its key all over the trainer; synonyms appear in
captions. `home` lists the places where a subject is drawn more often.
"""

from typing import NamedTuple

RGB = tuple[int, int, int]


class SubjectWords(NamedTuple):
    """plural, synonyms as (singular, plural), where it keeps itself, and its usual places."""

    plural: str
    synonyms: tuple[tuple[str, str], ...] = ()
    habit: str = "ground"  # ground | air | water | free
    home: tuple[str, ...] = ()


class PlaceWords(NamedTuple):
    """phrases: such as "in a meadow"; tag: the place in a list of tags; has_sky: whether hour and
    weather show there."""

    phrases: tuple[str, ...]
    tag: tuple[str, ...]
    has_sky: bool = True


COLORS: dict[str, RGB] = {
    "red": (216, 50, 46),
    "orange": (243, 138, 36),
    "yellow": (250, 212, 62),
    "green": (74, 164, 78),
    "blue": (52, 106, 208),
    "purple": (136, 74, 184),
    "pink": (246, 142, 182),
    "brown": (132, 86, 52),
    "black": (42, 42, 50),
    "white": (247, 245, 240),
    "gray": (148, 152, 160),
}

COLOR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "yellow": ("golden",),
    "purple": ("violet",),
    "gray": ("grey", "silver"),
    "brown": ("chocolate brown",),
    "green": ("emerald",),
}

SUBJECTS: dict[str, SubjectWords] = {
    "house": SubjectWords(
        "houses", (("cottage", "cottages"), ("home", "homes")), home=("meadow", "lake", "snow")
    ),
    "castle": SubjectWords("castles", (("fortress", "fortresses"),), home=("hills", "meadow")),
    "tent": SubjectWords("tents", home=("forest", "lake", "beach")),
    "tree": SubjectWords("trees", home=("meadow", "lake", "hills")),
    "cactus": SubjectWords("cacti", (("cactus plant", "cactus plants"),), home=("desert",)),
    "mushroom": SubjectWords("mushrooms", (("toadstool", "toadstools"),), home=("forest",)),
    "flower": SubjectWords("flowers", (("daisy", "daisies"), ("blossom", "blossoms"))),
    "mountain": SubjectWords("mountains", (("peak", "peaks"),), home=("lake", "snow")),
    "cat": SubjectWords("cats", (("kitten", "kittens"), ("kitty", "kitties"))),
    "dog": SubjectWords("dogs", (("puppy", "puppies"),)),
    "rabbit": SubjectWords("rabbits", (("bunny", "bunnies"),), home=("meadow", "snow")),
    "bird": SubjectWords("birds", (("songbird", "songbirds"),), "air"),
    "owl": SubjectWords("owls", habit="free", home=("forest",)),
    "penguin": SubjectWords("penguins", home=("snow",)),
    "fish": SubjectWords("fish", habit="water", home=("underwater", "sea")),
    "whale": SubjectWords("whales", habit="water", home=("sea", "underwater")),
    "turtle": SubjectWords("turtles", (("tortoise", "tortoises"),), home=("beach",)),
    "butterfly": SubjectWords("butterflies", habit="air", home=("meadow",)),
    "snail": SubjectWords("snails", home=("meadow", "forest")),
    "boat": SubjectWords(
        "boats", (("sailboat", "sailboats"), ("ship", "ships")), "water", ("sea", "lake")
    ),
    "car": SubjectWords("cars", (("automobile", "automobiles"),), home=("city", "desert")),
    "bus": SubjectWords("buses", home=("city",)),
    "rocket": SubjectWords("rockets", (("spaceship", "spaceships"),), "air", ("space",)),
    "balloon": SubjectWords("balloons", habit="air"),
    "kite": SubjectWords("kites", habit="air", home=("beach", "meadow")),
    "umbrella": SubjectWords("umbrellas", (("parasol", "parasols"),), "free", ("beach", "city")),
    "star": SubjectWords("stars", habit="free", home=("space", "plain")),
    "heart": SubjectWords("hearts", habit="free", home=("plain",)),
    "apple": SubjectWords("apples", habit="free", home=("plain", "room")),
    "cup": SubjectWords("cups", (("mug", "mugs"), ("teacup", "teacups")), home=("room", "plain")),
    "robot": SubjectWords("robots", home=("space", "city", "room")),
    "snowman": SubjectWords("snowmen", home=("snow",)),
}

PLACES: dict[str, PlaceWords] = {
    "meadow": PlaceWords(
        ("in a meadow", "in a green meadow", "on a grassy field", "on the grass"),
        ("meadow", "grassy field"),
    ),
    "forest": PlaceWords(
        ("in a forest", "in the woods", "among pine trees", "in a pine forest"),
        ("forest", "woods"),
    ),
    "lake": PlaceWords(
        ("by a lake", "by a blue lake", "beside a lake", "at the lake", "near a lake"),
        ("lake", "blue lake"),
    ),
    "sea": PlaceWords(
        ("on the sea", "at sea", "on the ocean", "in the waves", "on the blue sea"),
        ("sea", "ocean"),
    ),
    "beach": PlaceWords(
        ("on a beach", "on the beach", "on a sandy beach", "at the seaside"),
        ("beach", "sandy beach"),
    ),
    "desert": PlaceWords(
        ("in the desert", "in a desert", "among sand dunes", "in a sandy desert"),
        ("desert", "sand dunes"),
    ),
    "snow": PlaceWords(
        ("in a snowy field", "in a winter landscape", "on snowy ground", "in a snowy landscape"),
        ("snowy landscape", "winter landscape"),
    ),
    "hills": PlaceWords(
        ("in the mountains", "in front of mountains", "in a mountain valley"),
        ("mountain valley", "mountain landscape"),
    ),
    "city": PlaceWords(
        ("in a city", "in the city", "on a city street", "in front of a skyline", "in town"),
        ("city", "city street"),
    ),
    "space": PlaceWords(
        ("in space", "in outer space", "among the planets", "floating in space"),
        ("outer space", "space"),
        has_sky=False,
    ),
    "underwater": PlaceWords(
        ("underwater", "under the sea", "under water", "at the bottom of the sea"),
        ("underwater", "under the sea"),
        has_sky=False,
    ),
    "room": PlaceWords(
        ("in a room", "indoors", "in a cozy room", "inside a room"),
        ("room", "indoors"),
        has_sky=False,
    ),
    "plain": PlaceWords((), (), has_sky=False),
}

TIMES: dict[str, tuple[str, ...]] = {
    "day": ("during the day", "on a bright day", "in daylight", "in the daytime"),
    "sunset": ("at sunset", "at dusk", "in the evening light", "under a sunset sky"),
    "night": ("at night", "under the moon", "in the moonlight", "under a night sky"),
}

WEATHERS: dict[str, tuple[str, ...]] = {
    "clear": (),
    "rain": ("in the rain", "on a rainy day", "in rainy weather", "while it rains"),
    "snow": ("in falling snow", "while it snows", "in snowfall", "with snowflakes falling"),
    "fog": ("in the fog", "in thick fog", "in the mist", "on a foggy day"),
}

WEATHER_TAGS = {"rain": ("rain", "rainy"), "snow": ("snowing", "falling snow"), "fog": ("fog",)}

STYLES: dict[str, tuple[str, ...]] = {
    "flat": ("flat illustration", "flat design", "vector illustration"),
    "cartoon": ("cartoon", "comic style drawing"),
    "watercolor": ("watercolor", "watercolor painting", "watercolour", "aquarelle"),
    "crayon": ("crayon drawing", "wax crayon", "child's crayon drawing", "crayon"),
    "line art": ("line art", "line drawing", "outline drawing", "ink line art"),
    "chalk": ("chalk drawing", "chalk on a blackboard", "chalkboard drawing", "chalk"),
    "pixel art": ("pixel art", "8-bit pixel art", "pixelated sprite art"),
    "neon": ("neon", "neon sign", "neon lights", "glowing neon"),
}

MATERIALS = frozenset({
    "flat design", "wax crayon", "crayon", "chalk", "chalk on a blackboard", "neon", "neon lights",
    "glowing neon", "white lines on blueprint paper",
})  # fmt: skip
"""Words for a look that a picture is in: there is no "chalk of a cat"."""

UNCOUNTED = frozenset(
    {"line art", "ink line art", "pixel art", "8-bit pixel art", "pixelated sprite art"}
)
"""Those without an article: "pixel art of a cat". All others are both, "a cartoon of a cat"."""

SCALES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge", "giant"),
}

COUNTS: dict[int, tuple[str, ...]] = {
    1: ("a", "one"),
    2: ("two", "2", "a pair of"),
    3: ("three", "3"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "on the left of", "left of"),
    "right": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

FAINT_COLORS: dict[str, frozenset[str]] = {
    "neon": frozenset({"black", "brown", "gray"}),
    "line art": frozenset({"white"}),
    "chalk": frozenset({"black", "brown", "gray"}),
}
"""Colours that a style cannot show; scenes avoid them and captions never claim them."""
