"""Places, one small function each, drawn in fractions of the picture (see stage.py).

Each sets `stage.horizon`; subjects stand well below it. Pure functions of the stage's rng.
"""

from collections.abc import Callable

from extras.training.scenes.brush import Wash, mix
from extras.training.scenes.stage import Stage
from extras.training.scenes.vocabulary import COLORS, RGB


def _tufts(s: Stage, color: RGB, count: int) -> None:
    for _ in range(round(count * s.width / s.unit)):
        x, y = s.rng.random(), s.rng.uniform(s.horizon + 0.12, 0.98)
        for lean in (-0.012, 0.0, 0.012):
            s.line([(x + lean * 0.3, y), (x + lean, y - 0.03)], 1.6, color)


def _pine(s: Stage, x: float, base: float, size: float, color: RGB) -> None:
    wide = size * 0.36 * s.height / s.width
    s.poly([(x - wide * 0.14, base), (x + wide * 0.14, base), (x + wide * 0.14, base - size * 0.2),
            (x - wide * 0.14, base - size * 0.2)], s.lit((104, 74, 52)))  # fmt: skip
    for k in range(3):
        low, half = base - size * (0.14 + 0.25 * k), wide * (1.0 - 0.24 * k)
        s.poly([(x - half, low), (x + half, low), (x, low - size * 0.4)], color)


def meadow(s: Stage) -> None:
    """Rolling green with grass and small flowers."""
    s.sky()
    s.ridge(s.horizon + 0.03, 0.12, 0.7, s.lit((142, 198, 112)))
    s.ridge(s.horizon + 0.12, 0.08, 0.5, s.lit((116, 186, 88)))
    _tufts(s, s.lit((78, 150, 66)), 9)
    for _ in range(s.rng.randint(5, 9)):
        color = s.rng.choice(((255, 255, 255), (255, 226, 120), (250, 170, 190)))
        s.disc(
            s.rng.random(), s.rng.uniform(s.horizon + 0.16, 0.98), 0.011, s.lit(color), ink=False
        )


def forest(s: Stage) -> None:
    """Two rows of pines on a mossy floor."""
    s.sky()
    s.horizon = s.rng.uniform(0.6, 0.66)
    s.ridge(s.horizon, 0.04, 0.6, s.lit((96, 144, 96)))
    count = round(7 * s.width / s.unit)
    for k in range(count):
        x = (k + s.rng.uniform(0.2, 0.8)) / count
        _pine(s, x, s.horizon + 0.01, s.rng.uniform(0.34, 0.46), s.lit((94, 152, 112)))
    count = round(5 * s.width / s.unit)
    for k in range(count):
        x = (k + s.rng.uniform(0.1, 0.9)) / count
        _pine(s, x, s.horizon + 0.06, s.rng.uniform(0.46, 0.62), s.lit((48, 112, 78)))
    s.poly([(-0.1, s.horizon + 0.04), (1.1, s.horizon + 0.04), (1.1, 1.1), (-0.1, 1.1)],
           s.lit((92, 128, 70)))  # fmt: skip
    _tufts(s, s.lit((64, 98, 52)), 8)


def lake(s: Stage) -> None:
    """A blue lake between green banks with hills behind."""
    s.sky()
    h = s.horizon
    s.ridge(h, 0.16, 0.5, s.lit((126, 164, 150)))
    s.poly([(-0.1, h - 0.01), (1.1, h - 0.01), (1.1, 1.1), (-0.1, 1.1)], s.lit((124, 188, 98)))
    water = mix(s.lit((70, 150, 222)), s.sky_colors()[1], 0.22)
    for part, color in ((1.0, water), (0.7, mix(water, (255, 255, 255), 0.14))):
        rx, ry = 0.62 * part, 0.15 * part
        s.disc(0.5, h + 0.17, rx * s.width / s.unit, color, flat=ry * s.height / (rx * s.width),
               ink=part == 1.0)  # fmt: skip
    for _ in range(5):
        x, y = s.rng.uniform(0.1, 0.8), h + s.rng.uniform(0.08, 0.27)
        s.line([(x, y), (x + 0.1, y)], 1.8, mix(water, (255, 255, 255), 0.45))
    for x in (s.rng.uniform(0.02, 0.07), s.rng.uniform(0.93, 0.98)):
        for k in range(3):
            s.line([(x + k * 0.012, h + 0.3), (x + k * 0.015, h + 0.2)], 2.2, s.lit((74, 138, 70)))
    _tufts(s, s.lit((84, 150, 72)), 4)


