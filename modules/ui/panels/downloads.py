"""Files that can be fetched, as a list of links; downloads.js puts the buttons beside them."""

from collections.abc import Sequence
from html import escape

from modules.settings.presets import Download
from modules.ui.texts import Texts


def download_list(downloads: Sequence[Download], texts: Texts, element_id: str = "") -> str:
    """Links with size and folder; data-file is the name by which the server fetches each."""
    if not downloads:
        return ""
    items = "".join(
        f'<li class="fetchable" data-file="{escape(item.key)}" data-size="{item.size or ""}">'
        f"{_name(item)} <small>{_facts(item, texts)}</small></li>"
        for item in downloads
    )
    named = f' id="{element_id}"' if element_id else ""
    return f'<ul class="downloads"{named}>{items}</ul>'


def _name(item: Download) -> str:
    if not item.link:
        return f"<span>{escape(item.file)}</span>"
    link = f'<a href="{escape(item.link)}" target="_blank" rel="noreferrer noopener">'
    return f"{link}{escape(item.file)}</a>"


def in_bytes(count: int) -> str:
    """A size people can read, such as '6.9 GB' or 'empty'."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    if not count:
        return "empty"
    return f"{max(1, round(count / 1000))} kB"


def _facts(item: Download, texts: Texts) -> str:
    into = escape(texts("models.into", folder=f"models/{item.folder}"))
    return f"{in_bytes(item.size)} · {into}" if item.size else into
