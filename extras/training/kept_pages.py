"""Encoded groups of pages on the disk, so that no run draws and encodes what another one has.

Encoding a page costs as much as several steps on it, and a run that is resumed first fills its
window again. A group is read only for the very pages, generator and autoencoder that it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from extras.training.writing import write_weights

_ROWS = "rows."
_BOOK = ("picturebook.py", "captions.py", "caption_tokens.py", "pages.py", "scenes")
"""What decides how a page looks and what is said of it, beside its plan; its facts are not kept."""


class Encoded(NamedTuple):
    """rows: what is kept of each picture, (G, …) each; tokens, numbers: as of a PageGroup."""

    rows: dict[str, Tensor]
    tokens: Tensor
    numbers: Tensor


class KeptPages:
    """The groups of one source as one autoencoder encodes them, a file each."""

    def __init__(self, folder: Path, source: Mapping[str, Any], *encoders: nn.Module) -> None:
        """folder: of all that is kept; source: what a checkpoint says of the pages; encoders: the
        networks that make what is kept of them."""
        digest = hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode())
        for name, weight in (item for net in encoders for item in net.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        here = Path(__file__).parent
        for path in sorted(p for name in _BOOK for p in [here / name, *(here / name).glob("*.py")]):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        self._folder = folder / digest.hexdigest()[:16]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.safetensors"

    def read(self, number: int) -> Encoded | None:
        """A group, or None if it is not there whole."""
        try:
            found = load_file(self._path(number))
            rows = {name[len(_ROWS) :]: t for name, t in found.items() if name.startswith(_ROWS)}
            return Encoded(rows, found["tokens"], found["numbers"])
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, number: int, group: Encoded) -> None:
        """Keep a group. Raises TrainingFolderError."""
        tensors = {"tokens": group.tokens, "numbers": group.numbers}
        tensors |= {_ROWS + name: tensor for name, tensor in group.rows.items()}
        remedy = "free some space, give another folder with --keep-pages, or leave that out."
        write_weights(tensors, self._path(number), remedy=remedy)