def _waves(s: Stage, start: float, color: RGB, count: int) -> None:
    for _ in range(round(count * s.width / s.unit)):
        x, y = s.rng.uniform(-0.05, 0.95), s.rng.uniform(start, 0.98)
        w = 0.05 * s.unit / s.width
        crest = [(x, y), (x + w * 0.5, y - 0.014), (x + w, y), (x + w * 1.5, y - 0.014),
                 (x + 2 * w, y)]  # fmt: skip
        s.line(crest, 2.0, color)


def sea(s: Stage) -> None:
    """Open water to the horizon with waves."""
    s.horizon = s.rng.uniform(0.44, 0.54)
    s.sky()
    top = mix(s.lit((84, 164, 224)), s.sky_colors()[1], 0.3)
    bottom = s.lit((28, 92, 176))
    s.wash(top, bottom, s.horizon, 1.0)
    s.poly([(-0.1, s.horizon), (1.1, s.horizon), (1.1, s.horizon + 0.008),
            (-0.1, s.horizon + 0.008)], mix(top, (255, 255, 255), 0.35))  # fmt: skip
    _waves(s, s.horizon + 0.05, mix(top, (255, 255, 255), 0.5), 13)


def beach(s: Stage) -> None:
    """Sand in front, a strip of sea behind, a shell or a starfish."""
    s.horizon = s.rng.uniform(0.42, 0.5)
    s.sky()
    water = mix(s.lit((62, 156, 214)), s.sky_colors()[1], 0.2)
    s.poly([(-0.1, s.horizon), (1.1, s.horizon), (1.1, 1.1), (-0.1, 1.1)], water)
    for _ in range(5):
        x, y = s.rng.uniform(0.0, 0.9), s.horizon + s.rng.uniform(0.025, 0.11)
        s.line([(x, y), (x + 0.09, y)], 1.8, mix(water, (255, 255, 255), 0.5))
    s.ridge(s.horizon + 0.2, 0.05, 0.5, mix(water, (255, 255, 255), 0.72))
    s.ridge(s.horizon + 0.22, 0.05, 0.5, s.lit((244, 220, 162)))
    for _ in range(14):
        s.disc(s.rng.random(), s.rng.uniform(0.75, 0.99), 0.006, s.lit((222, 192, 130)), ink=False)
    for color in ((246, 150, 120), (255, 246, 232)):
        s.disc(s.rng.random(), s.rng.uniform(0.8, 0.97), 0.016, s.lit(color), flat=0.7)


def desert(s: Stage) -> None:
    """Dunes in warm sand."""
    s.sky()
    s.ridge(s.horizon + 0.02, 0.13, 0.6, s.lit((236, 196, 128)))
    s.ridge(s.horizon + 0.1, 0.12, 0.45, s.lit((226, 178, 104)))
    s.ridge(s.horizon + 0.26, 0.12, 0.4, s.lit((240, 200, 130)))
    for _ in range(5):
        s.disc(s.rng.random(), s.rng.uniform(s.horizon + 0.2, 0.98), s.rng.uniform(0.01, 0.02),
               s.lit((188, 142, 92)), flat=0.6)  # fmt: skip


def snow(s: Stage) -> None:
    """White ground with snowy pines far off."""
    s.sky()
    s.ridge(s.horizon + 0.02, 0.1, 0.6, s.lit((214, 226, 240)))
    for _ in range(round(4 * s.width / s.unit)):
        x = s.rng.random()
        _pine(s, x, s.horizon + 0.03, s.rng.uniform(0.16, 0.24), s.lit((122, 160, 160)))
    s.ridge(s.horizon + 0.1, 0.07, 0.5, s.lit((240, 245, 252)))
    for _ in range(6):
        x, y = s.rng.random(), s.rng.uniform(s.horizon + 0.2, 0.97)
        s.disc(x, y, s.rng.uniform(0.03, 0.06), s.lit((222, 232, 246)), flat=0.3, ink=False)


