"""Style, script and icons of the page, put into it as text: nothing is fetched from outside."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
STYLES = ("easel.css", "form.css", "panels.css", "images.css", "adjust.css", "phone.css")
EARLY_SCRIPTS = ("rest.js",)
SCRIPTS = (
    "util.js",
    "task.js",
    "stage.js",
    "strip.js",
    "viewer.js",
    "performance.js",
    "styles.js",
    "loras.js",
    "images.js",
    "image_slot.js",
    "region.js",
    "adjust.js",
    "drop.js",
    "downloads.js",
    "inspector.js",
    "page.js",
    "controls.js",
    "frame.js",
    "easel.js",
)


@cache
def style() -> str:
    """All style sheets, in order."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)


@cache
def script() -> str:
    """All scripts in one closure; the page's only global is `window.easel`."""
    return _closure(SCRIPTS)


@cache
def early_script() -> str:
    """What runs before Gradio's scripts, in a closure of its own."""
    return _closure(EARLY_SCRIPTS)


def _closure(names: tuple[str, ...]) -> str:
    body = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)
    return f'(() => {{\n"use strict";\n{body}\n}})();'


@cache
def icon(name: str) -> str:
    """An inline SVG that takes its colour from the text around it and is silent to readers."""
    return (FOLDER / "icons" / f"{name}.svg").read_text(encoding="utf-8").strip()


@cache
def icons() -> dict[str, str]:
    """Every icon by name."""
    return {path.stem: icon(path.stem) for path in sorted((FOLDER / "icons").glob("*.svg"))}
