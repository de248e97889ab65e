"""From whatever was raised to the code and the sentence that a viewer gets.

Out of memory has many faces: Python's MemoryError, torch's OutOfMemoryError, and on the CPU a
plain RuntimeError of the allocator; all become E_OOM. Anything unknown becomes E_INTERNAL; the
caller logs it in full.
"""

from typing import NamedTuple

from ldm_patched.modules import errors as engine
from modules.spec.errors import OutOfMemory, StudioError

_DEVICE_LOST_WORDS = ("CUDA error", "device-side assert", "CUDNN_STATUS", "HIP error", "XPU error")
_NO_KERNEL_WORDS = ("no kernel image is available", "invalid device function")
INTERNAL_SENTENCE = (
    "Something went wrong inside Easel; the log says more. Try again, and report it if it stays."
)


class Failure(NamedTuple):
    """A stable code and one sentence with a remedy."""

    code: str
    message: str


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or in the computer."""
    return isinstance(error, OutOfMemory) or engine.is_out_of_memory(error)


def is_device_lost(error: BaseException) -> bool:
    """Whether the accelerator's context is unusable from now on: only a new process helps."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return any(words in str(error) for words in _DEVICE_LOST_WORDS)


def failure_of(error: BaseException) -> Failure:
    """What to tell about `error`. Typed errors carry their own sentence."""
    if isinstance(error, StudioError | engine.EngineError):
        return Failure(error.code, str(error))
    if is_out_of_memory(error):
        return Failure(
            OutOfMemory.code,
            "There was not enough memory to paint this; choose a smaller size, close other "
            "programs, or start Easel with --low-vram.",
        )
    if is_device_lost(error):
        if any(words in str(error) for words in _NO_KERNEL_WORDS):
            return Failure(
                StudioError.code,
                "The PyTorch that is installed cannot compute on this graphics device; start "
                "Easel with --always-cpu, or install a PyTorch made for the device.",
            )
        return Failure(
            StudioError.code,
            "The graphics device stopped working and is being restarted; generate again, and "
            "update its driver if this comes back.",
        )
    return Failure(StudioError.code, INTERNAL_SENTENCE)
