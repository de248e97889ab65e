"""The one account of a device's memory: who is there, who may be sent away, who streams.

Each network's `Residence` asks its budget before it computes. What was used longest ago leaves
first. A network that does not fit even alone comes block by block, if it is made of blocks.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ldm_patched.ldm.modules.attention_kernels import attention_way
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.weight_stream import Transfer, transfer_to

logger = logging.getLogger(__name__)

RESERVE = 256 * 2**20
"""Bytes never planned for: work space of libraries, and what fragmentation wastes."""


@dataclass(frozen=True, slots=True)
class Occupant:
    """One line of the account. state: "loaded", "streaming" or "waiting"."""

    name: str
    state: str
    size: int
    device_bytes: int


class MemoryBudget:
    """Of one device."""

    def __init__(
        self,
        mode: str,
        probe: Callable[[], int],
        *,
        transfer: Callable[[torch.device], Transfer | None] = transfer_to,
        reserve: int = RESERVE,
    ) -> None:
        """mode: see DevicePolicy.vram. probe: bytes that can be allocated on the device now.

        transfer: the way to a device; tests put their own here.
        """
        self.mode = mode
        self.free_bytes = probe
        self.transfer_to = transfer
        self.is_sparing = False
        """Whether everything takes as little as it can, after memory ran out."""
        self._reserve = reserve
        self._last_used: weakref.WeakKeyDictionary[Residence, int] = weakref.WeakKeyDictionary()
        self._clock = 0

    def admit(self, residence: Residence, working: int = 0, kept: int = 0) -> None:
        """Bring a network to the device and leave that much free beside it, if possible.

        working, kept: bytes, see Residence.enter.

        Raises torch.OutOfMemoryError if not even sending everybody else away and streaming gives
        enough; the network is on the host then, and usable again when there is room.
        """
        self._clock += 1
        self._last_used[residence] = self._clock
        needed = residence.size - residence.device_bytes + working + kept + self._reserve
        self.make_room(needed, keep=residence)
        streams = residence.can_stream and self._must_stream(needed)
        try:
            residence.load(self._allowance(residence, working, kept) if streams else None)
        except torch.OutOfMemoryError:
            if self.mode == "always":
                raise
            self.make_room(None, keep=residence)
            self._load_again(residence, working, kept)
        if residence.is_streaming:
            logger.info(
                "%s streams: %d of %d MB are on the device",
                _name(residence),
                residence.device_bytes >> 20,
                residence.size >> 20,
            )

    def _load_again(self, residence: Residence, working: int, kept: int) -> None:
        """After a failure: as much as there seems to be room for, and then as little as can be."""
        if not residence.can_stream:
            residence.load()
            return
        try:
            residence.load(self._allowance(residence, working, kept))
        except torch.OutOfMemoryError:
            residence.load(0)

    def working_bytes(self) -> int:
        """What computing may use now; none while sparing, so that everything is done in parts."""
        return 0 if self.is_sparing else max(0, self.free_bytes() - self._reserve // 2)

    def make_room(self, needed: int | None, keep: Residence | None = None) -> None:
        """Send away who was used longest ago until `needed` bytes are free; None: all who may go.

        In the modes "low" and "no" all go who are not computing; in "always" only for None.
        """
        if self.mode == "always" and needed is not None:
            return
        everybody = needed is None or self.mode in ("low", "no")
        for other in sorted(self._last_used, key=self._last_used.__getitem__):
            if not everybody and self.free_bytes() >= needed:
                return
            if other is not keep and not other.is_busy:
                other.offload()

    def _must_stream(self, needed: int) -> bool:
        if self.mode in ("always", "high") and not self.is_sparing:
            return False
        return self.mode == "no" or self.is_sparing or self.free_bytes() < needed

    def _allowance(self, residence: Residence, working: int, kept: int) -> int:
        if self.mode == "no" or self.is_sparing:
            return 0
        # Twice the work space: both conditions in one call, since each call streams anew.
        free = self.free_bytes() + residence.device_bytes
        return max(0, free - 2 * working - kept - self._reserve)

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Take as little as possible inside: blocks stream, pictures and attention go in parts."""
        before, self.is_sparing = self.is_sparing, True
        try:
            with attention_way("split"):
                yield
        finally:
            self.is_sparing = before

    def account(self) -> list[Occupant]:
        """Who is known, the one used last at the end."""
        lines = []
        for residence in sorted(self._last_used, key=self._last_used.__getitem__):
            here = residence.device_bytes
            state = "streaming" if residence.is_streaming else "loaded" if here else "waiting"
            lines.append(Occupant(_name(residence), state, residence.size, here))
        return lines


def _name(residence: Residence) -> str:
    return type(residence.model).__name__
