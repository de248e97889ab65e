"""The most memory that one picture took, as far as the system tells it exactly.

On a graphics card what PyTorch had allocated there; on a CPU under Linux the largest resident
size of this process. Elsewhere the highest value cannot be set back, so nothing is known.
"""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # what proc(5) calls resetting the peak resident set size
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class MemoryPeak:
    """Begins anew with start(); bytes() is the peak since then."""

    def __init__(self, device: "torch.device", process: Path = _PROCESS) -> None:
        self._device, self._process = device, process
        self._is_running = False

    def start(self) -> None:
        """Forget what was before. Never raises."""
        self._is_running = False
        with contextlib.suppress(OSError, RuntimeError):
            if (card := self._card()) is not None:
                card.reset_peak_memory_stats(self._device)
                self._is_running = True
            elif self._device.type == "cpu":
                (self._process / "clear_refs").write_text(_RESET_PEAK, "ascii")
                self._is_running = True

    def bytes(self) -> int | None:
        """The most that was in use since start(); None where nobody can tell. Never raises."""
        if not self._is_running:
            return None
        try:
            if (card := self._card()) is not None:
                return int(card.max_memory_allocated(self._device))
            found = _HIGH_WATER.search((self._process / "status").read_text("ascii", "replace"))
        except (OSError, RuntimeError):
            return None
        return int(found[1]) * 1024 if found else None

    def _card(self) -> Any:
        """PyTorch's module for the device, where it counts peaks."""
        import torch

        return {"cuda": torch.cuda, "xpu": torch.xpu}.get(self._device.type)