def hills(s: Stage) -> None:
    """Snow-capped mountains over a green valley."""
    s.sky()
    h = s.horizon
    count = max(3, round(3 * s.width / s.unit))
    for k in range(count):
        x, top = (k + s.rng.uniform(0.3, 0.7)) / count, h - s.rng.uniform(0.28, 0.4)
        half = 0.62 / count * 1.25
        s.poly([(x - half, h + 0.05), (x, top), (x + half, h + 0.05)], s.lit((128, 140, 170)))
        s.poly([(x, top), (x + half, h + 0.05), (x + half * 0.15, h + 0.05)],
               s.lit((104, 116, 150)), ink=False)  # fmt: skip
        drop = (h + 0.05 - top) * 0.3
        s.poly([(x, top), (x + half * 0.3, top + drop), (x + half * 0.08, top + drop * 0.75),
                (x - half * 0.1, top + drop * 1.05), (x - half * 0.28, top + drop * 0.93)],
               s.lit((250, 252, 255)))  # fmt: skip
    s.ridge(h + 0.06, 0.06, 0.6, s.lit((110, 160, 104)))
    s.ridge(h + 0.15, 0.06, 0.5, s.lit((136, 182, 108)))


def city(s: Stage) -> None:
    """A skyline with windows above a street."""
    s.horizon = s.rng.uniform(0.62, 0.68)
    s.sky()
    walls = ((168, 176, 196), (196, 178, 172), (150, 164, 180), (184, 184, 168))
    window = (255, 224, 130) if s.time != "day" else (226, 240, 250)
    x = -0.03
    while x < 1.0:
        w = s.rng.uniform(0.13, 0.2) * s.unit / s.width
        top = s.horizon - s.rng.uniform(0.2, 0.46)
        s.poly([(x, s.horizon + 0.01), (x, top), (x + w, top), (x + w, s.horizon + 0.01)],
               s.lit(s.rng.choice(walls)))  # fmt: skip
        y = top + 0.035
        while y < s.horizon - 0.06:
            for k in range(3):
                if s.rng.random() < 0.72:
                    left = x + w * (0.14 + 0.28 * k)
                    s.poly([(left, y), (left + w * 0.16, y), (left + w * 0.16, y + 0.032),
                            (left, y + 0.032)], window, ink=False)  # fmt: skip
            y += 0.075
        x += w + 0.008
    s.poly([(-0.1, s.horizon), (1.1, s.horizon), (1.1, 1.1), (-0.1, 1.1)], s.lit((190, 192, 198)))
    s.poly([(-0.1, s.horizon + 0.07), (1.1, s.horizon + 0.07), (1.1, 1.1), (-0.1, 1.1)],
           s.lit((110, 114, 126)))  # fmt: skip
    for k in range(5):
        s.line([(k * 0.22 - 0.02, 0.93), (k * 0.22 + 0.09, 0.93)], 3.4, s.lit((240, 236, 214)))


def space(s: Stage) -> None:
    """Stars, a ringed planet and a small moon on dark blue."""
    s.horizon = 0.3
    s.wash((16, 12, 40), (44, 28, 82))
    for _ in range(round(46 * s.width * s.height / 65536)):
        color = s.rng.choice(((255, 255, 255), (255, 240, 200), (200, 220, 255)))
        r = s.rng.choice((0.003, 0.005, 0.008))
        s.disc(s.rng.random(), s.rng.random(), r, color, ink=False)
    corners = [(0.14, 0.16), (0.86, 0.16), (0.86, 0.84), (0.14, 0.84)]
    s.rng.shuffle(corners)
    (x, y), (u, v) = corners[:2]
    color = s.rng.choice(((226, 150, 96), (120, 190, 190), (200, 120, 160), (150, 140, 220)))
    s.disc(x, y, 0.105, color)
    s.disc(x - 0.015, y - 0.015, 0.07, mix(color, (255, 255, 255), 0.25), ink=False)
    w = 0.18 * s.unit / s.width
    s.line(
        [(x - w, y + 0.05), (x, y + 0.02), (x + w, y - 0.05)], 4.0, mix(color, (255, 240, 220), 0.6)
    )
    s.disc(u, v, 0.05, (196, 198, 208))
    s.disc(u + 0.01, v - 0.01, 0.012, (160, 162, 174), ink=False)


