"""Made things and signs, one small function each, in the unit square (see brush.py)."""

import math

from extras.training.scenes.brush import Brush


def house(b: Brush) -> None:
    """Walls of the colour, a darker roof, a door and two lit windows."""
    b.rect(0.2, -0.42, 0.31, -0.12, "shade")
    b.rect(-0.36, -0.08, 0.36, 0.5, "body")
    b.poly([(-0.46, -0.04), (0.0, -0.46), (0.46, -0.04)], "shade")
    b.pillow(-0.07, 0.16, 0.09, 0.5, 0.03, "wood")
    b.oval(0.055, 0.34, 0.014, 0.014, "lamp", outlined=False)
    for x in (-0.28, 0.16):
        b.rect(x, 0.06, x + 0.13, 0.21, "lamp")
        b.line([(x + 0.065, 0.06), (x + 0.065, 0.21)], 0.014, "wood")
        b.line([(x, 0.135), (x + 0.13, 0.135)], 0.014, "wood")


def castle(b: Brush) -> None:
    """Two round towers with pointed roofs, a battlement and a gate."""
    b.rect(-0.26, -0.06, 0.26, 0.5, "body")
    for k in range(5):
        x = -0.24 + k * 0.1
        b.rect(x, -0.13, x + 0.06, -0.04, "body")
    for side in (-1, 1):
        x = side * 0.33
        b.rect(x - 0.12, -0.2, x + 0.12, 0.5, "body")
        b.poly([(x - 0.16, -0.18), (x, -0.47), (x + 0.16, -0.18)], "shade")
        b.pillow(x - 0.04, -0.08, x + 0.04, 0.08, 0.035, "lamp")
        b.line([(x, -0.47), (x, -0.5)], 0.02, "dark")
    b.pillow(-0.11, 0.16, 0.11, 0.5, 0.1, "wood")
    b.rect(-0.11, 0.36, 0.11, 0.5, "wood")


def tent(b: Brush) -> None:
    """A ridge tent with an open door."""
    b.poly([(-0.5, 0.46), (-0.1, -0.32), (0.12, -0.32), (0.5, 0.46)], "shade")
    b.poly([(-0.5, 0.46), (-0.1, -0.32), (0.26, 0.46)], "body")
    b.poly([(-0.26, 0.46), (-0.1, -0.06), (0.06, 0.46)], "dark")
    b.poly([(-0.26, 0.46), (-0.1, -0.06), (-0.15, 0.46)], "light")
    b.line([(-0.1, -0.32), (-0.13, -0.4)], 0.025, "wood")


def boat(b: Brush) -> None:
    """A sailing boat with one big and one small sail; hull and pennant have the colour."""
    b.line([(0.0, -0.46), (0.0, 0.24)], 0.035, "wood")
    b.poly([(-0.04, -0.38), (-0.04, 0.16), (-0.38, 0.16)], "cream")
    b.poly([(0.05, -0.3), (0.05, 0.16), (0.32, 0.16)], "light")
    b.poly([(0.0, -0.5), (0.17, -0.44), (0.0, -0.38)], "body")
    b.poly([(-0.48, 0.22), (0.48, 0.22), (0.42, 0.34), (0.32, 0.45), (-0.32, 0.45), (-0.42, 0.34)],
           "body")  # fmt: skip
    b.poly([(-0.48, 0.22), (0.48, 0.22), (0.46, 0.27), (-0.46, 0.27)], "shade", outlined=False)
    for x in (-0.2, 0.0, 0.2):
        b.oval(x, 0.34, 0.03, 0.03, "cream", outlined=False)


def car(b: Brush) -> None:
    """A small rounded car in profile."""
    b.poly([(-0.28, 0.14), (-0.2, -0.12), (-0.12, -0.18), (0.12, -0.18), (0.2, -0.12),
            (0.32, 0.14)], "body")  # fmt: skip
    b.poly([(-0.21, 0.1), (-0.15, -0.1), (-0.02, -0.11), (-0.02, 0.1)], "glass")
    b.poly([(0.04, 0.1), (0.04, -0.11), (0.13, -0.1), (0.23, 0.1)], "glass")
    b.pillow(-0.49, 0.08, 0.49, 0.38, 0.1, "body")
    b.line([(-0.46, 0.31), (0.46, 0.31)], 0.03, "shade")
    b.oval(0.45, 0.19, 0.04, 0.05, "lamp")
    b.oval(-0.47, 0.19, 0.025, 0.04, "blush")
    for x in (-0.27, 0.27):
        b.oval(x, 0.37, 0.125, 0.125, "dark")
        b.oval(x, 0.37, 0.055, 0.055, "metal", outlined=False)


