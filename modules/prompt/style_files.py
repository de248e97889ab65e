"""Reading style files: Easel's and Fooocus's JSON lists, A1111's styles.csv.

A fault in a file becomes a sentence and costs that entry (or that file) only.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.spec import limits
from modules.spec.task_spec import spelt

PLACE = "{prompt}"
_ENTRIES = 5_000
_KEYS = frozenset({"name", "title", "prompt", "negative_prompt"})
_CAPITALS = {"3d": "3D", "sai": "SAI", "mre": "MRE", "hdr": "HDR", "ui": "UI", "8bit": "8-bit"}


@dataclass(frozen=True, slots=True)
class Style:
    """A named text. prompt: has {prompt} where the user's words go, or is added beside them."""

    name: str
    title: str
    prompt: str
    negative_prompt: str = ""
    group: str = ""
    """The file that it came from, for a list in sections."""


class _Fault(Exception):
    """Why an entry is left out; the words follow the entry's name."""


def files_in(folder: Path) -> Iterator[Path]:
    """Style files of a folder by name; a missing folder holds none."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    yield from (p for p in paths if p.suffix.lower() in _READERS and not p.name.startswith("."))


def read_file(path: Path) -> tuple[list[Style], list[str]]:
    """(styles, notices) of a file. Never raises for what it holds."""
    name = f"The style file {path.name[:80]!r}"
    try:
        with path.open("rb") as file:
            raw = file.read(limits.STYLE_FILE_BYTES + 1)
    except OSError:
        return [], [f"{name} cannot be read; check the file."]
    if len(raw) > limits.STYLE_FILE_BYTES:
        megabytes = limits.STYLE_FILE_BYTES // 1024**2
        return [], [f"{name} is larger than {megabytes} MiB, so it is not used; split it."]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return [], [f"{name} is not UTF-8 text; save it as UTF-8."]
    try:
        entries = _READERS[path.suffix.lower()](text)
    except _Fault as fault:
        return [], [f"{name} {fault}"]
    notices: list[str] = []
    if len(entries) > _ENTRIES:
        notices.append(f"{name} has more than {_ENTRIES:,} styles; the others are left out.")
    group = spelt(path.stem)  # file names may be of any bytes
    styles: list[Style] = []
    for number, entry in enumerate(entries[:_ENTRIES], start=1):
        try:
            styles.append(_style(entry, group))
        except _Fault as fault:
            notices.append(f"{name}: entry {number} {fault}")
    return styles, notices[:20]


def _read_json(text: str) -> Sequence[Any]:
    try:
        content = json.loads(text)
    except RecursionError:
        raise _Fault("is nested too deeply; simplify it.") from None
    except ValueError as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        raise _Fault(f"is not valid JSON{where}; correct it.") from None
    if not isinstance(content, list):
        raise _Fault("must hold a list of styles in brackets [ ].")
    return content


def _read_csv(text: str) -> Sequence[Any]:
    """A1111 sets a style without {prompt} behind the prompt, in the same text."""
    try:
        rows = list(csv.DictReader(io.StringIO(text.replace("\x00", ""), newline="")))
    except csv.Error:
        raise _Fault("is not a valid table; save it as CSV with commas.") from None
    if rows and "name" not in rows[0]:
        raise _Fault("has no column 'name'; its first line must be name,prompt,negative_prompt.")
    entries = []
    for row in rows:
        entry = {key: row.get(key) or "" for key in ("name", "prompt", "negative_prompt")}
        if not (entry["prompt"] or entry["negative_prompt"]):
            continue  # people divide their lists with rows that hold nothing but a heading
        if entry["prompt"] and PLACE not in entry["prompt"]:
            entry["prompt"] = f"{PLACE}, {entry['prompt']}"
        entry["negative_prompt"] = entry["negative_prompt"].replace(PLACE, "").strip(" ,")
        entries.append(entry)
    return entries


_READERS: Mapping[str, Callable[[str], Sequence[Any]]] = {".json": _read_json, ".csv": _read_csv}


def _style(entry: Any, group: str) -> Style:
    if not isinstance(entry, dict):
        raise _Fault("is not an object in braces { }; it is left out.")
    for key in entry.keys() - _KEYS:
        raise _Fault(f"has the unknown key {str(key)[:40]!r}; it is left out.")
    texts = {key: entry.get(key) or "" for key in _KEYS}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise _Fault(f"has no text under {key!r}; it is left out.")
        most = limits.PROMPT_CHARACTERS if "prompt" in key else limits.STYLE_NAME_CHARACTERS
        if len(text) > most:
            raise _Fault(f"has more than {most:,} characters under {key!r}; it is left out.")
        if text != spelt(text):  # JSON can spell half of a character in two parts
            raise _Fault(f"has half a character under {key!r}; it is left out.")
    name = " ".join(texts["name"].replace("\x00", "").replace(",", " ").split())
    if not name:
        raise _Fault("has no name; it is left out.")
    if not (texts["prompt"].strip() or texts["negative_prompt"].strip()):
        raise _Fault("says nothing; it is left out.")
    title = " ".join(texts["title"].split()) or title_of(name)
    prompt, negative = (texts[key].replace("\x00", "") for key in ("prompt", "negative_prompt"))
    return Style(name, title, prompt, negative, group)


def title_of(name: str) -> str:
    """`oil-painting` → `Oil Painting`; a name that has capitals already stays as it is."""
    if name != name.lower():
        return name
    words = name.replace("-", " ").replace("_", " ").split()
    return " ".join(_CAPITALS.get(word, word[:1].upper() + word[1:]) for word in words)