def underwater(s: Stage) -> None:
    """Blue-green water, a sandy floor, weeds and bubbles."""
    s.horizon = s.rng.uniform(0.7, 0.76)
    s.wash((90, 200, 220), (18, 92, 150))
    for _ in range(3):
        x = s.rng.random()
        s.poly([(x, -0.02), (x + 0.08, -0.02), (x - 0.06, 1.0), (x - 0.24, 1.0)], (74, 172, 204),
               ink=False)  # fmt: skip
    s.wash((44, 132, 178), (18, 92, 150), 0.6, 1.0)
    s.ridge(s.horizon + 0.14, 0.08, 0.6, (214, 196, 146))
    for _ in range(round(6 * s.width / s.unit)):
        x, base, tall = s.rng.random(), s.rng.uniform(0.88, 1.0), s.rng.uniform(0.12, 0.26)
        bend = [(x + 0.014 * (-1) ** k, base - tall * k / 4) for k in range(5)]
        s.line(bend, 4.0, s.rng.choice(((46, 140, 96), (70, 160, 90))))
    for _ in range(9):
        s.disc(s.rng.random(), s.rng.uniform(0.04, 0.8), s.rng.uniform(0.007, 0.016),
               (196, 236, 244), ink=True)  # fmt: skip


def room(s: Stage) -> None:
    """A wall with a window and a picture, a wooden floor, a rug."""
    s.horizon = s.rng.uniform(0.6, 0.66)
    wall = s.rng.choice(((246, 226, 196), (226, 234, 216), (240, 218, 214), (218, 228, 240)))
    s.wash(wall, mix(wall, (160, 130, 110), 0.12), 0.0, s.horizon)
    s.wash((198, 148, 104), (176, 124, 84), s.horizon, 1.0)
    board = s.horizon - 0.025
    s.poly([(-0.1, board), (1.1, board), (1.1, s.horizon), (-0.1, s.horizon)], (252, 246, 236))
    for y in (0.1, 0.22, 0.34):
        low = s.horizon + y
        s.line([(0.0, low), (1.0, low)], 1.2, (156, 108, 72))
    x = s.rng.choice((0.06, 0.7))
    w, h = 0.24, 0.26
    for grow, color in ((0.018, (255, 255, 255)), (0.0, (164, 212, 242))):
        s.poly([(x - grow, 0.1 - grow), (x + w + grow, 0.1 - grow), (x + w + grow, 0.1 + h + grow),
                (x - grow, 0.1 + h + grow)], color)  # fmt: skip
    s.line([(x + w / 2, 0.1), (x + w / 2, 0.1 + h)], 3.4, (255, 255, 255))
    s.line([(x, 0.1 + h / 2), (x + w, 0.1 + h / 2)], 3.4, (255, 255, 255))
    left = 0.76 if x < 0.5 else 0.1
    for grow, color in ((0.014, (150, 104, 70)), (0.0, (250, 240, 220))):
        s.poly([(left - grow, 0.13 - grow), (left + 0.14 + grow, 0.13 - grow),
                (left + 0.14 + grow, 0.27 + grow), (left - grow, 0.27 + grow)], color)  # fmt: skip
    s.poly([(left, 0.27), (left + 0.05, 0.18), (left + 0.1, 0.27)], (130, 170, 140), ink=False)
    rug = s.rng.choice(((206, 120, 110), (120, 150, 180), (190, 170, 120)))
    s.disc(0.5, 0.86, 0.4 * s.width / s.unit, rug, flat=0.22 * s.unit / s.width)


def plain(s: Stage, color: str) -> None:
    """One colour with a soft fall of light."""
    base = COLORS[color]
    if color in ("black", "white", "gray"):
        top, bottom = mix(base, (255, 255, 255), 0.1), mix(base, (60, 60, 80), 0.08)
    else:
        top, bottom = mix(base, (255, 255, 255), 0.26), mix(base, (255, 255, 255), 0.06)
    s.horizon = 0.4
    s.marks.append(Wash(top, bottom))


DRAW: dict[str, Callable[[Stage], None]] = {
    place.__name__: place
    for place in (meadow, forest, lake, sea, beach, desert, snow, hills, city, space, underwater,
                  room)
}  # fmt: skip
