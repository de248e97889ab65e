"""`launch.py make-thumbnails`: one small picture for every style, painted on this machine.

The same subject and seed in each style, so that only the style tells them apart. Options beyond
the four below are those of `generate`. What is painted is kept as it comes: an interrupted run is
gone on with by starting it again.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modules.library.style_pictures import StylePictures
from modules.prompt.books import Shelf
from modules.prompt.style_files import Style
from modules.settings.config import Settings
from modules.settings.logs import start_logging
from modules.spec.errors import StudioError
from modules.spec.task_spec import TaskSpec
from modules.tasks.ending import leave
from modules.worker.generate_cli import EXIT_STOPPED, TerminalTask, read_request

SUBJECT = "a house by a lake"
SEED = "7"


def build_parser() -> argparse.ArgumentParser:
    """The options that `generate` does not have, and those with a default of their own."""
    parser = argparse.ArgumentParser(
        prog="launch.py make-thumbnails",
        description="Paint the small pictures beside the styles. Other options are those of "
        "`launch.py generate --help`, such as --checkpoint or --performance.",
        allow_abbrev=False,
    )
    parser.add_argument("--subject", default=SUBJECT, help=f"what is painted (default: {SUBJECT})")
    parser.add_argument("--seed", default=SEED, help=f"the same for all (default: {SEED})")
    parser.add_argument("--only", nargs="+", metavar="STYLE", help="these styles, by name or title")
    parser.add_argument("--again", action="store_true", help="also those that have a picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Paint what is missing; 0 if every picture was made, 1 after an error, 130 after Ctrl+C."""
    given, rest = build_parser().parse_known_args(argv)
    try:
        spec, settings, _ = read_request([given.subject, "--seed", given.seed, *rest, "-n", "1"])
        book = Shelf(settings.root, settings.presets_path).styles()
        wanted = [book.find(name) for name in given.only] if given.only else list(book)
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    pictures = StylePictures(settings.style_pictures_path)
    missing = [style for style in wanted if given.again or not pictures.is_painted(style)]
    if not missing:
        sys.stderr.write("Every style has its picture; --again paints them anew.\n")
        return 0
    start_logging(settings.log_path, "make-thumbnails", logging.ERROR)
    settings.temporary_path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.temporary_path) as folder:
        settings = replace(settings, output_path=Path(folder))
        try:
            failure = paint(missing, spec, settings, pictures)
        except KeyboardInterrupt:
            sys.stderr.write("Stopped; what is painted is kept, and the next start goes on.\n")
            return EXIT_STOPPED
    if failure:
        sys.stderr.write(f"{failure}\n")
    return 1 if failure else 0


def paint(
    styles: Sequence[Style], spec: TaskSpec, settings: Settings, pictures: StylePictures
) -> str:
    """Paint `spec` in each of `styles`; the sentence of what went wrong, or an empty one.

    A style that fails ends the run: what hinders one, such as a missing model, hinders all.
    """
    # Only now: a wrong option is answered without loading the engine.
    from modules.async_worker import run_task
    from modules.worker.studio import Studio

    studio = Studio(settings, by_day=False)
    try:
        for number, style in enumerate(styles, start=1):
            sys.stderr.write(f"{number} of {len(styles)}  {style.title}\n")
            saved = io.StringIO()
            one = spec.model_copy(update={"styles": (style.name,)})
            task = TerminalTask(one, settings.output_path, saved, sys.stderr)
            run_task(task, studio)
            if task.failure:
                return task.failure
            path = Path(saved.getvalue().strip())
            try:
                pictures.keep(style, path)
            except OSError:
                return (
                    "The small picture could not be saved; free some space and make the data "
                    "folder writable, then start again."
                )
            with contextlib.suppress(OSError):  # its folder goes with the end anyway
                path.unlink()
    finally:
        studio.close()
    return ""


if __name__ == "__main__":
    leave(main())
