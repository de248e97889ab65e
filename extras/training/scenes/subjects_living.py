"""Animals and plants, one small function each, in the unit square (see brush.py)."""

import math

from extras.training.scenes.brush import Brush


def tree(b: Brush) -> None:
    """A round crown on a trunk; the colour is the crown's."""
    b.poly([(-0.07, 0.5), (-0.05, 0.1), (0.05, 0.1), (0.07, 0.5)], "wood")
    b.blob(
        [(-0.36, 0.02), (-0.3, -0.24), (-0.12, -0.44), (0.14, -0.45), (0.31, -0.25), (0.36, 0.02),
         (0.2, 0.18), (0.0, 0.14), (-0.2, 0.18)], "body"
    )  # fmt: skip
    b.oval(0.16, 0.0, 0.14, 0.1, "shade", outlined=False)
    b.oval(-0.12, -0.24, 0.13, 0.1, "light", outlined=False)


def cactus(b: Brush) -> None:
    """A saguaro with two arms and a flower."""
    for x, top, elbow in ((-0.3, -0.18, 0.14), (0.3, -0.28, 0.02)):
        b.pillow(min(x, 0), elbow - 0.07, max(x, 0), elbow + 0.08, 0.05, "body")
        b.pillow(x - 0.08, top, x + 0.08, elbow + 0.08, 0.08, "body")
    b.pillow(-0.14, -0.46, 0.14, 0.5, 0.13, "body")
    for x in (-0.05, 0.05):
        b.line([(x, -0.34), (x, 0.42)], 0.018, "shade")
    b.line([(-0.3, -0.1), (-0.3, 0.1)], 0.016, "shade")
    b.line([(0.3, -0.2), (0.3, 0.0)], 0.016, "shade")
    b.oval(0.0, -0.46, 0.06, 0.04, "blush")


def mushroom(b: Brush) -> None:
    """A toadstool: a pale stalk and a dotted cap."""
    b.blob([(-0.13, 0.48), (-0.1, 0.0), (0.1, 0.0), (0.13, 0.48), (0.0, 0.5)], "cream")
    b.poly([(-0.46, 0.08), (-0.44, -0.08), (-0.34, -0.28), (-0.18, -0.41), (0.0, -0.46),
            (0.18, -0.41), (0.34, -0.28), (0.44, -0.08), (0.46, 0.08), (0.3, 0.13),
            (0.0, 0.15), (-0.3, 0.13)], "body")  # fmt: skip
    for x, y, r in (
        (-0.2, -0.16, 0.075),
        (0.04, -0.29, 0.06),
        (0.24, -0.1, 0.065),
        (0.0, -0.02, 0.05),
    ):
        b.oval(x, y, r, r * 0.9, "cream", outlined=False)


def flower(b: Brush) -> None:
    """Six petals on a stalk with two leaves."""
    b.curve([(0.0, -0.1), (0.02, 0.2), (0.0, 0.5)], 0.045, "stem")
    b.oval(0.13, 0.3, 0.14, 0.055, "leaf", tilt=-0.5)
    b.oval(-0.13, 0.36, 0.14, 0.055, "leaf", tilt=0.5)
    for k in range(6):
        angle = math.pi / 6 + k * math.pi / 3
        b.oval(0.19 * math.cos(angle), -0.17 + 0.19 * math.sin(angle), 0.15, 0.105, "body",
               tilt=angle)  # fmt: skip
    b.oval(0.0, -0.17, 0.105, 0.105, "dark" if b.inks["body"][0] > 225 else "lamp")


def mountain(b: Brush) -> None:
    """A peak with a snow cap."""
    b.poly([(-0.5, 0.5), (-0.2, -0.12), (-0.1, -0.05), (0.06, -0.44), (0.26, -0.04), (0.33, -0.1),
            (0.5, 0.5)], "body")  # fmt: skip
    b.poly([(0.06, -0.44), (0.26, -0.04), (0.33, -0.1), (0.5, 0.5), (0.14, 0.5), (0.2, 0.12),
            (0.06, -0.02)], "shade", outlined=False)  # fmt: skip
    b.poly([(0.06, -0.44), (0.19, -0.18), (0.1, -0.22), (0.04, -0.14), (-0.05, -0.17)], "paper")


