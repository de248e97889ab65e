"""Locks of open files."""

import errno
import os

import pytest

from modules.spec.errors import ConfigError
from modules.spec.file_lock import lock_file
from modules.tasks.instance import InstanceLock


@pytest.fixture
def refused(monkeypatch):
    """A function: have the system answer with this error to whoever wants a lock."""
    fcntl = pytest.importorskip("fcntl")

    def answer(code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)

    return answer


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK])
def test_a_lock_that_somebody_else_holds_is_told_by_false(tmp_path, refused, code):
    refused(code)
    with (tmp_path / "lock").open("w+b") as file:
        assert lock_file(file) is False


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named_with_the_remedy(tmp_path, refused, code):
    refused(code)
    with pytest.raises(ConfigError, match=r"no file locks.*--data-path"):
        InstanceLock(tmp_path, patience=0).acquire()
