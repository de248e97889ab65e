"""Reading a JSON file that a person may have edited: every fault becomes one plain sentence."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.spec.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_BYTES = 1024 * 1024


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in `path`; `name` is how the file is called in messages.

    A byte order mark is accepted (Windows editors write one). Everything else that is not one
    strict JSON object with unique keys raises ConfigError: it says what is wrong, and on which
    line where that is known.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError(f"{name} is a folder; a JSON file must be there.") from None
    except OSError as error:
        # Windows answers "permission denied" for a folder.
        if path.is_dir():
            raise ConfigError(f"{name} is a folder; a JSON file must be there.") from None
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError(f"{name} cannot be read ({reason}); check the file.") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{name} is larger than 1 MB, so it is not a settings file; replace it.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 text; save it as UTF-8.") from None
    if not text.strip("\x00 \t\r\n"):
        raise ConfigError(f"{name} is empty; write {{}} into it or delete it.")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name} is not valid JSON: line {error.lineno}, {error.msg[:1].lower()}"
            f"{error.msg[1:]}. Look for a missing quote or a comma too many."
        ) from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply; simplify it.") from None
    except ValueError as error:
        raise ConfigError(f"{name} {error}; correct it.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be one JSON object in braces {{ }}.")
    return value


def first_complaint(error: "ValidationError") -> str:
    """What pydantic objects to first, as the end of a sentence that named the file."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"the key {key[:80]!r} is not known; remove it."
    if first["type"] == "missing":
        return f"the key {key!r} is missing; add it."
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key!r}: {reason[:1].lower()}{reason[1:]}."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"holds {key[:60]!r} twice")
        result[key] = value
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"holds {text}, which is not a number of JSON")