def cat(b: Brush) -> None:
    """A sitting cat, its tail to one side."""
    b.curve([(0.2, 0.42), (0.4, 0.36), (0.42, 0.12), (0.36, 0.0)], 0.08, "body")
    b.blob([(-0.22, 0.48), (-0.2, 0.18), (-0.08, -0.02), (0.1, -0.02), (0.24, 0.2), (0.26, 0.48),
            (0.0, 0.5)], "body")  # fmt: skip
    b.poly([(-0.27, -0.22), (-0.25, -0.5), (-0.06, -0.36)], "body")
    b.poly([(0.23, -0.22), (0.21, -0.5), (0.02, -0.36)], "body")
    b.poly([(-0.22, -0.31), (-0.21, -0.43), (-0.12, -0.36)], "blush", outlined=False)
    b.poly([(0.18, -0.31), (0.17, -0.43), (0.08, -0.36)], "blush", outlined=False)
    b.oval(-0.02, -0.18, 0.27, 0.2, "body")
    b.oval(0.0, 0.28, 0.11, 0.17, "light", outlined=False)
    face(b, -0.02, -0.18, 0.11)
    for side in (-1, 1):
        b.line([(-0.02 + side * 0.12, -0.1), (-0.02 + side * 0.31, -0.13)], 0.012, "shade")
        b.line([(-0.02 + side * 0.12, -0.08), (-0.02 + side * 0.31, -0.06)], 0.012, "shade")
    b.line([(-0.06, 0.34), (-0.06, 0.48)], 0.014, "shade")
    b.line([(0.08, 0.34), (0.08, 0.48)], 0.014, "shade")


def face(b: Brush, x: float, y: float, gap: float) -> None:
    """Two eyes, a small nose and a mouth around (x, y); pale eyes on a dark coat."""
    dark_coat = sum(b.inks["body"]) < 210
    for side in (-1, 1):
        if dark_coat:
            b.oval(x + side * gap, y, 0.045, 0.05, "lamp", outlined=False)
        b.eye(x + side * gap, y, 0.034)
    b.poly([(x - 0.03, y + 0.07), (x + 0.03, y + 0.07), (x, y + 0.105)], "blush", outlined=False)


def dog(b: Brush) -> None:
    """A standing dog in profile with a hanging ear."""
    b.curve([(-0.36, -0.02), (-0.46, -0.14), (-0.46, -0.28)], 0.07, "body")
    for x in (-0.32, -0.18, 0.1, 0.22):
        b.pillow(x - 0.05, 0.12, x + 0.05, 0.5, 0.04, "shade" if x in (-0.18, 0.1) else "body")
    b.blob([(-0.4, 0.2), (-0.38, -0.04), (-0.1, -0.1), (0.2, -0.14), (0.3, 0.06), (0.26, 0.24),
            (-0.1, 0.26)], "body")  # fmt: skip
    b.blob([(0.08, -0.12), (0.08, -0.34), (0.22, -0.45), (0.36, -0.36), (0.5, -0.24), (0.46, -0.12),
            (0.3, -0.06)], "body")  # fmt: skip
    b.blob([(0.1, -0.4), (0.2, -0.4), (0.18, -0.16), (0.08, -0.06), (0.03, -0.2)], "shade")
    b.line([(0.1, -0.06), (0.28, 0.0)], 0.05, "blush")
    b.oval(0.48, -0.25, 0.04, 0.035, "dark", outlined=False)
    if sum(b.inks["body"]) < 210:
        b.oval(0.29, -0.3, 0.045, 0.05, "paper", outlined=False)
    b.eye(0.29, -0.3, 0.03)


def rabbit(b: Brush) -> None:
    """A sitting rabbit with long ears and a white tail."""
    b.oval(0.26, 0.36, 0.09, 0.09, "paper")
    b.oval(0.0, 0.26, 0.25, 0.24, "body")
    for side in (-1, 1):
        b.oval(side * 0.1 - 0.02, -0.32, 0.07, 0.19, "body", tilt=side * 0.16)
        b.oval(side * 0.1 - 0.02, -0.31, 0.033, 0.14, "blush", tilt=side * 0.16, outlined=False)
    b.oval(-0.02, -0.06, 0.2, 0.17, "body")
    b.oval(-0.02, 0.28, 0.13, 0.15, "light", outlined=False)
    face(b, -0.02, -0.09, 0.085)
    for side in (-1, 1):
        b.oval(side * 0.13, 0.46, 0.1, 0.045, "body")


