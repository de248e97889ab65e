"""Blocks of a network whose weights come to the device just before they compute, and leave after.

A `Transfer` is the way to one device. A block's weights are copied from the host into a slot, a
buffer as large as the largest block; where copies run beside computation (CUDA) there are two
slots, and the next block comes on a side stream while this one computes. Slots are reused, never
allocated anew, and a slot is written to only after the block in it has finished: so the device
holds two blocks at most however far the host runs ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_ALIGNMENT = 256  # bytes; what tensor kernels like best
SMALL_UNIT = 4 * 2**20
"""Bytes; smaller ones always stay on the device, for the time of a copy is not worth theirs."""


def pinned(tensor: Tensor) -> Tensor:
    """A tensor on the host in memory that CUDA copies from by itself, itself if there is none."""
    if tensor.is_pinned():
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError:  # no more memory may be locked; copies are slower then
        return tensor


class Transfer:
    """How tensors reach one device and come back, and how copies run beside computation."""

    copies_ahead = False
    """Whether the next block is fetched while one computes."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def is_here(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the device."""
        found, mine = tensor.device, self.device
        return found.type == mine.type and (mine.index or 0) == (found.index or 0)

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu")

    def pin(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory that copies best, itself where there is no such."""
        return tensor

    def unpin(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory of the common kind, for one that is not to be copied."""
        return tensor

    def buffer(self, size: int) -> Tensor:
        """So many bytes on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(  # a slot matters to devices that copy beside computation
        self,
        slot: "_Slot",  # noqa: ARG002
        pairs: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Copy (to, from) pairs into a slot, once what computes with it has finished."""
        for to, source in pairs:
            to.copy_(source)

    def before_use(self, slot: "_Slot") -> None:
        """Let computation wait for the slot's copy."""

    def after_use(self, slot: "_Slot") -> None:
        """Mark that all computation with the slot has been issued."""

    def close(self) -> None:
        """Wait for copies under way."""


class CudaTransfer(Transfer):
    """To a CUDA device, with copies on a stream of their own."""

    copies_ahead = True

    def __init__(self, device: torch.device | str) -> None:
        super().__init__(device)
        self._stream: torch.cuda.Stream | None = None

    def pin(self, tensor: Tensor) -> Tensor:
        return pinned(tensor)

    def unpin(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.is_pinned() else tensor

    def copy(self, slot: "_Slot", pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        if slot.used is not None:
            self._stream.wait_event(slot.used)
        with torch.cuda.stream(self._stream):
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
            slot.ready = self._stream.record_event()

    def before_use(self, slot: "_Slot") -> None:
        torch.cuda.current_stream(self.device).wait_event(slot.ready)

    def after_use(self, slot: "_Slot") -> None:
        slot.used = torch.cuda.current_stream(self.device).record_event()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def transfer_to(device: torch.device | str) -> Transfer | None:
    """The way from the host to `device`; None if that is the host."""
    device = torch.device(device)
    if device.type == "cpu":
        return None
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)


# --- What comes together --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StreamUnit:
    """A module and the places of all weights under it, which are there while it computes."""

    module: nn.Module
    weights: tuple[tuple[nn.Module, str], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamUnit) and other.module is self.module

    def __hash__(self) -> int:
        return id(self.module)

    @property
    def is_whole(self) -> bool:
        """Whether no weight under its module comes for itself, while this unit computes."""
        mine = {id(owner._parameters[leaf]) for owner, leaf in self.weights}
        return all(id(weight) in mine for weight in self.module.parameters())

    @property
    def size(self) -> int:
        """Bytes in a slot."""
        return sum(_aligned(owner._parameters[leaf].nbytes) for owner, leaf in self.weights)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def stream_units(model: nn.Module) -> list[StreamUnit]:
    """What can come apart, in the order of the network: modules that say `streams_as_one`, and
    every other module with weights of its own."""
    units: list[StreamUnit] = []

    def walk(module: nn.Module) -> None:
        whole = getattr(module, "streams_as_one", False)
        inside = module.modules() if whole else (module,)
        places = [(m, leaf) for m in inside for leaf, p in m._parameters.items() if p is not None]
        if places:
            units.append(StreamUnit(module, tuple(places)))
        if not whole:
            for child in module.children():
                walk(child)

    walk(model)
    return units


def plan_stream(model: nn.Module, allowance: int, transfer: Transfer) -> list[StreamUnit]:
    """The units that have to stream so that the weights take at most `allowance` bytes.

    Slots count, and so do buffers. What stays is spread evenly over the network, so that each
    block that comes has others to hide its copy behind. Empty if all of it fits.
    """
    units = stream_units(model)
    buffers = sum(b.nbytes for b in model.buffers())
    if buffers + sum(unit.size for unit in units) <= allowance:
        return []
    able = [unit for unit in units if unit.is_whole]
    large = [unit for unit in able if unit.size >= SMALL_UNIT] or able
    small = sum(unit.size for unit in units) - sum(unit.size for unit in large)
    slots = max(unit.size for unit in large) * (2 if transfer.copies_ahead else 1)
    share = max(0, allowance - buffers - small - slots) / sum(unit.size for unit in large)
    streamed, owed = [], 0.0
    for unit in large:
        owed += share * unit.size
        if owed >= unit.size:
            owed -= unit.size
        else:
            streamed.append(unit)
    return streamed


# --- The stream -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Slot:
    buffer: Tensor
    unit: StreamUnit | None = None
    hosts: list[Tensor] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)
    is_used: bool = False
    ready: Any = None  # events of the device
    used: Any = None


class WeightStreamer:
    """Hooks on modules that fetch their weights before they compute and drop them after."""

    def __init__(self, units: Sequence[StreamUnit], transfer: Transfer) -> None:
        """The units' weights are on the host. Raises what allocating the slots raises."""
        self.units = list(units)
        self._transfer = transfer
        self._number = {unit: i for i, unit in enumerate(self.units)}
        size = max(unit.size for unit in units)
        with torch.inference_mode(False):
            count = min(2 if transfer.copies_ahead else 1, len(self.units))
            self._slots = [_Slot(transfer.buffer(size)) for _ in range(count)]
        for slot in self._slots:  # whose memory may be that of something still computing
            transfer.after_use(slot)
        # Pinned when it is first fetched: a merge may put others in the weights' places before.
        self._pinned: set[StreamUnit] = set()
        self._handles: list[Any] = []
        for unit in self.units:
            self._handles += [
                unit.module.register_forward_pre_hook(lambda *_, unit=unit: self._before(unit)),
                # always: a block that an error ends gives its weights back, too
                unit.module.register_forward_hook(
                    lambda *_, unit=unit: self._after(unit), always_call=True
                ),
            ]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the slots."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    def forget_ahead(self) -> None:
        """What was fetched ahead is of weights that have changed since."""
        self._pinned.clear()
        for slot in self._slots:
            if not slot.is_used:
                slot.unit = None

    def close(self) -> None:
        """Take the hooks off and free the slots. The weights are on the host."""
        for handle in self._handles:
            handle.remove()
        for slot in self._slots:
            if slot.is_used:
                self._give_back(slot)
        self._transfer.close()
        self._slots.clear()

    def _pin(self, unit: StreamUnit) -> None:
        if unit not in self._pinned:
            for owner, leaf in unit.weights:
                weight = owner._parameters[leaf]
                weight.data = self._transfer.pin(weight.data)
            self._pinned.add(unit)

    def _fetch(self, unit: StreamUnit) -> _Slot:
        """Begin to copy a unit into a slot that nobody computes with."""
        slot = next((s for s in self._slots if s.unit is unit), None)
        if slot is not None:
            return slot
        self._pin(unit)
        slot = next(s for s in self._slots if not s.is_used)
        slot.unit, start = unit, 0
        slot.hosts = [owner._parameters[leaf].data for owner, leaf in unit.weights]
        slot.views = []
        for host in slot.hosts:
            flat = slot.buffer[start : start + host.nbytes].view(host.dtype)
            slot.views.append(flat.as_strided(host.shape, host.stride()))
            start += _aligned(host.nbytes)
        self._transfer.copy(slot, list(zip(slot.views, slot.hosts, strict=True)))
        return slot

    def _before(self, unit: StreamUnit) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for slot in self._slots:  # of a block that something worse than an error ended
                if slot.is_used:
                    self._give_back(slot)
            slot = self._fetch(unit)
            self._transfer.before_use(slot)
            slot.is_used = True
            for (owner, leaf), view in zip(unit.weights, slot.views, strict=True):
                owner._parameters[leaf].data = view
            if len(self._slots) > 1:
                self._fetch(self.units[(self._number[unit] + 1) % len(self.units)])

    def _after(self, unit: StreamUnit) -> None:
        slot = next((s for s in self._slots if s.unit is unit and s.is_used), None)
        if slot is not None:
            self._give_back(slot)
            self._transfer.after_use(slot)

    def _give_back(self, slot: _Slot) -> None:
        with torch.inference_mode(False):
            for (owner, leaf), host in zip(slot.unit.weights, slot.hosts, strict=True):
                owner._parameters[leaf].data = host
        slot.is_used = False
        if not self._transfer.copies_ahead:
            slot.unit = None
