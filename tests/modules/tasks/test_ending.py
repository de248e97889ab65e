"""The end of a process: at once, with its words said, whoever still reads them."""

import subprocess
import sys
from pathlib import Path

import pytest

from modules.tasks import ending

ROOT = Path(__file__).parents[3]
LEAVE = "from modules.tasks.ending import leave; "


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_words_are_said_and_nothing_of_the_caller_runs_after_it():
    code = f"import atexit; {LEAVE}atexit.register(print, 'late'); print('said', end=''); leave(3)"
    done = run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "")


@pytest.mark.parametrize("fate", ["sys.stdout.close()", "sys.stdout = None"])
def test_it_ends_though_nobody_reads(fate):
    assert run("-c", f"import sys; {LEAVE}{fate}; leave(4)").returncode == 4


def test_generate_ends_with_its_status_and_a_sentence():
    done = run("-m", "modules.worker.generate_cli", "a hill", "--steps", "0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_server_that_waits_looks_for_a_signal_twice_a_second(monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ending.time, "sleep", nap)
    with pytest.raises(KeyboardInterrupt):
        ending.wait_for_end()
    assert len(naps) == 3 and max(naps) <= 0.5
