"""One download at a time, from any thread, and whoever asks later sees how it went."""

import asyncio
import threading
import time

import pytest

from modules.library.download import Phase, Progress
from modules.library.download_queue import Downloads, DownloadState
from modules.settings.presets import Download
from modules.spec.errors import DownloadFailed
from tests.support.file_server import serve_file


def file(name, url="https://example.org/x"):
    return Download(file=name, folder="loras", url=url)


class Scripted:
    """Fetches nothing: each waits until it is let go, then ends as it was told."""

    def __init__(self):
        self.running, self.most, self.ends = [], 0, {}

    async def __call__(self, download, folder, tell):
        self.running.append(download.file)
        self.most = max(self.most, len(self.running))
        try:
            tell(Progress(Phase.FETCHING, 5, 10, 1.0))
            while download.file not in self.ends:
                await asyncio.sleep(0.005)
            end = self.ends[download.file]
            if end:
                raise end
            path = folder / download.key
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
            return path
        finally:
            self.running.remove(download.file)


@pytest.fixture
def fetching():
    return Scripted()


@pytest.fixture
def queue(tmp_path, fetching):
    downloads = Downloads(tmp_path, fetching)
    yield downloads
    downloads.close()


def states(queue):
    return {view.name: str(view.state) for view in queue.views()}


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_runs_and_the_others_wait_their_turn(queue, fetching):
    for name in ("a", "b", "c", "a"):
        queue.begin(file(name))
    wait_for(lambda: fetching.running == ["a"])
    assert states(queue) == {"loras/a": "running", "loras/b": "waiting", "loras/c": "waiting"}
    wait_for(lambda: queue.views()[0].done)  # it is told just after it began
    running = queue.views()[0]
    assert (running.done, running.total, running.seconds_left) == (5, 10, 5.0)
    fetching.ends = {
        "a": None,
        "b": DownloadFailed("Not there. Look elsewhere."),
        "c": ValueError(),
    }
    wait_for(lambda: "waiting" not in str(states(queue)) and not fetching.running)
    wait_for(lambda: states(queue)["loras/c"] == "failed")
    a, b, c = queue.views()
    assert (a.state, b.state, b.error) == ("done", "failed", "Not there. Look elsewhere.")
    assert "fault of Easel" in c.error
    assert fetching.most == 1


def test_stopping_the_running_one_lets_the_next_begin(queue, fetching):
    for name in ("a", "b", "c"):
        queue.begin(file(name))
    wait_for(lambda: fetching.running == ["a"])
    queue.stop("loras/c")  # before its turn
    queue.stop("loras/a")
    queue.stop("loras/unknown")
    wait_for(lambda: fetching.running == ["b"])
    assert states(queue) == {"loras/a": "stopped", "loras/b": "running", "loras/c": "stopped"}
    assert queue.begin(file("a")).state is DownloadState.WAITING  # again, at the end
    assert list(states(queue)) == ["loras/b", "loras/c", "loras/a"]
    fetching.ends = {"a": None, "b": None}
    wait_for(lambda: states(queue)["loras/a"] == "done")


def test_stopping_at_any_moment_ends_it(queue, fetching):
    for number in range(30):
        name = f"f{number}"
        queue.begin(file(name))
        if number % 3:
            time.sleep(0.001 * (number % 3))
        queue.stop(f"loras/{name}")
    wait_for(lambda: set(states(queue).values()) == {"stopped"})
    queue.begin(file("last"))
    fetching.ends = {"last": None}
    wait_for(lambda: states(queue)["loras/last"] == "done")


def test_a_file_that_was_removed_is_not_told_as_there(queue, fetching, tmp_path):
    fetching.ends = {"a": None}
    queue.begin(file("a"))
    wait_for(lambda: states(queue) == {"loras/a": "done"})
    (tmp_path / "loras" / "a").unlink()
    assert states(queue) == {}
    queue.begin(file("a"))
    wait_for(lambda: states(queue) == {"loras/a": "done"})


def test_after_the_end_nothing_waits(queue):
    queue.close()
    assert queue.begin(file("a")).state is DownloadState.STOPPED


@pytest.mark.parametrize("secret", ["https://me:pass@e.org/x", "https://e.org/x?token=1"])
def test_an_address_with_a_secret_is_nobody_s_to_see(queue, secret):
    queue.begin(file("a", secret))
    queue.begin(file("b", "https://e.org/@x"))
    assert [view.url for view in queue.views()] == ["", "https://e.org/@x"]


def test_the_end_of_the_program_waits_for_no_server(tmp_path):
    with serve_file(b"x" * 100_000, hold=1_000) as server:
        queue = Downloads(tmp_path)
        queue.begin(file("a.safetensors", server.url))
        wait_for(lambda: server.asked)
        began = time.monotonic()
        queue.close()
        assert time.monotonic() - began < 1.0
    assert states(queue) == {"loras/a.safetensors": "stopped"}
    wait_for(lambda: "downloads" not in [thread.name for thread in threading.enumerate()])


def test_a_real_file_arrives(tmp_path):
    with serve_file(b"weights") as server:
        queue = Downloads(tmp_path)
        queue.begin(file("a.safetensors", server.url))
        wait_for(lambda: states(queue) == {"loras/a.safetensors": "done"})
    assert (tmp_path / "loras" / "a.safetensors").read_bytes() == b"weights"
