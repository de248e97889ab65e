"""Every file that Easel knows how to fetch. Whoever asks for one names it, never its address."""

from collections.abc import Iterator

from pydantic import ValidationError

from modules.library.catalog import Catalog
from modules.library.control_files import (
    FAMILY_WIDTHS,
    LARGER_VISION,
    NEGATIVE,
    VISION,
    needed_for,
)
from modules.settings.performance import Modes
from modules.settings.presets import Download, ModelFolder
from modules.spec.errors import NotFound
from modules.spec.image_prompt import ImagePromptType
from modules.spec.performance import PerformanceMode


def known_files(catalog: Catalog, modes: Modes) -> dict[str, Download]:
    """By key: what presets name, what image prompts need, the LoRAs of performance modes."""
    found = catalog.downloads()
    for download in (*_of_image_prompts(), *_of_modes(modes)):
        found.setdefault(download.key, download)
    return found


def find_known(known: dict[str, Download], name: str) -> Download:
    """The file of that key, or of that file name where only one folder has it. Raises NotFound."""
    if name in known:
        return known[name]
    named = [download for download in known.values() if download.file == name]
    if len(named) == 1:
        return named[0]
    raise NotFound(
        f"{name[:80]!r} is no file that Easel knows how to fetch; it fetches those that a preset, "
        "an image prompt or a performance mode names."
    )


def _of_image_prompts() -> Iterator[Download]:
    needed = {needed_for(kind, width) for kind in ImagePromptType for width in FAMILY_WIDTHS}
    named = {each for each in needed if each.file}
    for each in sorted({*named, VISION, LARGER_VISION, NEGATIVE}, key=lambda each: each.file):
        # Their sizes are known to three figures only, which is no check.
        yield Download(file=each.file, folder=each.folder, url=each.url)


def _of_modes(modes: Modes) -> Iterator[Download]:
    found = (download_of(mode) for mode in modes.values())
    yield from (download for download in found if download is not None)


def download_of(mode: PerformanceMode) -> Download | None:
    """The LoRA of a mode, if it can be fetched."""
    if mode.lora is None or not mode.lora.url:
        return None
    try:
        return Download(file=mode.lora.file, folder=ModelFolder.LORAS, url=mode.lora.url)
    except ValidationError:
        return None  # a name with folders in it: for the user's own hand
