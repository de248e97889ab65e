"""How long a task still takes, and its live preview. Both stay off the sampler's path.

The clock measures; the previewer hands a small array to a thread that makes a JPEG of it, and
drops a frame rather than wait for the one before.
"""

import io
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from modules.tasks.events import Preview

PREVIEW_SECONDS = 0.25
PREVIEW_SHARE = 1 / 40
"""Of the sampler's time, at most. 3 % are promised; the rest is for the thread beside it."""
_STEPS_REMEMBERED = 20


@dataclass(slots=True)
class StepClock:
    """Seconds left, from the steps measured so far. Times are of `time.monotonic`.

    The first step of all carries the warm-up and is left out, so nothing is foretold before the
    second. What a picture takes besides its steps is measured on the ones before.
    """

    now: Callable[[], float] = time.monotonic
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS_REMEMBERED))
    _is_warm: bool = False
    _rests: list[float] = field(default_factory=list)
    _last: float = 0.0
    _sampled: float | None = None

    def start_image(self) -> None:
        """A picture begins."""
        self._last, self._sampled = self.now(), None

    def step(self) -> None:
        """A step of the current picture ended."""
        now = self.now()
        if self._is_warm:
            self._steps.append(now - self._last)
        self._is_warm, self._last, self._sampled = True, now, now

    def end_image(self) -> None:
        """The current picture is decoded and on its way to the disk."""
        if self._sampled is not None:
            self._rests.append(self.now() - self._sampled)

    def seconds_left(self, steps_left: int, images_left: int, steps_per_image: int) -> float | None:
        """None before the second step.

        steps_left: of the current picture; images_left: after it.
        """
        if not self._steps:
            return None
        step = statistics.median(self._steps)
        rest = statistics.median(self._rests) if self._rests else step
        return step * (steps_left + images_left * steps_per_image) + rest * (1 + images_left)


class Previewer(Protocol):
    """Makes a small picture of latents: ldm_patched.modules.latent_preview.LatentPreviewer."""

    def to_jpeg_ready(self, denoised: Any) -> np.ndarray:
        """uint8 (H, W, 3) of the first of the latents (B, C, H, W)."""


@dataclass(slots=True)
class PreviewPace:
    """When a task's next preview is due: every_seconds after the last, later if that was dear.

    A preview that holds the sampler up for t seconds is followed by none for t / PREVIEW_SHARE.
    So there is one a second as long as t is at most 25 ms; a dearer one comes less often, for
    sampling must not wait for it. A single dear one may have been a warm-up and is answered with
    a second's pause; two in a row are believed.
    """

    every_seconds: float = PREVIEW_SECONDS
    now: Callable[[], float] = time.monotonic
    _due: float = float("-inf")
    _cost_before: float = PREVIEW_SHARE  # seconds: what makes the first pause a second at most

    def is_due(self) -> bool:
        """Whether the next preview may be made."""
        return self.now() >= self._due

    def made(self, began: float) -> None:
        """A preview was made just now; `began`: when the sampler began to wait for it."""
        cost = self.now() - began
        pause = min(cost, self._cost_before) / PREVIEW_SHARE
        self._due, self._cost_before = began + max(self.every_seconds, pause), cost


class LivePreview:
    """Sends a Preview when one is due; at most one is being made at any time."""

    def __init__(
        self, threads: ThreadPoolExecutor, emit: Callable[[Preview], None], pace: PreviewPace
    ) -> None:
        self._threads, self._emit, self._pace = threads, emit, pace
        self._pending: Future[None] | None = None

    def offer(self, previewer: Previewer, denoised: Any) -> bool:
        """A step's prediction (B, C, H, W); True if a preview is made of it."""
        if not self._pace.is_due() or (self._pending is not None and not self._pending.done()):
            return False
        denoised[(0,) * denoised.ndim].item()  # what a GPU still owes the step is no preview's cost
        began = self._pace.now()
        pixels = previewer.to_jpeg_ready(denoised)
        self._pace.made(began)
        self._pending = self._threads.submit(self._send, pixels)
        return True

    def finish(self) -> None:
        """Wait for the preview that is being made: none may come after the picture itself."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None

    def _send(self, pixels: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
        height, width = pixels.shape[:2]
        self._emit(Preview(jpeg=buffer.getvalue(), width=width, height=height))
