"""Rows about the program as a whole: starting it, loading a model, painting with it."""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import NotEquivalent, Row
from benchmarks.sizes import Options

ROOT = Path(__file__).resolve().parent.parent

Took = Callable[[str], float]
"""Measures seconds; given a folder for what is made meanwhile."""


def _python(code: str) -> tuple[float, str]:
    """(seconds, standard output) of a fresh interpreter running `code` in the repository."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout.strip()


def import_webui(options: Options) -> Row:
    """`import webui` in a fresh interpreter, less the interpreter's own start."""
    code = "import sys, webui; print('torch' in sys.modules)"
    bare, full = [], []
    for _ in range(options.rounds):
        bare.append(_python("pass")[0])
        seconds, has_torch = _python(code)
        full.append(seconds)
        if has_torch != "False":
            raise NotEquivalent("import webui loaded torch.")
    return Row(
        name="import_webui",
        setup="fresh interpreter, warm files",
        ours=statistics.median(full) - statistics.median(bare),
        target="no torch",
        samples={"with webui": full, "bare": bare},
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _server(folder: str) -> Iterator[str]:
    """The address of a server without any model of the user's, whose page is there."""
    port = _free_port()
    command = [sys.executable, "webui.py", "--port", str(port), "--disable-in-browser"]
    for name in ("output-path", "data-path", "models-path"):
        command += [f"--{name}", os.path.join(folder, name)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for_page(server, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answer(address: str, body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/json"} if body else {}
    asked = urllib.request.Request(address, body, headers)
    with urllib.request.urlopen(asked, timeout=5) as page:
        return page.read()


def _wait_for_page(server: subprocess.Popen[bytes], address: str) -> None:
    start = time.perf_counter()
    while time.perf_counter() - start < 60 and server.poll() is None:
        try:
            if _answer(f"{address}/"):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise RuntimeError("The server ended, or did not serve its page within a minute.")


def _first_page(folder: str) -> float:
    """Seconds from starting the server to its page being served."""
    start = time.perf_counter()
    with _server(folder):
        return time.perf_counter() - start


def _first_picture(folder: str) -> float:
    """Seconds from starting the server to a PNG of two words, painted by the built-in model."""
    start = time.perf_counter()
    with _server(folder) as server:
        request = json.dumps({"prompt": "red house", "preset": "builtin", "seed": 7}).encode()
        task = f"{server}/api/tasks/{json.loads(_answer(f'{server}/api/tasks', request))['id']}"
        while time.perf_counter() - start < 300:
            view = json.loads(_answer(task))
            if view["images"]:
                if not _answer(server + view["images"][0]["url"]).startswith(b"\x89PNG"):
                    raise NotEquivalent("The first picture is no PNG.")
                return time.perf_counter() - start
            if view["error"]:
                raise RuntimeError(view["error"]["message"])
            time.sleep(0.05)
    raise RuntimeError("There was no picture within five minutes.")


def _from_start(name: str, setup: str, target: str, took: Took, options: Options) -> Row:
    """A row of seconds from a start, each in a folder of its own, files warm."""
    seconds = []
    for _ in range(options.few_rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(took(folder))
    return Row(
        name=name,
        setup=f"server start to {setup}, warm files",
        ours=statistics.median(seconds),
        target=target,
        samples={"seconds": seconds},
    )


def first_page(options: Options) -> Row:
    """From `python webui.py` to the first page."""
    return _from_start("first_page", "page", "<= 5 s", _first_page, options)


def first_picture(options: Options) -> Row:
    """From `python webui.py` to the first picture, by the built-in model."""
    setup = "a picture of two words, built-in model"
    return _from_start("first_picture", setup, "<= 20 s", _first_picture, options)


def inspector(options: Options) -> Row:
    """The longest prompt there may be, with 10,000 combinations, as the page asks about it."""
    from modules.prompt.books import Shelf
    from modules.prompt.inspector import inspect_spec
    from modules.spec.limits import PROMPT_CHARACTERS
    from modules.spec.task_spec import TaskSpec

    arrays = "[[one, two, three, four, five, six, seven, eight, nine, ten]] " * 4
    words = "(a small house:1.2) by {the lake|the sea}, "
    room = PROMPT_CHARACTERS - len(arrays)
    prompt = arrays + words * (room // len(words) - 1)
    shelf, seconds = Shelf(ROOT, ROOT / "presets"), []
    for number in range(2 + options.rounds):
        # another prompt each time, as after every key: nothing of it is known from before
        spec = TaskSpec(
            prompt=f"{number:03} {prompt}", styles=("arch-modern",), image_count=4, seed=7
        )
        start = time.perf_counter()
        inspect_spec(spec, shelf.books(), lambda _: {}).model_dump_json()
        seconds.append(time.perf_counter() - start)
    return Row(
        name="inspector",
        setup=f"{len(prompt):,} characters, 10,000 combinations",
        ours=1000.0 * statistics.median(seconds[2:]),
        unit="ms",
        target="<= 50 ms",
        samples={"seconds": seconds[2:]},
    )
