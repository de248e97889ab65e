"""Learned words (embeddings): whether they are there, and how many tokens each stands for."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ldm_patched.modules.embedding_names import readings
from modules.library.catalog import Catalog, ModelFile
from modules.library.safetensors_head import read_header
from modules.prompt.lora_tags import find_name, index_of_names
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing

_PAIR = ("clip_l", "clip_g", "clip_h")


def require_embeddings(names: Sequence[str], catalog: Catalog) -> None:
    """Raises ModelMissing for a learned word without a file."""
    if not names:
        return
    index = index_of_names([file.name for file in catalog.files(ModelFolder.EMBEDDINGS)])
    for name in names:
        if not any(find_name(index, reading) for reading in readings(name)):
            raise ModelMissing(
                f"The embedding {name[:80]!r} is not in models/embeddings; put the file there, or "
                f"take embedding:{name[:80]} out of the prompt."
            )


def embedding_tokens(file: ModelFile) -> int | None:
    """Tokens in the prompt by the file's header; None if it does not say, such as a pickle."""
    if file.path.suffix.lower() != ".safetensors":
        return None
    try:
        status = file.path.stat()
    except OSError:
        return None
    return _read(file.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read(path: Path, _size: int, _time: int) -> int | None:
    header = read_header(path) or {}
    shapes = {
        name: entry["shape"]
        for name, entry in header.items()
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list)
    }
    named = [shape for name, shape in shapes.items() if name in _PAIR]
    rows = [_rows(shape) for shape in named or shapes.values()]
    known = [count for count in rows if count]
    return known[0] if len(known) == 1 or (named and known) else None


def _rows(shape: Sequence[object]) -> int:
    """(width,) is one vector, (n, width) are n; anything else is none."""
    if len(shape) == 1:
        return 1
    first = shape[0] if len(shape) == 2 else 0
    return first if isinstance(first, int) and 0 < first <= 1024 else 0
