"""One server per data folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modules.spec.errors import ConfigError, InstanceRunning
from modules.tasks.instance import InstanceLock

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from modules.tasks.instance import InstanceLock
lock = InstanceLock(Path(sys.argv[1]))
lock.acquire()
lock.announce("http://127.0.0.1:7865")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_instance_is_told_where_the_first_is(tmp_path):
    folder = tmp_path / "data"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InstanceRunning, match=r"at http://127\.0\.0\.1:7865") as caught:
            InstanceLock(folder).acquire()
        assert str(tmp_path) not in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    # Killed without a chance to tidy up, and yet the folder is free, its old address forgotten.
    with InstanceLock(folder), pytest.raises(InstanceRunning, match="just starting"):
        InstanceLock(folder, patience=0).acquire()


def test_who_comes_while_the_first_one_starts_is_told_its_address(tmp_path):
    with InstanceLock(tmp_path) as first:
        later = threading.Timer(0.3, first.announce, ["http://127.0.0.1:7866"])
        later.start()
        with pytest.raises(InstanceRunning, match=r"at http://127\.0\.0\.1:7866"):
            InstanceLock(tmp_path).acquire()
        later.join()


def test_who_comes_while_the_first_one_starts_takes_over_when_that_fails(tmp_path):
    first = InstanceLock(tmp_path)
    first.acquire()
    later = threading.Timer(0.3, first.release)
    later.start()
    with InstanceLock(tmp_path) as second:
        second.announce("http://127.0.0.1:7867")
        with pytest.raises(InstanceRunning, match="7867"):
            InstanceLock(tmp_path).acquire()
    later.join()


def test_release_frees_the_folder_and_repeats_are_harmless(tmp_path):
    lock = InstanceLock(tmp_path)
    lock.acquire()
    lock.acquire()
    lock.announce("http://127.0.0.1:1/a/long/address")
    lock.announce("http://127.0.0.1:2")
    with pytest.raises(InstanceRunning, match=r"127\.0\.0\.1:2\."):
        InstanceLock(tmp_path).acquire()
    lock.release()
    lock.release()
    with pytest.raises(RuntimeError):
        lock.announce("http://127.0.0.1:3")
    InstanceLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="data folder"):
        InstanceLock(tmp_path / "file" / "data").acquire()
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="rights"):
            InstanceLock(tmp_path / "locked").acquire()