def bird(b: Brush) -> None:
    """A flying songbird with a raised wing."""
    b.poly([(-0.24, 0.08), (-0.5, 0.0), (-0.48, 0.1), (-0.5, 0.2), (-0.22, 0.2)], "shade")
    b.blob([(-0.3, 0.1), (-0.05, -0.04), (0.14, -0.08), (0.22, -0.2), (0.36, -0.18), (0.4, -0.04),
            (0.3, 0.16), (0.08, 0.28), (-0.14, 0.24)], "body")  # fmt: skip
    b.blob([(0.06, 0.2), (0.26, 0.1), (0.2, 0.22), (0.08, 0.27)], "cream", outlined=False)
    b.blob([(0.14, 0.04), (-0.04, 0.1), (-0.26, -0.16), (-0.3, -0.42), (-0.06, -0.28)], "shade")
    b.poly([(0.39, -0.12), (0.5, -0.05), (0.39, -0.02)], "beak")
    if sum(b.inks["body"]) < 210:
        b.oval(0.3, -0.1, 0.045, 0.045, "paper", outlined=False)
    b.eye(0.3, -0.1, 0.03)


def owl(b: Brush) -> None:
    """A round owl with big eyes, seen from the front."""
    b.poly([(-0.3, -0.2), (-0.29, -0.5), (-0.06, -0.36)], "body")
    b.poly([(0.3, -0.2), (0.29, -0.5), (0.06, -0.36)], "body")
    b.blob([(-0.31, -0.1), (-0.24, -0.36), (0.0, -0.42), (0.24, -0.36), (0.31, -0.1), (0.33, 0.2),
            (0.2, 0.44), (0.0, 0.48), (-0.2, 0.44), (-0.33, 0.2)], "body")  # fmt: skip
    b.oval(0.0, 0.22, 0.18, 0.2, "light", outlined=False)
    for side in (-1, 1):
        b.blob([(side * 0.33, -0.02), (side * 0.4, 0.18), (side * 0.24, 0.4), (side * 0.2, 0.1)],
               "shade")  # fmt: skip
        b.oval(side * 0.13, -0.17, 0.125, 0.125, "cream")
        b.eye(side * 0.12, -0.17, 0.06)
        b.oval(side * 0.09, 0.47, 0.06, 0.03, "beak")
    b.poly([(-0.05, -0.1), (0.05, -0.1), (0.0, 0.0)], "beak")


def penguin(b: Brush) -> None:
    """An upright penguin; the coat has the colour, the belly is white."""
    for side in (-1, 1):
        b.blob([(side * 0.22, -0.12), (side * 0.4, 0.14), (side * 0.36, 0.22), (side * 0.2, 0.12)],
               "shade")  # fmt: skip
        b.oval(side * 0.11, 0.46, 0.1, 0.04, "beak")
    b.blob([(-0.19, -0.28), (0.0, -0.48), (0.19, -0.28), (0.26, 0.06), (0.22, 0.36), (0.0, 0.46),
            (-0.22, 0.36), (-0.26, 0.06)], "body")  # fmt: skip
    b.blob([(-0.14, -0.04), (0.0, -0.12), (0.14, -0.04), (0.17, 0.2), (0.0, 0.41), (-0.17, 0.2)],
           "cream" if sum(b.inks["body"]) > 600 else "paper", outlined=False)  # fmt: skip
    for side in (-1, 1):
        b.oval(side * 0.08, -0.27, 0.06, 0.065, "paper", outlined=False)
        b.eye(side * 0.07, -0.27, 0.03)
    b.poly([(-0.06, -0.2), (0.06, -0.2), (0.0, -0.11)], "beak")


def fish(b: Brush) -> None:
    """A fish in profile with a striped body."""
    b.blob([(-0.22, 0.0), (-0.5, -0.26), (-0.44, 0.0), (-0.5, 0.26)], "shade")
    b.blob([(-0.1, -0.18), (0.02, -0.38), (0.2, -0.2)], "shade")
    b.blob([(-0.3, 0.0), (-0.12, -0.2), (0.14, -0.25), (0.38, -0.12), (0.48, 0.02), (0.36, 0.16),
            (0.12, 0.25), (-0.12, 0.19)], "body")  # fmt: skip
    for x in (-0.1, 0.06):
        b.curve([(x, -0.19), (x + 0.05, 0.0), (x, 0.19)], 0.045, "light")
    b.blob([(0.02, 0.08), (-0.1, 0.16), (-0.06, 0.26), (0.08, 0.18)], "shade")
    b.oval(0.3, -0.05, 0.06, 0.06, "paper", outlined=False)
    b.eye(0.31, -0.05, 0.034)


