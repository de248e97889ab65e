"""How much memory a picture took, asked of the system."""

import sys

import numpy as np
import pytest
import torch

from modules.worker.memory_peak import MemoryPeak
from tests.modules.worker.test_prompts import paint

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
MB = 10**6


@linux
def test_the_peak_is_of_what_was_since_the_start():
    peak = MemoryPeak(CPU)
    assert peak.bytes() is None
    np.ones(200 * MB, np.uint8).sum()  # gone again
    peak.start()
    before = peak.bytes()
    np.ones(100 * MB, np.uint8).sum()
    grown = peak.bytes() - before
    assert 90 * MB < grown < 150 * MB
    peak.start()
    assert peak.bytes() < before + 50 * MB


def test_where_nobody_can_tell_nothing_is_said(tmp_path):
    nowhere = MemoryPeak(CPU, tmp_path / "no proc here")
    nowhere.start()
    assert nowhere.bytes() is None
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("Name:\tpython\n")
    silent = MemoryPeak(CPU, tmp_path)
    silent.start()
    assert silent.bytes() is None
    (tmp_path / "status").write_text("VmPeak:\t9 kB\nVmHWM:\t    7 kB\n")
    assert silent.bytes() == 7 * 1024
    apple = MemoryPeak(torch.device("mps"))
    apple.start()
    assert apple.bytes() is None


@linux
def test_it_is_kept_with_the_picture(studio):
    task = paint(studio, steps=1)
    assert 10 * MB < task.commits[0]["peak"] < 100_000 * MB
