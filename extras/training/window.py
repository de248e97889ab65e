"""A sliding window of encoded pages, from which the training of the base model draws its batches.

Drawing and encoding a page costs as much as several training steps on it, so each page stays for
a while: at step k the window holds the groups from `low(k)` to `high(k)` of an endless row, and a
batch is drawn from them. Both are pure functions of k, hence so is the batch, whatever happened
before: a resumed run first fills the same window again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from extras.training.caption_tokens import END_TOKEN, PAD_G, framed
from extras.training.kept_pages import Encoded, KeptPages
from extras.training.page_workers import draw_groups
from extras.training.pages import GroupSource, PageGroup

Batch = dict[str, Tensor]
"""latents (B, 4, h, w) float32, what else is kept of a picture, and the conditioner's inputs."""
Rows = dict[str, Tensor]
"""What is kept of each picture of a group, "latents" at least, (G, …) each."""


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """capacity: pages in the window; start: pages before the first step; both are rounded up to
    whole groups. reuse: how often a page is trained on, on average, once the window is full.
    dropout: how many captions are emptied."""

    batch: int = 32
    capacity: int = 8192
    start: int = 1024
    reuse: float = 6.0
    dropout: float = 0.1


class LatentWindow:
    """See the module's docstring."""

    def __init__(
        self,
        pages: GroupSource,
        plan: WindowPlan,
        encode: Callable[[PageGroup], Rows],
        *,
        device: torch.device,
        workers: int,
        first_step: int = 0,
        kept: KeptPages | None = None,
    ) -> None:
        """encode: a group to what is kept of it, "latents" (G, 4, h, w) as they are trained on
        among it; floats are kept in half precision. kept: where encoded groups may be already."""
        self.pages, self.plan, self.encode, self.device = pages, plan, encode, device
        self._workers, self._kept = workers, kept
        self._low = self._high = self.low(first_step)
        self._source: Iterator[PageGroup] = iter(())
        self._next_drawn = -1
        self._stores: dict[tuple[int, int], _Store] = {}

    def high(self, step: int) -> int:
        """One past the last group of the window at a step."""
        fresh = self.plan.batch / self.plan.reuse / self.pages.group  # groups for each step
        return -(-self.plan.start // self.pages.group) + int(step * fresh)

    def low(self, step: int) -> int:
        """The first group of the window at a step."""
        return max(0, self.high(step) - -(-self.plan.capacity // self.pages.group))

    def missing(self, step: int) -> int:
        """How many groups must be drawn before the batch of `step`."""
        return max(0, self.high(step) - self._high)

    def advance(self, step: int) -> None:
        """Draw, encode and drop groups until the window is that of `step`. Steps only rise."""
        while self._high < self.high(step):
            self._add_one()
        for number in range(self._low, self.low(step)):
            self._stores[self.pages.group_size(number)].drop(number)
        self._low = self.low(step)

    def _add_one(self) -> None:
        group = self._encoded(self._high)
        key = self.pages.group_size(self._high)
        if key not in self._stores:
            self._stores[key] = _Store(group)
        self._stores[key].add(self._high, group)
        self._high += 1

    def _encoded(self, number: int) -> Encoded:
        known = self._kept.read(number) if self._kept else None
        if known is not None:
            rows = {name: tensor.to(self.device) for name, tensor in known.rows.items()}
            return known._replace(rows=rows)
        if number != self._next_drawn:
            self._source = draw_groups(self.pages, number, self._workers)
        drawn, self._next_drawn = next(self._source), number + 1
        rows = {name: t.to(_kept_dtype(t)) for name, t in self.encode(drawn).items()}
        made = Encoded(rows, drawn.tokens, drawn.numbers)
        if self._kept:
            self._kept.write(number, made)
        return made

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the device; `advance(step)` comes first."""
        rng = Random(f"batch {self.pages.seed} {step}")
        stores = [self._stores[key] for key in sorted(self._stores)]
        store = rng.choices(stores, [len(store) for store in stores])[0]
        rows = store.rows(rng, self.plan.batch)
        here = rows.to(self.device)
        kept = {name: tensor[here] for name, tensor in store.kept.items()}
        floats = {name: t.float() for name, t in kept.items() if t.is_floating_point()}
        return {**kept, **floats, **self._told(store, rows, rng)}

    def _told(self, store: "_Store", rows: Tensor, rng: Random) -> Batch:
        """The conditioner's inputs of these rows; nothing where the pages have no captions."""
        phrasings, count = store.tokens.shape[1], len(rows)
        if not phrasings:
            return {}
        picked = torch.tensor([rng.randrange(phrasings) for _ in range(count)])
        tokens = store.tokens[rows, picked].long()
        emptied = torch.tensor([rng.random() < self.plan.dropout for _ in range(count)])
        tokens = torch.where(emptied[:, None], torch.from_numpy(framed([])).long(), tokens)
        return conditions(tokens, store.numbers[rows], self.device)


def conditions(tokens: Tensor, numbers: Tensor, device: torch.device) -> Batch:
    """The conditioner's inputs for ids (B, 77) padded with the end token, and (B, 6) sizes."""
    tokens, numbers = tokens.to(device), numbers.to(device).float()
    ends = (tokens == END_TOKEN).int()
    behind = ends.cumsum(dim=1) > 1  # the first end token belongs to the text
    return {
        "tokens_l": tokens,
        "tokens_g": tokens.masked_fill(behind, PAD_G),
        "original_size_as_tuple": numbers[:, 0:2],
        "crop_coords_top_left": numbers[:, 2:4],
        "target_size_as_tuple": numbers[:, 4:6],
    }


class _Store:
    """The groups of one size: rows of tensors that grow, and are used again when a group goes."""

    def __init__(self, group: Encoded) -> None:
        self.size = len(group.numbers)
        self.kept = {name: t.new_empty((0, *t.shape[1:])) for name, t in group.rows.items()}
        self.tokens = torch.empty((0, *group.tokens.shape[1:]), dtype=torch.int32)
        self.numbers = torch.empty((0, group.numbers.shape[1]), dtype=torch.int32)
        self.places: dict[int, int] = {}  # group number → its place, in groups; rising numbers
        self.free: list[int] = []

    def __len__(self) -> int:
        return len(self.places)

    def add(self, number: int, group: Encoded) -> None:
        if not self.free:
            self._grow()
        place = self.free.pop()
        here = slice(place * self.size, (place + 1) * self.size)
        for name, tensor in group.rows.items():
            self.kept[name][here] = tensor
        self.tokens[here] = group.tokens
        self.numbers[here] = group.numbers
        self.places[number] = place

    def drop(self, number: int) -> None:
        self.free.append(self.places.pop(number))

    def rows(self, rng: Random, count: int) -> Tensor:
        """Row numbers of `count` random pages; independent of where groups happen to lie."""
        places = list(self.places.values())
        picked = [divmod(rng.randrange(len(places) * self.size), self.size) for _ in range(count)]
        return torch.tensor([places[group] * self.size + index for group, index in picked])

    def _grow(self) -> None:
        old = len(self.tokens) // self.size
        more = max(4, old)
        self.free += range(old, old + more)

        def grown(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_empty((more * self.size, *tensor.shape[1:]))])

        self.kept = {name: grown(tensor) for name, tensor in self.kept.items()}
        self.tokens, self.numbers = grown(self.tokens), grown(self.numbers)


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float16 if tensor.is_floating_point() else tensor.dtype
