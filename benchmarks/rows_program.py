"""Rows about the program as a whole: starting it, loading a model, painting with it."""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.measure import NotEquivalent, Row
from benchmarks.sizes import Options

ROOT = Path(__file__).resolve().parent.parent


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


def _first_page(folder: str) -> float:
    """Seconds from starting the server to its page being served."""
    port = _free_port()
    command = [sys.executable, "webui.py", "--port", str(port), "--disable-in-browser"]
    for name in ("output-path", "data-path", "models-path"):
        command += [f"--{name}", os.path.join(folder, name)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            while time.perf_counter() - start < 60 and server.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                        if page.status == 200 and page.read():
                            return time.perf_counter() - start
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    time.sleep(0.02)
            raise RuntimeError("The server did not serve its page within a minute.")
        finally:
            server.terminate()


def first_page(options: Options) -> Row:
    """From `python webui.py` to the first page, files warm."""
    seconds = []
    for _ in range(options.few_rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(_first_page(folder))
    return Row(
        name="first_page",
        setup="server start to page, warm files",
        ours=statistics.median(seconds),
        target="<= 5 s",
        samples={"seconds": seconds},
    )


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
