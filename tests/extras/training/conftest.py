"""What the trainer's tests share."""

import signal
from collections.abc import Iterator

import pytest
import torch

from extras.training import stage_vae


@pytest.fixture(autouse=True)
def _keep_torch_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="module")
def few_pieces_to_start_from() -> Iterator[None]:
    """For tests to which it does not matter where an autoencoder begins; the fit to it would take
    the most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_vae, "_START_PIECES", 4)
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl+C as in a shell's foreground: what is started in the background ignores it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old or signal.default_int_handler)
