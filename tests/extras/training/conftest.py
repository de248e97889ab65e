"""What the trainer's tests share."""

import signal
from collections.abc import Iterator

import pytest
import torch

from extras.training import stage_vae
from extras.training.interrupts import ENDINGS


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
    """All of ENDINGS raise, as Ctrl+C does: one that nobody looks after fails its test alone."""
    old = {number: signal.signal(number, signal.default_int_handler) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)
