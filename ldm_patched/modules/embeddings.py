"""Learned words (textual inversion, Gal et al., arXiv:2208.01618): `embedding:name` in a prompt.

A file holds a few vectors that take the place of token embeddings: one set for each text encoder
of the family. Files are those of A1111 (`string_to_param`), diffusers (one tensor under the word's
name), safetensors (`emb_params`) and SDXL pairs (`clip_l` and `clip_g`).
"""

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ldm_patched.modules.embedding_names import split_references
from ldm_patched.modules.errors import CorruptModelFile, EmbeddingMissing, UnsupportedModel
from ldm_patched.modules.prompt_weights import read_weights
from ldm_patched.modules.weight_file import WeightFile, open_weights

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
VECTORS_MAX = 1024
FAMILIES = {
    ("l", 768): "Stable Diffusion 1",
    ("h", 1024): "Stable Diffusion 2",
    ("g", 1280): "the SDXL refiner",
}
PAIR = "SDXL"
PAIRED = ("g", 1280)
ENCODER_OF_WIDTH = {768: "l", 1024: "h", 1280: "g"}
NAMED = {"clip_l": "l", "clip_g": "g", "clip_h": "h"}

Vectors = dict[str, Tensor]
"""(n, width) float32 on the CPU for each encoder, by its short name; "" for one that is not said"""


class EmbeddingFolder:
    """The learned words in a folder and its sub-folders, read when a prompt first names them."""

    def __init__(self, folder: str | Path | None, widths: Mapping[str, int]) -> None:
        """folder: None holds none. widths: of the token embeddings of each text encoder."""
        self._folder = None if folder is None else Path(folder)
        self._widths = dict(widths)
        self._kept: dict[Path, tuple[tuple[int, int], Vectors]] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file of this name; see `vectors`."""
        return self._found(name) is not None

    def vectors(self, name: str, encoder: str) -> Tensor:
        """(n, width) for the text encoder with this short name.

        name: of the file below the folder, with or without its ending or its folder, in any case.
        Raises EmbeddingMissing, UnsupportedModel for another family's, CorruptModelFile or
        UnsafeModelFile.
        """
        found = self._read(self._path(name))
        return found[encoder]

    def stamps(self, text: str) -> tuple[tuple[str, int, int], ...]:
        """Which versions of which files `text` names: equal stamps mean equal vectors."""
        stamps = []
        for words, _ in chain.from_iterable(read_weights(text)):
            for _, name in split_references(words, self.has):
                if name is not None:
                    path = self._path(name)
                    stamps.append((str(path), *_stamp(path)))
        return tuple(stamps)

    def _path(self, name: str) -> Path:
        path = self._found(name)
        if path is None:
            raise EmbeddingMissing(
                f"The embedding {name[:80]!r} is not in models/embeddings; put the file there, or "
                f"take embedding:{name[:80]} out of the prompt."
            )
        return path

    def _found(self, name: str) -> Path | None:
        wanted = name.casefold()
        for path in self._files():
            below = path.relative_to(self._folder or "").as_posix().casefold()
            stem = below.rpartition(".")[0]
            if wanted in (below, stem, below.rpartition("/")[2], stem.rpartition("/")[2]):
                return path
        return None

    def _files(self) -> list[Path]:
        if self._folder is None or not self._folder.is_dir():
            return []
        files, seen = [], set()
        for directory, folders, names in os.walk(self._folder, followlinks=True):
            real = os.path.realpath(directory)
            if real in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add(real)
            files += [Path(directory, name) for name in names]
        found = (path for path in files if path.suffix.lower() in SUFFIXES and path.is_file())
        return sorted(found, key=lambda path: path.as_posix().casefold())

    def _read(self, path: Path) -> Vectors:
        try:
            stamp = _stamp(path)
            kept = self._kept.get(path)
            if kept is None or kept[0] != stamp:
                vectors = read_embedding(open_weights(path))
                kept = self._kept[path] = stamp, self._fitting(vectors, path.name)
        except OSError as error:
            raise CorruptModelFile(
                f"The embedding {path.name} cannot be read from the disk; copy it there again, or "
                "take it out of the prompt."
            ) from error
        return kept[1]

    def _fitting(self, vectors: Vectors, name: str) -> Vectors:
        """The vectors by the encoders here. Raises UnsupportedModel if they are not for them."""
        widths = {encoder: tensor.shape[1] for encoder, tensor in vectors.items()}
        if widths == self._widths:
            return vectors
        if list(widths.values()) == list(self._widths.values()) and "" in vectors:
            return {next(iter(self._widths)): vectors[""]}
        if PAIRED in widths.items() and dict([PAIRED]) == self._widths:
            return {"g": vectors["g"]}  # the refiner has the second encoder of the base
        made_for, here = _family(widths), _family(self._widths)
        raise UnsupportedModel(
            f"The embedding {name} is made for {made_for}, but the checkpoint is of {here}; choose "
            f"one made for {here}, or take it out of the prompt."
        )


def _family(widths: Mapping[str, int]) -> str:
    """Words for the family whose encoders have these widths."""
    if {"l", "g"} <= widths.keys():
        real = {"l": 768, "g": 1280}
        return PAIR if dict(widths) == real else f"SDXL's plan with widths {_list(widths)}"
    if len(widths) == 1:
        encoder, width = next(iter(widths.items()))
        encoder = encoder or ENCODER_OF_WIDTH.get(width, "")
        if (encoder, width) in FAMILIES:
            return FAMILIES[encoder, width]
    return f"text encoders of width {_list(widths)}"


def _list(widths: Mapping[str, int]) -> str:
    return " and ".join(str(width) for _, width in sorted(widths.items(), reverse=True))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def read_embedding(file: WeightFile) -> Vectors:
    """The vectors in a file. Raises CorruptModelFile or UnsupportedModel."""
    named = {NAMED[key]: file[key] for key in file if key in NAMED}
    if not named:
        candidates = [key for key in file if _may_be_vectors(file[key])]
        if len(candidates) != 1:
            raise UnsupportedModel(
                f"{file.name} is no embedding: it should hold one set of vectors, or one for each "
                f"text encoder, and holds {len(candidates)}. Choose another file."
            )
        named = {"": file[candidates[0]]}
    vectors: Vectors = {}
    for encoder, tensor in named.items():
        if not _may_be_vectors(tensor):
            raise UnsupportedModel(
                f"{file.name} is no embedding: its vectors have the shape {tuple(tensor.shape)}. "
                "Choose another file."
            )
        with torch.inference_mode(False):
            rows = tensor.detach().float().reshape(-1, tensor.shape[-1]).clone()
        if not bool(torch.isfinite(rows).all()):
            raise CorruptModelFile(
                f"{file.name} holds invalid numbers, so it cannot be used. Choose another file."
            )
        vectors[encoder] = rows
    return vectors


def _may_be_vectors(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.ndim in (1, 2)
        and tensor.shape[-1] >= 16
        and 0 < tensor.numel() // tensor.shape[-1] <= VECTORS_MAX
    )
