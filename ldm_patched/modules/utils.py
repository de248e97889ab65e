"""Reading weight files, and small work on state dicts and large pictures."""

import logging
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_patched.modules.errors import CorruptModelFile, is_out_of_memory
from ldm_patched.modules.model_base import LoadReport, set_weight
from ldm_patched.modules.weight_file import open_weights, read_metadata

logger = logging.getLogger(__name__)


def load_torch_file(
    path: str | Path, safe_load: bool = True, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """All tensors of a weight file by name, whatever its extension says.

    On the CPU (`device` None) they are the file's own memory, in its precision: nothing is read
    until it is used. safe_load: there is no unsafe way, False raises ValueError.
    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError; never changes the file.
    """
    if not safe_load:
        raise ValueError("Weight files are only loaded the safe way; leave safe_load as it is.")
    file = open_weights(path)
    if device is None or torch.device(device).type == "cpu":
        return dict(file.items())
    return {key: file.load(key).to(device) for key in file}


def load_metadata(path: str | Path) -> dict[str, str]:
    """See weight_file.read_metadata."""
    return read_metadata(path)


def load_weights(
    module: nn.Module, weights: MutableMapping[str, Tensor], *, ignore: Iterable[str] = ()
) -> LoadReport:
    """Move tensors out of `weights` into the parameters and buffers of `module` with their names.

    A tensor is used as it is, without a copy; one with as many numbers in another shape (a 1×1
    convolution stored as a matrix, say) is viewed in the right one. ignore: names to drop silently.
    """
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    ignored = set(ignore)
    unexpected, wrong = [], []
    for name in list(weights):
        if name not in places:
            del weights[name]
            if name not in ignored:
                unexpected.append(name)
            continue
        shape = places.pop(name).shape
        weight = weights.pop(name)
        if weight.shape != shape:
            if weight.squeeze().shape != torch.Size([n for n in shape if n != 1]):
                wrong.append(name)
                continue
            weight = weight.view(shape)
        set_weight(module, name, weight)
    return LoadReport(tuple(places), tuple(unexpected), tuple(wrong))


@contextmanager
def sound_shapes(file_name: str) -> Iterator[None]:
    """Around work with the shapes in a file, which can be anything: what they break is the file's
    fault, but not that memory runs out. Raises CorruptModelFile."""
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise CorruptModelFile(
            f"{file_name} is damaged: the shapes of its weights do not fit together. "
            "Download it again."
        ) from error


@torch.inference_mode()
def is_sound(module: nn.Module) -> bool:
    """Whether every weight is a finite number. Reads all of them."""
    return all(bool(torch.isfinite(p.float()).all()) for p in module.parameters())


def not_numbers(file_name: str, part: str) -> CorruptModelFile:
    """The error for a file whose `part` (words for a person) holds NaN or infinity."""
    return CorruptModelFile(
        f"{file_name} is damaged: weights of its {part} are no valid numbers. Download it again, "
        "or choose another file."
    )


def require_complete(report: LoadReport, file_name: str, part: str) -> None:
    """Raise CorruptModelFile if `part` (words for a person) of the file lacks weights or holds
    some of a wrong shape; log what it holds besides."""
    lacking = len(report.missing) + len(report.wrong_shape)
    if lacking:
        example = (*report.missing, *report.wrong_shape)[0]
        raise CorruptModelFile(
            f"{file_name} is damaged: {lacking} weights of its {part} are missing or have a wrong "
            f"shape, {example} for one. Download it again."
        )
    if report.unexpected:
        logger.warning(
            "%s: %d unknown weights in its %s were left out: %s",
            file_name,
            len(report.unexpected),
            part,
            ", ".join(report.unexpected[:5]),
        )