def bus(b: Brush) -> None:
    """A long bus with a row of windows."""
    b.pillow(-0.49, -0.28, 0.49, 0.36, 0.07, "body")
    for k in range(4):
        x = -0.43 + k * 0.19
        b.pillow(x, -0.19, x + 0.15, 0.03, 0.02, "glass")
    b.pillow(0.33, -0.19, 0.47, 0.3, 0.02, "glass")
    b.line([(-0.46, 0.14), (0.31, 0.14)], 0.05, "light")
    for x in (-0.27, 0.2):
        b.oval(x, 0.36, 0.12, 0.12, "dark")
        b.oval(x, 0.36, 0.05, 0.05, "metal", outlined=False)


def rocket(b: Brush) -> None:
    """An upright rocket with fins, a porthole and a flame."""
    b.blob([(-0.1, 0.3), (0.0, 0.5), (0.1, 0.3)], "beak")
    b.blob([(-0.05, 0.3), (0.0, 0.42), (0.05, 0.3)], "lamp", outlined=False)
    for side in (-1, 1):
        b.poly([(side * 0.14, 0.04), (side * 0.32, 0.22), (side * 0.32, 0.38), (side * 0.13, 0.28)],
               "shade")  # fmt: skip
    b.blob([(0.0, -0.5), (0.15, -0.26), (0.18, 0.04), (0.13, 0.31), (-0.13, 0.31), (-0.18, 0.04),
            (-0.15, -0.26)], "body")  # fmt: skip
    b.blob([(0.0, -0.5), (0.11, -0.34), (0.0, -0.3), (-0.11, -0.34)], "light", outlined=False)
    b.oval(0.0, -0.1, 0.1, 0.1, "metal")
    b.oval(0.0, -0.1, 0.07, 0.07, "glass", outlined=False)


def balloon(b: Brush) -> None:
    """A party balloon on a string."""
    b.curve([(0.0, 0.16), (0.05, 0.27), (-0.04, 0.38), (0.02, 0.5)], 0.018, "dark")
    b.poly([(-0.05, 0.19), (0.05, 0.19), (0.0, 0.12)], "shade")
    b.blob([(0.0, -0.5), (0.24, -0.4), (0.32, -0.18), (0.2, 0.06), (0.0, 0.16), (-0.2, 0.06),
            (-0.32, -0.18), (-0.24, -0.4)], "body")  # fmt: skip
    b.oval(-0.13, -0.27, 0.06, 0.11, "light", tilt=0.5, outlined=False)


def kite(b: Brush) -> None:
    """A diamond kite with a tail of bows."""
    b.curve([(0.04, 0.16), (0.12, 0.28), (-0.02, 0.36), (0.06, 0.5)], 0.018, "dark")
    b.poly([(0.0, -0.5), (0.3, -0.16), (0.04, 0.18), (-0.3, -0.16)], "body")
    b.poly([(0.0, -0.5), (0.3, -0.16), (0.015, -0.16)], "shade", outlined=False)
    b.poly([(-0.3, -0.16), (0.015, -0.16), (0.04, 0.18)], "light", outlined=False)
    for x, y in ((0.1, 0.29), (0.01, 0.4)):
        b.poly([(x - 0.07, y - 0.04), (x + 0.07, y + 0.04), (x + 0.07, y - 0.04),
                (x - 0.07, y + 0.04)], "body")  # fmt: skip


def umbrella(b: Brush) -> None:
    """An open umbrella with a hooked handle."""
    b.line([(0.0, -0.42), (0.0, 0.36)], 0.035, "wood")
    b.curve([(0.0, 0.34), (0.02, 0.45), (0.1, 0.45), (0.12, 0.36)], 0.04, "wood")
    top = [(-0.48, 0.02), (-0.42, -0.18), (-0.26, -0.34), (0.0, -0.41), (0.26, -0.34),
           (0.42, -0.18), (0.48, 0.02)]  # fmt: skip
    hem = [(0.36, -0.03), (0.24, -0.03), (0.16, 0.02), (0.08, -0.03), (-0.08, -0.03),
           (-0.16, 0.02), (-0.24, -0.03), (-0.36, -0.03)]  # fmt: skip
    b.poly(top + hem, "body")
    b.poly([(0.0, -0.41), (-0.13, -0.2), (-0.16, 0.02), (-0.08, -0.03), (0.08, -0.03),
            (0.16, 0.02), (0.13, -0.2)], "light", outlined=False)  # fmt: skip
    b.poly([(0.26, -0.34), (0.42, -0.18), (0.48, 0.02), (0.4, -0.03), (0.34, -0.2)], "shade",
           outlined=False)  # fmt: skip
    b.oval(0.0, -0.43, 0.025, 0.035, "wood")


def star(b: Brush) -> None:
    """A five-pointed star with a friendly gloss."""
    points, inner = [], []
    for k in range(10):
        angle = -math.pi / 2 + k * math.pi / 5
        r = 0.5 if k % 2 == 0 else 0.23
        points.append((r * math.cos(angle), 0.03 + r * math.sin(angle)))
        inner.append((r * 0.52 * math.cos(angle), 0.03 + r * 0.52 * math.sin(angle)))
    b.poly(points, "body")
    b.poly(inner, "light", outlined=False)


