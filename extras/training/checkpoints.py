"""Checkpoints of a run: folders of safetensors files of at most 15 MB, written all or nothing.

A checkpoint is a flat dict of tensors and a small JSON record. It is written beside its place and
renamed into it, so that one that is there is whole; each file's hash is checked when it is read.
Files stay small so that a run can be carried on from wherever small files can go.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from extras.training.errors import CheckpointError, TrainingFolderError
from extras.training.writing import half, reason, sweep_unfinished, writing

FILE_BYTES = 15 * 2**20
KEPT = 2
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".writing-"


def prepare_folder(folder: Path, option: str = "--folder") -> None:
    """Make the folder that `option` names, of a run or for its results.

    Raises TrainingFolderError if it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingFolderError(
            f"The folder {folder.name!r} cannot be written to ({reason(error)}): give another one "
            f"with {option}, or change its permissions."
        ) from error


def drop_unfinished(folder: Path) -> None:
    """Remove checkpoints that were never finished, save one that another process is writing."""
    sweep_unfinished(folder, _UNFINISHED)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write a checkpoint and drop all but the last two. Raises TrainingFolderError."""
    place = folder / f"step-{step:08d}"
    beside = folder / f"{_UNFINISHED}{os.getpid()}"
    remedy = "free some space or give another --folder; the checkpoints that are there are whole."
    with writing(f"A checkpoint in {folder.name!r}", remedy):
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            hashes = {}
            for number, part in enumerate(_parts(tensors)):
                name = f"part-{number:03d}.safetensors"
                save_file(part, beside / name)
                hashes[name] = hashlib.sha256((beside / name).read_bytes()).hexdigest()
            text = json.dumps({"step": step, "files": hashes, "record": dict(record)}, indent=1)
            (beside / "checkpoint.json").write_text(text, encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            os.replace(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most FILE_BYTES; one that is larger alone is a group."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor.clone()
        size += tensor.nbytes
    if part:
        yield part


def load_checkpoint(place: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """(step, tensors, record) of a checkpoint. Raises CheckpointError if it is damaged."""
    try:
        entry = json.loads((place / "checkpoint.json").read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for name, digest in entry["files"].items():
            path = place / Path(name).name
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise CheckpointError(_damaged(place, f"{name} has changed"))
            tensors.update(load_file(path))
        return int(entry["step"]), tensors, entry["record"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(_damaged(place, "a file is missing or unreadable")) from error


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights as float16, in which they are the same from a file of either precision."""
    digest = hashlib.sha256()
    for name, weight in half(weights).items():
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_record(place: Path, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare a checkpoint's record with a run's; "frozen" counts only where the former has it.

    Raises CheckpointError.
    """
    pages, now = _pages(record), _pages(wanted)
    if "primer" in pages:
        raise CheckpointError(
            f"The checkpoint {place.name} is of a picture book that has changed since, so this run "
            "cannot go on. A model file that it wrote can be begun with: give that to --start-from "
            "and another --folder."
        )
    pictures = now.get("pictures", [])
    if "folder" in pages:  # once that was told of them, but not what their files hold
        pictures = [picture[:3] for picture in pictures]
        wanted = _with_pages(wanted, folder=pages["folder"])
    alike = [_with_pages({**one, "frozen": ""}, pictures=()) for one in (record, wanted)]
    if alike[0] != alike[1]:
        raise other_settings(place, record)
    if pages.get("pictures", []) != pictures:
        raise CheckpointError(
            f"The checkpoint {place.name} was made with other pictures or captions than those that "
            "are there now: put those back, or give another --folder."
        )
    if record.get("frozen", wanted.get("frozen")) != wanted.get("frozen"):
        raise CheckpointError(
            f"The checkpoint {place.name} was made with another autoencoder, other text encoders, "
            "another detector or another image encoder than those that are here: resume with the "
            "files that the run began with, or give another --folder."
        )


def other_settings(place: Path, record: Mapping[str, Any]) -> CheckpointError:
    """What to raise for a checkpoint that another command line made."""
    if "pictures" in _pages(record):  # with captions, they are many words
        record = _with_pages(record, pictures=len(_pages(record)["pictures"]))
    return CheckpointError(
        f"The checkpoint {place.name} is of another model or other settings (it was made "
        f"with {json.dumps(record)}): resume with those, or give another --folder."
    )


def _pages(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a record says of the pages; nothing for a stage without any."""
    pages: Mapping[str, Any] = record.get("identity", {}).get("pages", {})
    return pages


def _with_pages(record: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A record that says something else of the pages."""
    pages = {**_pages(record), **changes}
    return {**record, "identity": {**record.get("identity", {}), "pages": pages}}


def _damaged(place: Path, why: str) -> str:
    return (
        f"The checkpoint {place.name} is damaged ({why}): delete its folder to go on from the one "
        "before, or start again in an empty folder."
    )


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Tensor]:
    """An optimiser's state by parameter name; names: id of each parameter to its name."""
    found = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            found[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value)
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> None:
    """Put the state back that `flatten_optimizer` gave of a fused one. parameters: by name."""
    for flat, value in saved.items():
        name, key = flat.rsplit("|", 1)
        parameter = parameters[name]
        # In the parameter's own memory layout, since a fused optimiser walks through raw memory;
        # and beside it, the step counters too.
        place = torch.empty_like(parameter if value.ndim else value, device=parameter.device)
        optimizer.state[parameter][key] = place.detach().copy_(value)
