"""An accelerator that is not there: tensors on it are counted by their storages.

Host and device are both in the memory of the CPU, or both on "meta", where tensors have shapes
but no numbers. `counting` also counts what is computed in its block, as activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm_patched.modules.weight_stream import Transfer, _Slot


class CountingTransfer(Transfer):
    """To a device of `capacity` bytes. copies: units copied into slots, in order."""

    def __init__(self, capacity: int = 2**62, *, copies_ahead: bool = True) -> None:
        super().__init__("cpu")
        self.capacity = capacity
        self.copies_ahead = copies_ahead
        self.peak = 0
        self.sent_bytes = 0
        self.copies: list[torch.nn.Module] = []
        self._weights = _Storages()
        self._computed = _Storages()  # apart: there are few at a time, and they change often

    def __call__(self, _: torch.device) -> "CountingTransfer":
        """As the `transfer` of a MemoryBudget: every network is sent here."""
        return self

    @property
    def used(self) -> int:
        """Bytes on the device now."""
        return self._weights.total() + self._computed.total()

    def free(self) -> int:
        """As the probe of a MemoryBudget."""
        return max(0, self.capacity - self.used)

    def count(self, tensor: Tensor) -> Tensor:
        """Let the tensor's storage be on the device. Raises OutOfMemoryError beyond capacity."""
        return self._count(tensor, self._weights)

    def count_computed(self, tensor: Tensor) -> Tensor:
        """The same of a tensor that is no weight."""
        return tensor if self.is_here(tensor) else self._count(tensor, self._computed)

    def _count(self, tensor: Tensor, storages: "_Storages") -> Tensor:
        if storages.add(tensor):
            used = self._weights.sum + self._computed.total()
            if used > self.peak:  # if so even without what is gone since it was counted
                used = self.used
                if used > self.capacity:
                    storages.remove(tensor)
                    raise torch.OutOfMemoryError(f"{used} bytes of {self.capacity}")
                self.peak = max(self.peak, used)
        return tensor

    def is_here(self, tensor: Tensor) -> bool:
        return self._weights.holds(tensor)

    def to_device(self, tensor: Tensor) -> Tensor:
        self.sent_bytes += tensor.nbytes
        return self.count(tensor.clone(memory_format=torch.preserve_format))

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.preserve_format)

    def buffer(self, size: int) -> Tensor:
        where = "meta" if self.is_meta else "cpu"
        # full of what no weight is, so that a slot read too early shows
        return self.count(torch.full((size,), 255, dtype=torch.uint8, device=where))

    is_meta = False

    def copy(self, slot: _Slot, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.copies.append(slot.unit.module)
        self.sent_bytes += sum(source.nbytes for _, source in pairs)
        super().copy(slot, pairs)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count every tensor that is made inside."""
        with _CountMode(self):
            yield


class _CountMode(TorchDispatchMode):
    def __init__(self, transfer: CountingTransfer) -> None:
        super().__init__()
        self.transfer = transfer

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002
        out = function(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.transfer.count_computed(tensor)
        return out


class _Storages:
    """Living storages and their bytes."""

    def __init__(self) -> None:
        self.sum = 0
        """Bytes when they were last counted, and of what came since."""
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, tensor: Tensor) -> bool:
        """Whether it is new."""
        if self.holds(tensor):
            return False
        storage = tensor.untyped_storage()
        self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.sum += storage.nbytes()
        return True

    def holds(self, tensor: Tensor) -> bool:
        entry = self._living.get(tensor.untyped_storage()._cdata)
        return entry is not None and not entry[0].expired()

    def remove(self, tensor: Tensor) -> None:
        del self._living[tensor.untyped_storage()._cdata]

    def total(self) -> int:
        """Count anew."""
        living = [(key, entry) for key, entry in self._living.items() if not entry[0].expired()]
        self._living = dict(living)
        self.sum = sum(size for _, (_, size) in living)
        return self.sum
