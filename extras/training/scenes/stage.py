"""The backdrop's side of the display list: light of the hour, sky, weather, simple scenery.

Scenery is drawn in fractions of the picture: x and y from 0 to 1, y down, any aspect ratio.
"""

import math
from random import Random

import numpy as np

from extras.training.scenes.brush import FIXED, Haze, Mark, Shape, Wash, mix, ring, times
from extras.training.scenes.vocabulary import RGB

# (top, bottom) of the sky and the factor that the hour puts on the colours of the land.
SKIES: dict[str, tuple[RGB, RGB]] = {
    "day": ((104, 182, 238), (222, 241, 250)),
    "sunset": ((104, 74, 150), (255, 176, 108)),
    "night": ((14, 20, 56), (56, 72, 128)),
}
WEATHER_SKIES: dict[str, tuple[RGB, float]] = {
    "rain": ((126, 140, 156), 0.72),
    "snow": ((206, 216, 228), 0.62),
    "fog": ((208, 212, 216), 0.66),
}
LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.80, 0.72),
    "night": (0.36, 0.42, 0.62),
}
SUBJECT_LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.94, 0.90),
    "night": (0.84, 0.86, 0.94),
}


class Stage:
    """A place being built. `horizon` is where the land begins, as a fraction of the height."""

    def __init__(self, size: tuple[int, int], *, time: str, weather: str, rng: Random) -> None:
        self.width, self.height = size
        self.unit = float(min(size))
        self.time, self.weather, self.rng = time, weather, rng
        self.marks: list[Mark] = []
        self.horizon = rng.uniform(0.52, 0.62)
        dim = {"rain": 0.88, "snow": 0.97, "fog": 0.97}.get(weather, 1.0)
        self.light = tuple(f * dim for f in LIGHT[time])

    def lit(self, color: RGB) -> RGB:
        """`color` under the light of the hour."""
        return times(color, self.light)

    def sky_colors(self) -> tuple[RGB, RGB]:
        """(top, bottom) of the sky for hour and weather."""
        top, bottom = SKIES[self.time]
        if self.weather in WEATHER_SKIES:
            veil, part = WEATHER_SKIES[self.weather]
            veil = times(veil, LIGHT[self.time])
            top, bottom = mix(top, veil, part), mix(bottom, veil, part)
        return top, bottom

    def wash(self, top: RGB, bottom: RGB, start: float = 0.0, end: float = 1.0) -> None:
        """A vertical gradient over a band of rows."""
        self.marks.append(Wash(top, bottom, start, end))

    def poly(self, points: list[tuple[float, float]], color: RGB, *, ink: bool = True) -> None:
        """A filled polygon in fractions of the picture."""
        placed = np.rint(np.array(points) * (self.width * FIXED, self.height * FIXED))
        self.marks.append(Shape(placed.astype(np.int32), color, ink=ink))

    def line(self, points: list[tuple[float, float]], width: float, color: RGB) -> None:
        """An open line; `width` in pixels of a 256-pixel picture."""
        placed = np.rint(np.array(points) * (self.width * FIXED, self.height * FIXED))
        self.marks.append(Shape(placed.astype(np.int32), color, max(1.0, width * self.unit / 256)))

    def disc(
        self, x: float, y: float, r: float, color: RGB, *, flat: float = 1.0, ink: bool = True
    ) -> None:
        """An ellipse; `r` is a fraction of the shorter side, `flat` its height over its width."""
        reach = r * self.unit * FIXED
        center = (x * self.width * FIXED, y * self.height * FIXED)
        points = ring(*center, reach, reach * flat, 28 if r > 0.03 else 12)
        self.marks.append(Shape(np.rint(points).astype(np.int32), color, ink=ink))

    def ridge(
        self, level: float, height: float, waves: float, color: RGB, *, sharp: bool = False
    ) -> None:
        """Land from a rolling (or jagged) line around `level` down to the bottom edge."""
        phase, second = self.rng.uniform(0, 6.28), self.rng.uniform(0, 6.28)
        if sharp:
            count = max(3, round(waves * self.width / self.unit))
            tops = []
            for k in range(count + 1):
                x = (k + self.rng.uniform(-0.2, 0.2)) / count
                tops += [(x, level - height * self.rng.uniform(0.55, 1.0))]
                tops += [(x + 0.5 / count, level - height * self.rng.uniform(0.0, 0.25))]
            points = [(-0.3, level), *tops, (1.3, level)]
        else:
            reach = waves * self.width / self.unit
            points = []
            for k in range(25):
                x = -0.02 + k * 1.04 / 24
                roll = math.sin(phase + x * reach * 6.28)
                roll += 0.4 * math.sin(second + x * reach * 13.1)
                points.append((x, level - height * (0.5 + 0.36 * roll)))
        self.poly([*points, (1.3, 1.02), (-0.3, 1.02)], color)

    def sky(self) -> None:
        """Sky of the hour with sun, moon, stars and clouds."""
        top, bottom = self.sky_colors()
        self.wash(top, bottom, 0.0, self.horizon + 0.12)
        self.wash(bottom, bottom, self.horizon + 0.12, 1.0)
        rng, clear = self.rng, self.weather == "clear"
        x = rng.choice((rng.uniform(0.1, 0.3), rng.uniform(0.7, 0.9)))
        if self.time == "night" and self.weather != "fog":
            for _ in range(rng.randint(14, 26) if clear else 5):
                self.disc(rng.random(), rng.random() * self.horizon, rng.choice((0.004, 0.007)),
                          (236, 238, 214), ink=False)  # fmt: skip
            y = rng.uniform(0.12, 0.22)
            self.disc(x, y, 0.1, mix(top, (246, 236, 190), 0.22), ink=False)
            self.disc(x, y, 0.075, (246, 236, 190))
            self.disc(x + 0.02, y - 0.015, 0.016, (226, 214, 166), ink=False)
            self.disc(x - 0.025, y + 0.02, 0.012, (226, 214, 166), ink=False)
        elif self.time == "sunset" and clear:
            y = self.horizon - 0.02
            self.disc(x, y, 0.19, mix(bottom, (255, 214, 120), 0.45), ink=False)
            self.disc(x, y, 0.125, (255, 206, 96))
        elif self.time == "day" and clear and rng.random() < 0.75:
            y = rng.uniform(0.1, 0.2)
            self.disc(x, y, 0.12, mix(top, (255, 240, 170), 0.45), ink=False)
            self.disc(x, y, 0.08, (255, 222, 92))
        if self.weather in ("rain", "snow") or (self.time != "night" and rng.random() < 0.7):
            self._clouds(
                mix(bottom, (255, 255, 255), 0.6) if clear else mix(top, (96, 104, 120), 0.35)
            )

    def _clouds(self, color: RGB) -> None:
        rng = self.rng
        for k in range(rng.randint(2, 3)):
            x, y = (k + rng.uniform(0.2, 0.8)) / 3, rng.uniform(0.06, 0.3)
            r = rng.uniform(0.05, 0.08)
            step = self.unit / self.width
            self.disc(x - r * step, y + r * 0.3, r * 0.75, color, flat=0.7, ink=False)
            self.disc(x + r * 1.1 * step, y + r * 0.3, r * 0.8, color, flat=0.65, ink=False)
            self.disc(x, y, r, color, flat=0.85, ink=False)

    def fog_bank(self) -> None:
        """What fog does to the land: a veil before the subjects are drawn."""
        if self.weather == "fog":
            self.marks.append(Haze(times((216, 220, 224), LIGHT[self.time]), 0.52))

    def falling(self) -> None:
        """Rain, snowflakes or a thin veil in front of everything."""
        rng = self.rng
        area = self.width * self.height / 65536
        if self.weather == "rain":
            color = mix((214, 230, 246), SKIES[self.time][1], 0.25)
            for _ in range(round(46 * area)):
                x, y = rng.uniform(-0.02, 1.05), rng.uniform(-0.05, 1.0)
                length = rng.uniform(0.045, 0.07) * self.unit
                drop = (x - 0.3 * length / self.width, y + length / self.height)
                self.line([(x, y), drop], 1.5, color)
        elif self.weather == "snow":
            for _ in range(round(52 * area)):
                self.disc(rng.random(), rng.random(), rng.choice((0.007, 0.010, 0.013)),
                          (252, 253, 255), ink=False)  # fmt: skip
        elif self.weather == "fog":
            self.marks.append(Haze(times((216, 220, 224), LIGHT[self.time]), 0.14))
