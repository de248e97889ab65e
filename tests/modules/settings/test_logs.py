"""The terminal gets a short line; the file gets everything."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = """
import logging, sys
from pathlib import Path
from modules.settings.logs import start_logging
start_logging(Path(sys.argv[1]), "worker")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("modules.x").exception("task 7 failed")
logging.getLogger("library").info("chatter")
"""


def run(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_traceback_is_in_the_file_alone(tmp_path):
    assert run(tmp_path / "logs") == "task 7 failed (the log file says why)\n"
    text = (tmp_path / "logs" / "worker.log").read_text(encoding="utf-8")
    assert "ERROR modules.x: task 7 failed" in text and "ZeroDivisionError" in text
    assert "INFO library: chatter" in text


def test_a_folder_that_cannot_be_is_said_and_no_fault(tmp_path):
    (tmp_path / "logs").write_text("in the way", encoding="utf-8")
    said = run(tmp_path / "logs")
    assert said.startswith("There is no log file: ")
    assert str(tmp_path) not in said and "task 7 failed" in said
