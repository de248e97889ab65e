"""Pages of the picture book in groups of one size.

Group g is a pure function of (run seed, g): which size, which seeds, which captions. So a run that
is interrupted goes on with the very pictures that it would have seen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from extras.preprocessors import canny_pyramid
from extras.training import picturebook
from extras.training.caption_tokens import LENGTH, caption_ids, framed, strew
from extras.training.captions import caption
from extras.training.facts import scene_facts
from extras.training.scenes.compose import SIZE_WEIGHTS
from extras.training.scenes.finishes import DRAWN_FROM, FINISHES
from extras.training.scenes.scene import SIZES

FIRST_TRAINING_SEED = 1_000_000
"""Seeds below this one are never trained on; tests and evaluations draw from them."""
_RUN_STRIDE = 1_000_000_000
WHOLE = "whole"
BOOKS = {
    "alphabet": picturebook.alphabet_scene,
    "primer": picturebook.primer_scene,
    "reader": picturebook.scene_from_seed,
    WHOLE: picturebook.scene_from_seed,
    "pairs": picturebook.pair_scene,
}
"""Which scenes a run is shown, from the easiest on."""
_SUBJECT_PART = 0.84  # of a page of the alphabet, each way
_REPEATED = {"primer": ("alphabet", 0.4), "reader": ("primer", 0.5), "pairs": ("reader", 0.45)}
"""Which easier book pages of a book are from, too, and how many, so that nothing is forgotten."""


def page_sizes(area: int) -> tuple[tuple[int, int], ...]:
    """The picture book's sizes, (width, height), brought to about `area` pixels."""
    factor = (area / (SIZES[0][0] * SIZES[0][1])) ** 0.5
    return tuple(
        (max(32, round(w * factor / 32) * 32), max(32, round(h * factor / 32) * 32))
        for w, h in SIZES
    )


