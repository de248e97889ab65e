"""The groups of a source one after the other, drawn by worker processes."""

import atexit
import signal
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from extras.training.interrupts import ENDINGS, no_interrupts
from extras.training.pages import GroupSource, PageGroup


class _Groups(Dataset):
    def __init__(self, source: GroupSource) -> None:
        self.source = source

    def __getitem__(self, number: int) -> PageGroup:
        return self.source.draw_group(number)


def _start_worker(_number: int) -> None:
    for number in ENDINGS:  # PyTorch has its own handler by now, and not every system inherits
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


_drawing: WeakSet[Any] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """Tell all workers to end, before multiprocessing would: it sends SIGTERM, and waits."""
    for groups in list(_drawing):
        groups._shutdown_workers()


def draw_groups(source: GroupSource, first: int, workers: int) -> Iterator[PageGroup]:
    """Groups first, first + 1, … without end, drawn by `workers` processes (0: in this one)."""
    if not workers:
        number = first
        while True:
            yield source.draw_group(number)
            number += 1
    loader = DataLoader(
        _Groups(source),
        batch_size=None,
        sampler=range(first, 2**62),
        num_workers=workers,
        prefetch_factor=4,
        multiprocessing_context="spawn",  # a fork would copy the locks of this process's threads
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else a run's own numbers would depend on where it began
    )
    with no_interrupts():  # from their first moment on: they are for the run, which ends its step
        groups = iter(loader)
    _drawing.add(groups)
    yield from groups
