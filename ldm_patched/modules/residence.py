"""Where a network's weights are: waiting on the host, on the device, or coming block by block.

On the host they are the loaded file's own memory. A weight that goes to the device leaves that
tensor behind it, so coming back costs nothing and is exact. Parameters stay the same objects
throughout; only their `data` changes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm_patched.modules.model_base import set_weight
from ldm_patched.modules.weight_stream import StreamUnit, Transfer, WeightStreamer, plan_stream

if TYPE_CHECKING:
    from ldm_patched.modules.memory_budget import MemoryBudget

logger = logging.getLogger(__name__)


class Residence:
    """Of one network, shared by all clones of its patcher."""

    def __init__(
        self,
        model: nn.Module,
        transfer: Transfer | None = None,
        *,
        keeps_host: bool = True,
        budget: "MemoryBudget | None" = None,
    ) -> None:
        """transfer: to the device it computes on; None: it stays where it is.

        keeps_host: leave the host's tensors alive while the weights are on the device. budget:
        who decides how much may be there; None: all of it.
        """
        self.model = model
        self.transfer = transfer
        self.budget = budget
        self.is_busy = False
        """In the middle of a run: it must not be sent away."""
        self._keeps_host = keeps_host
        self._hosts: dict[Tensor, Tensor] = {}
        self._streamer: WeightStreamer | None = None

    # --- questions -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the weights and buffers."""
        return sum(t.nbytes for t in self._tensors())

    @property
    def device_bytes(self) -> int:
        """Bytes of the weights that are on the device now, space for coming blocks included."""
        if self.transfer is None:
            return 0
        here = sum(t.nbytes for t in self._tensors() if self.transfer.is_here(t.data))
        return here + (self._streamer.buffer_bytes if self._streamer else 0)

    @property
    def is_streaming(self) -> bool:
        """Whether some blocks come just before they compute and leave after it."""
        return self._streamer is not None

    @property
    def can_stream(self) -> bool:
        """Whether it is made of blocks that can come one by one."""
        return self.transfer is not None and any(
            getattr(module, "streams_as_one", False) for module in self.model.modules()
        )

    def _tensors(self) -> Iterator[Tensor]:
        return _tensors_of(self.model)

    # --- coming and going ------------------------------------------------------------------------

    def enter(self, working: int = 0, kept: int = 0) -> None:
        """Be ready to compute, with bytes free beside the weights if there is a budget.

        working: what a call for one condition takes; kept: what comes to stay meanwhile.
        Raises torch.OutOfMemoryError, and is on the host then.
        """
        if self.transfer is None:
            return
        if self.budget is not None:
            self.budget.admit(self, working, kept)
        else:
            self.load()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Not to be sent away inside."""
        before, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = before

    def load(self, allowance: int | None = None) -> None:
        """Go to the device: all of it, or so that the weights take no more than `allowance` bytes.

        With an allowance the rest comes block by block; one that is too small for any block is
        exceeded by as little as possible. Raises what the allocation raises; the weights are back
        on the host then.
        """
        if self.transfer is None:
            return
        units = [] if allowance is None else plan_stream(self.model, allowance, self.transfer)
        if units and self._is_right(allowance):
            units = self._streamer.units
        try:
            if units != (self._streamer.units if self._streamer else []):
                self._stop_streaming()
                self._send_back(units)
            streamed = {id(owner._parameters[leaf]) for u in units for owner, leaf in u.weights}
            for tensor in self._tensors():
                if id(tensor) not in streamed:
                    self._bring(tensor)
            if units and self._streamer is None:
                self._streamer = WeightStreamer(units, self.transfer)
        except BaseException:
            self.offload()
            raise

    def offload(self) -> None:
        """Wait on the host."""
        self._stop_streaming()
        if self.transfer is None:
            return
        self.retire_all(self.model)
        for module in self.model.modules():  # keys and values of texts are there, too
            if callable(forget := getattr(module, "clear_cache", None)):
                forget()

    def retire_all(self, module: object) -> None:
        """Take what a module has off the device; nothing for what is no module."""
        if isinstance(module, nn.Module):
            for tensor in _tensors_of(module):
                self.retire(tensor)

    def retire(self, tensor: Tensor) -> None:
        """Take one parameter or buffer off the device, in the network or set aside."""
        if self.transfer is None or not self.transfer.is_here(tensor.data):
            return
        host = self._hosts.pop(tensor, None)
        with torch.inference_mode(False):
            tensor.data = self.transfer.to_host(tensor.data) if host is None else host

    def replace(self, name: str, weight: Tensor, *, keeps_old: bool) -> None:
        """Put `weight` in the place with the dotted `name`, and on the side where that one is.

        keeps_old: the one before will be put back some day, so it waits on the host; otherwise it
        is emptied, since caches that recognise weights may hold on to the object.
        """
        old = _tensor_at(self.model, name)
        if old is weight:  # in its place since an attempt that failed later on
            return
        was_here = self.transfer is not None and self.transfer.is_here(old.data)
        set_weight(self.model, name, weight)
        if keeps_old:
            self.retire(old)
            if self.transfer is not None:
                with torch.inference_mode(False):
                    old.data = self.transfer.unpin(old.data)  # locked memory is for what moves
        else:
            self._hosts.pop(old, None)
            with torch.inference_mode(False):
                old.data = torch.empty(0, dtype=old.dtype, device=old.device)
        if self.transfer is None:
            return
        new = _tensor_at(self.model, name)
        if was_here:
            self._bring(new)
            return
        self.retire(new)
        if self._streamer is not None:
            self._streamer.forget_ahead()

    def on_device(self, tensor: Tensor) -> Tensor:
        """The tensor's numbers where the network computes; a copy if they are on the host."""
        if self.transfer is None or self.transfer.is_here(tensor.data):
            return tensor.detach()
        return self.transfer.to_device(tensor.detach())

    def _bring(self, tensor: Tensor) -> None:
        if self.transfer.is_here(tensor.data):
            return
        host = tensor.data
        with torch.inference_mode(False):
            tensor.data = self.transfer.to_device(host)
        if self._keeps_host:
            self._hosts[tensor] = host

    def _is_right(self, allowance: int) -> bool:
        """Whether it streams already, and well enough to be left alone."""
        return self._streamer is not None and 0.8 * allowance <= self.device_bytes <= allowance

    def _send_back(self, units: list[StreamUnit]) -> None:
        for unit in units:
            for owner, leaf in unit.weights:
                self.retire(owner._parameters[leaf])

    def _stop_streaming(self) -> None:
        if self._streamer is not None:
            self._streamer.close()
            self._streamer = None


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _tensor_at(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer with the dotted name."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    found = owner._parameters.get(leaf)
    return owner._buffers[leaf] if found is None else found