def heart(b: Brush) -> None:
    """A heart with a glint."""
    b.blob([(0.0, -0.24), (0.14, -0.4), (0.34, -0.4), (0.47, -0.2), (0.38, 0.08), (0.16, 0.32),
            (0.0, 0.47), (-0.16, 0.32), (-0.38, 0.08), (-0.47, -0.2), (-0.34, -0.4),
            (-0.14, -0.4)], "body")  # fmt: skip
    b.oval(-0.25, -0.2, 0.1, 0.065, "light", tilt=-0.7, outlined=False)


def apple(b: Brush) -> None:
    """An apple with a stalk and a leaf."""
    b.blob([(0.0, -0.22), (0.2, -0.31), (0.39, -0.16), (0.4, 0.12), (0.24, 0.41), (0.08, 0.47),
            (0.0, 0.44), (-0.08, 0.47), (-0.24, 0.41), (-0.4, 0.12), (-0.39, -0.16),
            (-0.2, -0.31)], "body")  # fmt: skip
    b.oval(-0.2, -0.06, 0.07, 0.12, "light", tilt=0.4, outlined=False)
    b.curve([(0.0, -0.2), (0.01, -0.34), (0.06, -0.45)], 0.045, "wood")
    b.oval(0.19, -0.4, 0.13, 0.06, "leaf", tilt=-0.35)


def cup(b: Brush) -> None:
    """A mug with a handle and steam."""
    for x in (-0.16, 0.02):
        b.curve(
            [(x, -0.26), (x + 0.05, -0.34), (x - 0.03, -0.41), (x + 0.03, -0.49)], 0.03, "metal"
        )
    b.curve([(0.22, -0.06), (0.42, -0.06), (0.42, 0.22), (0.2, 0.28)], 0.075, "body")
    b.poly([(-0.36, -0.18), (0.26, -0.18), (0.22, 0.38), (0.14, 0.46), (-0.24, 0.46),
            (-0.32, 0.38)], "body")  # fmt: skip
    b.oval(-0.05, -0.18, 0.31, 0.06, "shade")
    b.oval(-0.05, -0.17, 0.25, 0.04, "wood", outlined=False)
    b.line([(-0.26, -0.02), (-0.23, 0.3)], 0.05, "light")


def robot(b: Brush) -> None:
    """A boxy robot with an antenna."""
    b.line([(0.0, -0.34), (0.0, -0.45)], 0.025, "metal")
    b.oval(0.0, -0.46, 0.04, 0.04, "beak")
    for side in (-1, 1):
        b.line([(side * 0.22, 0.06), (side * 0.37, 0.12), (side * 0.37, 0.26)], 0.06, "metal")
        b.oval(side * 0.37, 0.28, 0.05, 0.05, "shade")
        b.rect(side * 0.11 - 0.06, 0.3, side * 0.11 + 0.06, 0.44, "metal")
        b.pillow(side * 0.12 - 0.1, 0.42, side * 0.12 + 0.1, 0.5, 0.03, "shade")
    b.rect(-0.06, -0.06, 0.06, 0.04, "metal")
    b.pillow(-0.25, 0.0, 0.25, 0.34, 0.05, "body")
    b.pillow(-0.28, -0.36, 0.28, -0.04, 0.07, "body")
    b.pillow(-0.21, -0.29, 0.21, -0.11, 0.05, "dark")
    for side in (-1, 1):
        b.oval(side * 0.1, -0.2, 0.045, 0.045, "lamp", outlined=False)
    b.pillow(-0.14, 0.08, 0.14, 0.24, 0.03, "light")
    for x, ink in ((-0.07, "beak"), (0.0, "leaf"), (0.07, "glass")):
        b.oval(x, 0.16, 0.025, 0.025, ink, outlined=False)


def snowman(b: Brush) -> None:
    """Two snowballs with a hat and a scarf; the snow has the colour."""
    for side in (-1, 1):
        b.line([(side * 0.2, 0.06), (side * 0.42, -0.08)], 0.028, "wood")
    b.oval(0.0, 0.24, 0.29, 0.26, "body")
    b.oval(0.0, -0.12, 0.2, 0.19, "body")
    b.rect(-0.13, -0.48, 0.13, -0.27, "dark")
    b.pillow(-0.22, -0.3, 0.22, -0.24, 0.02, "dark")
    b.curve([(-0.17, 0.0), (0.0, 0.06), (0.17, 0.0)], 0.07, "blush")
    b.line([(0.12, 0.03), (0.15, 0.18)], 0.06, "blush")
    b.eye(-0.07, -0.15, 0.024)
    b.eye(0.07, -0.15, 0.024)
    b.poly([(-0.01, -0.11), (0.16, -0.07), (-0.01, -0.06)], "beak")
    for y in (0.16, 0.27):
        b.oval(0.0, y, 0.024, 0.024, "dark", outlined=False)