def whale(b: Brush) -> None:
    """A round whale that blows water."""
    for x in (-0.1, 0.1):
        b.curve([(0.14, -0.2), (0.14 + x * 0.5, -0.36), (0.14 + x * 1.4, -0.36)], 0.04, "glass")
    b.blob([(-0.34, 0.16), (-0.47, 0.02), (-0.5, -0.18), (-0.38, -0.12), (-0.27, -0.2),
            (-0.28, 0.0), (-0.2, 0.08)], "body")  # fmt: skip
    b.blob([(-0.36, 0.06), (-0.14, -0.02), (0.02, -0.16), (0.26, -0.18), (0.46, 0.0), (0.47, 0.2),
            (0.26, 0.36), (-0.1, 0.36), (-0.3, 0.24)], "body")  # fmt: skip
    b.blob([(0.48, 0.14), (0.3, 0.2), (0.0, 0.22), (-0.1, 0.34), (0.1, 0.37), (0.3, 0.35)],
           "cream", outlined=False)  # fmt: skip
    b.blob([(0.02, 0.22), (0.1, 0.2), (0.06, 0.36), (-0.08, 0.42)], "shade")
    if sum(b.inks["body"]) < 210:
        b.oval(0.33, 0.04, 0.045, 0.045, "paper", outlined=False)
    b.eye(0.33, 0.04, 0.03)


def turtle(b: Brush) -> None:
    """A turtle in profile; the shell has the colour."""
    b.blob([(0.24, 0.26), (0.34, 0.02), (0.42, -0.06), (0.5, 0.04), (0.44, 0.16), (0.36, 0.32)],
           "leaf")  # fmt: skip
    for x in (-0.24, 0.2):
        b.pillow(x - 0.08, 0.24, x + 0.08, 0.5, 0.06, "leaf")
    b.poly([(-0.38, 0.3), (-0.5, 0.36), (-0.36, 0.38)], "leaf")
    b.poly([(-0.42, 0.34), (-0.4, 0.14), (-0.3, -0.06), (-0.14, -0.19), (0.02, -0.22),
            (0.18, -0.16), (0.3, 0.0), (0.36, 0.2), (0.36, 0.34)], "body")  # fmt: skip
    b.poly([(-0.42, 0.3), (0.36, 0.3), (0.36, 0.37), (-0.42, 0.37)], "shade")
    b.poly([(-0.12, -0.1), (0.06, -0.1), (0.13, 0.06), (0.04, 0.2), (-0.12, 0.2), (-0.2, 0.06)],
           "light")  # fmt: skip
    b.eye(0.43, 0.02, 0.024)


def butterfly(b: Brush) -> None:
    """A butterfly with open wings."""
    for side in (-1, 1):
        b.blob([(side * 0.03, 0.02), (side * 0.3, 0.04), (side * 0.38, 0.24), (side * 0.22, 0.4),
                (side * 0.08, 0.26)], "shade")  # fmt: skip
        b.blob([(side * 0.03, 0.04), (side * 0.14, -0.26), (side * 0.38, -0.4),
                (side * 0.49, -0.24), (side * 0.4, 0.02), (side * 0.2, 0.1)], "body")  # fmt: skip
        b.oval(side * 0.31, -0.19, 0.08, 0.08, "light", outlined=False)
        b.oval(side * 0.23, 0.22, 0.05, 0.05, "light", outlined=False)
        b.curve([(side * 0.01, -0.24), (side * 0.06, -0.36), (side * 0.14, -0.44)], 0.018, "dark")
    b.oval(0.0, 0.02, 0.04, 0.27, "dark")


def snail(b: Brush) -> None:
    """A snail; the shell has the colour."""
    b.blob([(-0.46, 0.46), (-0.3, 0.34), (0.1, 0.34), (0.26, 0.2), (0.28, -0.02), (0.4, -0.04),
            (0.46, 0.14), (0.4, 0.36), (0.2, 0.48), (-0.2, 0.5)], "cream")  # fmt: skip
    for x in (0.3, 0.4):
        b.line([(x, 0.0), (x + 0.05, -0.18)], 0.025, "wood")
        b.oval(x + 0.05, -0.19, 0.03, 0.03, "dark", outlined=False)
    b.oval(-0.1, 0.1, 0.3, 0.3, "body")
    b.curve([(-0.1, 0.1), (-0.04, 0.04), (-0.12, 0.0), (-0.2, 0.1), (-0.1, 0.22), (0.06, 0.14),
             (0.02, -0.06), (-0.16, -0.1), (-0.29, 0.06)], 0.035, "shade")  # fmt: skip
    b.eye(0.37, 0.1, 0.018)