def nearest(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of `sizes`, (width, height), the one with the nearest ratio."""
    wanted = np.log(width / height)
    return min(sizes, key=lambda size: abs(np.log(size[0] / size[1]) - wanted))


class PageGroup(NamedTuple):
    """images uint8 (G, H, W, 3); tokens int32 (G, captions, 77); numbers int32 (G, 6): original
    height and width, crop top and left, target height and width; facts uint8 (G, F), see
    facts.py, or (G, 0) of pictures whose facts nobody knows; maps uint8 (G, H, W) of edges, and
    things uint8 (G, H, W), 1 where there is a thing, or (G, 0, 0) each."""

    images: Tensor
    tokens: Tensor
    numbers: Tensor
    facts: Tensor
    maps: Tensor
    things: Tensor


class GroupSource(Protocol):
    """An endless row of groups, each a pure function of its number; a frozen dataclass."""

    @property
    def group(self) -> int:
        """Pictures in a group."""

    @property
    def seed(self) -> int:
        """Of what is drawn from the groups."""

    def group_size(self, number: int) -> tuple[int, int]:
        """(width, height) of the pictures of a group."""

    def draw_group(self, number: int) -> PageGroup:
        """The pictures of a group."""


@dataclass(frozen=True, kw_only=True)
class PagePlan:
    """What the groups of a run are made of.

    side: cut square pieces of this side (0: whole pages). cropped: how many pages are drawn larger
    and cut, as the crop condition says. captions: phrasings for each page, 0 for none. strange:
    how many captions get unknown words. finish: a name of FINISHES, by which all pages are drawn
    over. edges, things: whether groups hold maps, and where things are. book: which scenes, a name
    of BOOKS.
    """

    seed: int = 0
    group: int = 32
    side: int = 0
    cropped: float = 0.12
    captions: int = 4
    strange: float = 0.15
    sizes: tuple[tuple[int, int], ...] = SIZES
    weights: tuple[float, ...] = SIZE_WEIGHTS
    """How often each of `sizes`, (width, height), is taken."""
    finish: str = ""
    edges: bool = False
    things: bool = False
    book: str = WHOLE

    def group_size(self, number: int) -> tuple[int, int]:
        """(width, height) of the pages of a group."""
        return Random(f"size {self.seed} {number}").choices(self.sizes, self.weights)[0]

    def draw_group(self, number: int) -> PageGroup:
        """The pages of group `number`."""
        size = self.group_size(number)
        nothing = np.zeros((0, 0), np.uint8)
        images, tokens, numbers, facts, maps, things = [], [], [], [], [], []
        for index in range(self.group):
            seed = FIRST_TRAINING_SEED + self.seed * _RUN_STRIDE + number * self.group + index
            rng = Random(f"page {seed}")
            image, mask, six, scene = _page(self, seed, size, rng)
            if self.side:
                image = _cut(image, self.side, rng)
            images.append(image)
            numbers.append(six)
            tokens.append([_tokens(scene, self, rng) for _ in range(self.captions)])
            facts.append(scene_facts(scene))
            maps.append(edge_map(image, rng) if self.edges else nothing)
            things.append(mask if self.things else nothing)
        shape = (self.group, self.captions, LENGTH)
        return PageGroup(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.array(tokens, np.int32).reshape(shape)),
            torch.tensor(numbers, dtype=torch.int32),
            torch.from_numpy(np.stack(facts)),
            torch.from_numpy(np.stack(maps)),
            torch.from_numpy(np.stack(things)),
        )


def source_record(source: GroupSource) -> dict[str, Any]:
    """What a checkpoint says of `source`, wherever its files lie; of what was once the only way,
    nothing."""
    once = {"book": WHOLE, "things": False}
    told = {k: v for k, v in asdict(source).items() if k not in once or v != once[k]}
    told.pop("folder", None)
    return told


def edge_map(image: np.ndarray, rng: Random) -> np.ndarray:
    """Edges of uint8 (H, W, 3), as uint8 (H, W): of one scale and width, or of many scales."""
    if rng.random() < 0.5:
        return canny_pyramid(image)
    low = rng.choice((48, 64, 100))
    return cv2.Canny(np.ascontiguousarray(image), low, 2 * low)


def _page(
    plan: PagePlan, seed: int, size: tuple[int, int], rng: Random
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], picturebook.Scene]:
    """A page of `size`, where things are on it, what the model is told of its size, and its scene;
    now and then one that is cut out of a larger page."""
    width, height = size
    book, choices = plan.book, Random(f"book {seed}")
    while book in _REPEATED and choices.random() < _REPEATED[book][1]:
        book = _REPEATED[book][0]
    if rng.random() >= plan.cropped or book == "alphabet":
        image, mask, scene = _drawn(plan, book, seed, size)
        return image, mask, (height, width, 0, 0, height, width), scene
    grow = rng.choice((32, 64))
    larger = (width + grow, height + grow)
    image, mask, scene = _drawn(plan, book, seed, larger)
    left, top = rng.randrange(grow + 1), rng.randrange(grow + 1)
    image, mask = (whole[top : top + height, left : left + width] for whole in (image, mask))
    return image, mask, (larger[1], larger[0], top, left, height, width), scene


def _drawn(
    plan: PagePlan, book: str, seed: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, picturebook.Scene]:
    scene = BOOKS[book](seed, size=size)
    if plan.finish:
        scene = replace(scene, style=DRAWN_FROM)
    if book == "alphabet":
        image, mask = _centred(scene)
    else:
        sample = picturebook.draw_scene(scene)
        image, mask = sample.image, _things(sample)
    if plan.finish:
        image = FINISHES[plan.finish][0](image, Random(f"finish {seed}"))
    return image, mask, scene


def _things(sample: picturebook.Sample) -> np.ndarray:
    masks = [mask for instances in sample.truth.masks() for mask in instances]
    width, height = sample.size
    return np.any(masks, axis=0).astype(np.uint8) if masks else np.zeros((height, width), np.uint8)


def _centred(scene: picturebook.Scene) -> tuple[np.ndarray, np.ndarray]:
    """The page of `scene` moved and scaled so that its subject stands in the middle and fills it,
    and where that is.

    Where a shape stands and how large it is would else be most of what there is to learn.
    """
    width, height = scene.size
    larger = tuple(side * 5 // 4 // 32 * 32 for side in scene.size)  # fewer pixels are made up
    drawn = picturebook.draw_scene(replace(scene, size=larger))
    left, top, right, bottom = drawn.truth.boxes[0][0]
    scale = _SUBJECT_PART * min(width / (right - left), height / (bottom - top))
    onto = np.array(
        [[scale, 0, (width - scale * (left + right)) / 2],
         [0, scale, (height - scale * (top + bottom)) / 2]]
    )  # fmt: skip
    image = cv2.warpAffine(drawn.image, onto, scene.size, borderMode=cv2.BORDER_REPLICATE)
    return image, cv2.warpAffine(_things(drawn), onto, scene.size, flags=cv2.INTER_NEAREST)


def _cut(image: np.ndarray, side: int, rng: Random) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = rng.randrange(height - side + 1), rng.randrange(width - side + 1)
    return image[top : top + side, left : left + side]


def _tokens(scene: picturebook.Scene, plan: PagePlan, rng: Random) -> np.ndarray:
    looks = FINISHES[plan.finish][1] if plan.finish else ()
    ids = caption_ids(caption(scene, rng, looks))
    return framed(strew(ids, rng) if rng.random() < plan.strange else ids)
