"""Model files without the page: `launch.py download sd_xl_base_1.0.safetensors`.

Without a name it lists the files that can be had. The progress goes to standard error, the names
of files that have arrived to standard output.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import NoReturn

from modules.library.catalog import Catalog
from modules.library.download import Phase, Progress, fetch
from modules.library.known_files import find_known, known_files
from modules.settings.config import load_settings
from modules.settings.performance import load_modes
from modules.spec.errors import ConfigError, StudioError

EXIT_STOPPED = 130


class _Parser(argparse.ArgumentParser):
    """Raises a sentence instead of ending the process with the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"The command line is not right: {message}. See download --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every file is there now, 1 after an error, 130 after Ctrl+C."""
    parser = _Parser(
        prog="launch.py download",
        description="Fetch model files that presets, image prompts and performance modes name.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="file name; without any, a list")
    parser.add_argument("--models-path", metavar="FOLDER", help="folder of the models")
    try:
        given = parser.parse_args(argv)
        flags = ["--models-path", given.models_path] if given.models_path else []
        settings = load_settings(flags)
        known = known_files(Catalog(settings), load_modes(settings.root))
        if not given.names:
            for key, download in known.items():
                is_there = (settings.models_path / key).exists()
                size = f"{download.size / 1e9:.1f} GB" if download.size else ""
                sys.stdout.write(f"{'there' if is_there else size:>8}  {key}\n")
        for download in [find_known(known, name) for name in given.names]:
            if (settings.models_path / download.key).is_file():
                sys.stderr.write(f"{download.key} is there already.\n")
                continue
            asyncio.run(fetch(download, settings.models_path, _tell))
            _show("")
            sys.stdout.write(f"{download.key}\n")
    except StudioError as error:
        _show("")
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; the same command goes on from there.\n")
        return EXIT_STOPPED
    return 0


def _tell(progress: Progress) -> None:
    parts = [f"{progress.done / 1e9:.2f} GB"]
    if progress.total:
        parts[0] = f"{progress.done / 1e9:.2f} of {progress.total / 1e9:.2f} GB"
    if progress.phase is Phase.FETCHING and progress.rate:
        parts.append(f"{progress.rate / 1e6:.1f} MB/s")
    else:
        parts.append(f"{progress.phase}…")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    _show(" · ".join(parts))


def _show(text: str) -> None:
    """Replace the progress line; only where somebody looks at it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<60}" + ("" if text else "\r"))
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
