"""Pictures on their way into the page: made, dropped, pasted, chosen, and what became of them."""

import base64
import hashlib
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from modules.spec.task_spec import TaskSpec
from tests.browser.conftest import SCREENSHOTS, generate, require_thumb_room, task_of
from tests.support.page_server import RunningPage
from tests.support.scene_worker import Size, landscape

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DOCS, DOCS_PICTURE = Path(__file__).parents[2] / "docs", "image-prompt-region-desktop"

File = tuple[str, str, bytes]
"""Name, media type, content."""


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def hills(seed: int = 3, size: tuple[int, int] = (300, 200)) -> bytes:
    return encoded(Image.fromarray(landscape(Size(*size), seed)))


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def photograph(tab: Any, name: str) -> None:
    """For people to look at; with EASEL_WRITE_DOCS=1 that of the docs is taken anew."""
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.ip-picture img[src]')].every(i => i.complete)"
    )
    path = SCREENSHOTS / f"{name}.png"
    tab.screenshot(path=path, animations="disabled")
    if name == DOCS_PICTURE and os.environ.get("EASEL_WRITE_DOCS"):
        shutil.copyfile(path, DOCS / "image-prompts.png")


def photograph_in_both_themes(tab: Any, name: str, *, room: str = "") -> None:
    """One picture for each theme; what is shown of the selector `room` is right for a thumb."""
    for theme in ("light", "dark"):
        tab.emulate_media(color_scheme=theme)
        tab.wait_for_selector(f"html[data-theme={theme}]")
        photograph(tab, f"{name}-{theme}")
        if room:
            require_thumb_room(tab, room)


def transfer(tab: Any, files: Iterable[File]) -> Any:
    """What a dragged or copied group of (name, type, bytes) carries."""
    packed = [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files]
    return tab.evaluate_handle(
        """async (files) => {
            const carried = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                carried.items.add(new File([bytes], name, { type }));
            }
            return carried;
        }""",
        packed,
    )


def drop(tab: Any, where: str, *files: File) -> None:
    carried = transfer(tab, files)
    tab.dispatch_event(where, "dragover", {"dataTransfer": carried})
    tab.dispatch_event(where, "drop", {"dataTransfer": carried})


def paste(tab: Any, *files: File) -> None:
    tab.evaluate(
        """(clipboardData) => document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        transfer(tab, files),
    )


def choose(tab: Any, number: int, *files: File) -> None:
    with tab.expect_file_chooser() as chooser:
        tab.locator(f"#ip-slot-{number} .ip-picture").click()
    chooser.value.set_files(
        [{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files]
    )


def filled(tab: Any, count: int) -> None:
    """Wait until so many slots show their pictures."""
    tab.wait_for_function(
        """(count) => {
            const shown = [...document.querySelectorAll(".ip-slot:not(.empty) img")];
            return shown.length === count && shown.every((img) => img.complete && img.naturalWidth);
        }""",
        arg=count,
    )


def kept(tab: Any, count: int) -> None:
    """Wait until the form holds so many image prompts for a reload."""
    tab.wait_for_function(
        """(count) => {
            const form = JSON.parse(sessionStorage["easel.form"] ?? "{}");
            return JSON.parse(form.image_prompts ?? "[]").length === count;
        }""",
        arg=count,
    )


def slide(tab: Any, slider: str, value: float) -> None:
    tab.locator(slider).fill(str(value))


def sent(server: RunningPage, tab: Any) -> TaskSpec:
    """Press Generate: the request that arrives."""
    before = tab.evaluate("location.hash")
    generate(tab, "quick hills", pictures=1)
    tab.wait_for_function("(before) => location.hash !== before", arg=before)
    return server.pool.view(task_of(tab)).spec


def open_drawer(tab: Any) -> None:
    tab.locator("#input-image-toggle").click()
    tab.wait_for_selector("#ip-slot-4")
