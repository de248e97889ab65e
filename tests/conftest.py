"""What tests of several rooms share: a real Chromium, and examples that are the same every time."""

import contextlib
import gc
import importlib
import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# Before torch is imported, and for every process that a test starts. Test files run beside each
# other, and networks are tiny: further threads would only wait for each other's turn, which took
# a test of engine families 2.8 times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl+C, and so does every process that a test
# starts: those tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NAMES = (
    "chromium-headless-shell",  # draws the same pages with a fifth less of the processor
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Tabs of one window share a process, and with it what was compiled of the page's script.
    "--renderer-process-limit=1",
    # No page of a test lives long enough to gain from being optimised.
    "--js-flags=--no-opt --no-maglev",
    # The first two load two pages into each new window, which takes a second of the processor.
    # The others are Playwright's own, of which these take the place.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,HttpsUpgrades,PaintHolding,"
    "ThirdPartyStoragePartitioning,DestroyProfileOnBrowserClose,OptimizationHints,"
    "AvoidUnnecessaryBeforeUnloadCheckSync,NetworkTimeServiceQuerying,PreconnectToSearch",
]

# The same examples in every run, and no verdict by the clock of a busy machine.
hypothesis.settings.register_profile("easel", derandomize=True, deadline=None)
hypothesis.settings.load_profile("easel")


def import_libraries_in_turn() -> None:
    """Import what most tests need, in another order in every worker of a run of all of them.

    After a new installation the workers compile the libraries as they import them, all the same
    file at the same time. Each begins with others here, and finds the rest compiled. Gradio comes
    in the program's own way, which takes half as long.
    """
    number = os.environ.get("PYTEST_XDIST_WORKER", "")[2:]
    first = ([], ["torch", "transformers.models.clip.modeling_clip"], ["pandas", "transformers"])
    with contextlib.suppress(ImportError):  # tests that need one say so themselves
        for name in first[int(number) % len(first)] if number.isdecimal() else ():
            importlib.import_module(name)
        importlib.import_module("modules.api.server").import_gradio()


def pytest_configure(config: pytest.Config) -> None:
    """Workers of a run of all tests; a run of a few files may need none of the libraries."""
    whole = set(config.option.file_or_dir) <= set(config.getini("testpaths"))
    if whole and hasattr(config, "workerinput"):
        import_libraries_in_turn()


def pytest_collection_finish() -> None:
    """Spare collections what lives to the end: every module, and thousands of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser for one module's tests; each opens windows of its own in it.

    Not for the session: Playwright keeps an event loop on this thread for as long as it runs, and
    tests of other modules start loops of their own.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    path = os.environ.get("EASEL_TEST_CHROMIUM") or found
    if path is None:
        pytest.skip("no Chromium: install it (apt-get install chromium) to test the page")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
