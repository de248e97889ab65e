"""What all controls of a UNet by a picture have in common.

A condition's options hold a control under "control"; conditions that share it share a network
call. A control is made ready once a run (`pre_run`, see `controls_in_place`) and asked at every
step (`get_control`). Several at once are a chain, each naming the one before.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_patched.modules import utils
from ldm_patched.modules.cond_batch import COND
from ldm_patched.modules.conds import repeat_to_batch_size
from ldm_patched.modules.errors import NotFinite

Conditions = Iterable[Sequence[Any]]
"""[[context, options], …]"""

Additions = dict[str, list[Tensor | None]]
"""What the UNet adds, by "input", "middle" and "output"; the last of a list for the next block."""

PIXELS = 8
"""Pixels of a picture for each of the latents, along a side."""


class ControlBase:
    """A picture, how strongly and when it counts, and the control before it in a chain."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """name: of the weight file, for messages. device: where it computes."""
        self.name, self.device = name, torch.device(device)
        self.strength = 1.0
        self.start_percent, self.end_percent = 0.0, 1.0
        self.softness = 0.0
        self.positive_only = False
        self.cond_hint: Tensor | None = None
        self.previous: ControlBase | None = None
        self._forget_run()

    def _forget_run(self) -> None:
        self._window = (math.inf, 0.0)
        self._model: Any = None
        self._dtype = torch.float32
        self._checked = False
        self._picked: dict[str, tuple[Tensor, tuple[int, ...], Tensor]] = {}

    def copy(self) -> Self:
        """Another with the same network and settings, for another picture."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._forget_run()
        return other

    def set_cond_hint(
        self,
        hint: Tensor,
        strength: float = 1.0,
        timestep_percent_range: tuple[float, float] = (0.0, 1.0),
        *,
        softness: float = 0.0,
        positive_only: bool = False,
    ) -> Self:
        """The picture, (1 or B, C, H, W) in 0..1 at any size, and how it counts; gives itself.

        strength: 0 not at all, 1 as trained. timestep_percent_range: the part of the sampling in
        which it counts. softness: how much less the parts near the picture's full size count, 0
        equally to 1 the first not at all. positive_only: the negative prompt is not controlled.
        """
        self.cond_hint, self.strength = hint, float(strength)
        self.start_percent, self.end_percent = timestep_percent_range
        self.softness, self.positive_only = float(softness), positive_only
        return self

    def set_previous_controlnet(self, previous: "ControlBase | None") -> Self:
        """Put this one after `previous` in a chain; both count."""
        self.previous = previous
        return self

    def chain(self) -> "Iterator[ControlBase]":
        """This one and those before it."""
        control: ControlBase | None = self
        while control is not None:
            yield control
            control = control.previous

    # --- a run -----------------------------------------------------------------------------------

    def check_fits(self, model: Any) -> None:
        """Raises UnsupportedModel if it was made for another family. model: a BaseModel."""

    @property
    def holder(self) -> object:
        """What holds its weights; copies that share them have the same."""
        return self

    def bytes_to_come(self, network: Any, texts: Sequence[Tensor], batch: int) -> int:  # noqa: ARG002
        """Bytes that a run of `network`, a UNetModel, makes this one take on the device.

        texts, batch: as ContextCache.tokens_to_come takes them.
        """
        return 0

    def pre_run(self, model: Any) -> None:
        """Make ready for a run of `model`, a BaseModel with its patches in place."""
        self.check_fits(model)
        self._forget_run()
        self._model = model
        self._dtype = getattr(model, "manual_cast_dtype", None) or model.get_dtype()
        sampling = model.model_sampling
        start, end = self.start_percent, self.end_percent
        self._window = (
            float(sampling.percent_to_sigma(start)) if start > 0.0 else math.inf,
            float(sampling.percent_to_sigma(end)) if end < 1.0 else 0.0,
        )

    def cleanup(self) -> None:
        """Let go of what only a run needs."""
        self._forget_run()

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int
    ) -> Additions | None:
        """What the UNet shall add in this call; None for nothing.

        x_noisy: (B, C, H, W), unscaled; t: sigma, (B,). cond: keywords of the call, its
        transformer_options among them. batched_number: conditions in the batch, B / it samples
        each. Raises CorruptModelFile if its weights hold invalid numbers, NotFinite if it makes
        some, ValueError without a picture or before pre_run.
        """
        before = None
        if self.previous is not None:
            before = self.previous.get_control(x_noisy, t, cond, batched_number)
        if not self.strength or not self._counts_at(t):
            return before
        if self.cond_hint is None or self._model is None:
            raise ValueError("A control needs a picture and a run; call set_cond_hint and pre_run.")
        rows = self._rows(x_noisy.shape[0], cond, batched_number)
        if not rows:
            return before
        own = self._additions(x_noisy, t, cond, rows)
        self._check(own)
        if len(rows) < x_noisy.shape[0]:
            own = _spread(own, rows, x_noisy.shape[0])
        return merge(before, own)

    def _additions(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Any], rows: tuple[int, ...]
    ) -> Additions:
        """This control's own, of these rows of the batch, with its strength."""
        raise NotImplementedError

    def _counts_at(self, t: Tensor) -> bool:
        start, end = self._window
        if start == math.inf and end == 0.0:
            return True  # without waiting for the device
        return end <= float(t[0]) <= start

    def _rows(self, total: int, cond: Mapping[str, Any], batched: int) -> tuple[int, ...]:
        """The rows of the batch that are controlled."""
        kinds = (cond.get("transformer_options") or {}).get("cond_or_uncond")
        if not self.positive_only or kinds is None:
            return tuple(range(total))
        each = total // batched
        return tuple(
            part * each + row
            for part, kind in enumerate(kinds)
            if kind == COND
            for row in range(each)
        )

    def _pick(self, name: str, tensor: Tensor, rows: tuple[int, ...]) -> Tensor:
        """These rows of `tensor`; the same object for the same one, which saves work further on."""
        if len(rows) == tensor.shape[0]:
            return tensor
        kept = self._picked.get(name)
        if kept is None or kept[0] is not tensor or kept[1] != rows:
            with torch.inference_mode(False), torch.no_grad():
                kept = tensor, rows, tensor[as_index(rows)]
            self._picked[name] = kept
        return kept[2]

    def _is_sound(self) -> bool:
        """Whether every weight of its file is a finite number."""
        return True

    def _check(self, additions: Additions) -> None:
        """Once a run, since it waits for the device."""
        if self._checked:
            return
        sums = [t.float().sum() for ts in additions.values() for t in ts if t is not None]
        if not bool(torch.stack(sums).isfinite().all()):
            if not self._is_sound():
                raise utils.not_numbers(self.name, "network")
            raise NotFinite(
                f"{self.name} gave invalid numbers for this picture; choose another control file."
            )
        self._checked = True

    def _hint_for(self, width: int, height: int, multiple: int = PIXELS) -> Tensor:
        """The picture at (height, width) pixels, sides rounded up to multiples of `multiple`."""
        if self.cond_hint is None:
            raise ValueError("A control needs a picture; call set_cond_hint.")
        up = [math.ceil(side / multiple) * multiple for side in (height, width)]
        return fit_hint(self.cond_hint, up[0], up[1])

    def _hint_rows(self, made: Tensor, rows: tuple[int, ...], batched: int, total: int) -> Tensor:
        """What was made of the pictures, one row for each of `rows`; one alone serves all."""
        if made.shape[0] == 1:
            return made
        each = total // batched
        return repeat_to_batch_size(made, each)[as_index([row % each for row in rows])]


def as_index(rows: Sequence[int]) -> slice | list[int]:
    """What picks these rows, at least one: a slice if they follow one another, since a list has to
    be sent to the device and waits for it."""
    first, stop = rows[0], rows[-1] + 1
    return slice(first, stop) if list(rows) == list(range(first, stop)) else list(rows)


def fit_hint(hint: Tensor, height: int, width: int) -> Tensor:
    """hint (B, C, H, W) in 0..1 → (B, C, height, width): the middle of it, scaled to fill that."""
    if hint.shape[-2:] == (height, width):
        return hint
    scale = max(height / hint.shape[-2], width / hint.shape[-1])
    size = [max(1, round(side / scale)) for side in (height, width)]
    top, left = ((a - b) // 2 for a, b in zip(hint.shape[-2:], size, strict=True))
    top, left = max(top, 0), max(left, 0)
    middle = hint[..., top : top + size[0], left : left + size[1]]
    resized = F.interpolate(
        middle.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.clamp(0.0, 1.0)


def merge(first: Additions | None, second: Additions) -> Additions:
    """The sums of two controls' additions; lists are of one UNet, so as long where both have any.

    Raises ValueError if they are not.
    """
    if first is None:
        return second
    merged = dict(first)
    for name, tensors in second.items():
        mine = merged.get(name)
        if not mine:
            merged[name] = tensors
            continue
        pairs = zip(mine, tensors, strict=True)
        merged[name] = [b if a is None else a if b is None else a + b for a, b in pairs]
    return merged


def _spread(additions: Additions, rows: Sequence[int], total: int) -> Additions:
    """Additions of `rows` alone → of the whole batch, nothing for the others."""

    def one(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        whole = tensor.new_zeros(total, *tensor.shape[1:])
        whole[as_index(rows)] = tensor
        return whole

    return {name: [one(t) for t in tensors] for name, tensors in additions.items()}


def control_bytes(
    positive: Conditions, negative: Conditions, network: Any, batch: int, *, is_guided: bool
) -> int:
    """Bytes that the controls of a run's conditions come to take on the device.

    network: the UNetModel that runs; batch: pictures of the run; is_guided: whether the negative
    conditions are evaluated, too.
    """
    found: dict[int, tuple[ControlBase, dict[int, Tensor]]] = {}
    for conditions, is_negative in ((positive, False), (negative, True)):
        for text, options in conditions:
            for control in _chain(options.get("control")):
                if not control.strength:
                    continue
                _, texts = found.setdefault(id(control.holder), (control, {}))
                if not is_negative or (is_guided and not control.positive_only):
                    texts[id(text)] = text
    return sum(
        control.bytes_to_come(network, list(texts.values()), batch)
        for control, texts in found.values()
    )


@contextmanager
def controls_in_place(model: Any, conditions: Conditions, interrupt: Any = None) -> Iterator[None]:
    """With the controls of `conditions` ready to be asked, each once; put away at the end.

    model: a BaseModel with its patches in it;
    interrupt: called before each is made ready, may raise.
    """
    found: dict[int, ControlBase] = {}
    for _, options in conditions:
        for control in _chain(options.get("control")):
            found[id(control)] = control
    try:
        for control in found.values():
            if callable(interrupt):
                interrupt()
            control.pre_run(model)
        yield
    finally:
        for control in found.values():
            control.cleanup()


def _chain(control: Any) -> Iterable[ControlBase]:
    return control.chain() if isinstance(control, ControlBase) else ()
