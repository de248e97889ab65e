"""Reading weight files, and small work on state dicts and large pictures."""

import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_patched.modules.errors import CorruptModelFile
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
    fault. Raises CorruptModelFile."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptModelFile(
            f"{file_name} is damaged: the shapes of its weights do not fit together. "
            "Download it again."
        ) from error


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


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` begin so that they cover `length` and share at least `overlap`.

    The last one ends at the end. One tile if `length` fits in it.
    """
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]


def _feather(length: int, overlap: int, *, first: bool, last: bool) -> Tensor:
    """Weights that rise over `overlap` at an inner edge and fall over it at the other."""
    ramp = torch.arange(1, length + 1, dtype=torch.float32) / (overlap + 1)
    rise = torch.ones(length) if first else ramp.clamp(max=1.0)
    fall = torch.ones(length) if last else ramp.clamp(max=1.0).flip(0)
    return torch.minimum(rise, fall)


@torch.inference_mode()
def tiled_map(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: int,
    overlap: int,
    scale: float,
    before_tile: Callable[[], object] | None = None,
) -> Tensor:
    """`function` of (B, C, H, W), applied tile by tile and blended where tiles overlap.

    tile, overlap: in positions of `x`. scale: of the sides by `function`; H, W, tile and overlap
    times it must be whole. before_tile: called before each tile; may raise to stop. The result is
    float32 on the CPU.
    """
    height, width = x.shape[-2:]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    blend = int(overlap * scale)
    total = weight = torch.empty(0)
    for top in rows:
        for left in columns:
            if before_tile is not None:
                before_tile()
            out = function(x[:, :, top : top + tile, left : left + tile]).float().cpu()
            if not total.numel():
                total = out.new_zeros(*out.shape[:2], int(height * scale), int(width * scale))
                weight = out.new_zeros(total.shape[-2:])
            tall, wide = out.shape[-2:]
            down = _feather(tall, blend, first=top == rows[0], last=top == rows[-1])
            across = _feather(wide, blend, first=left == columns[0], last=left == columns[-1])
            mask = down[:, None] * across
            y, x0 = int(top * scale), int(left * scale)
            total[..., y : y + tall, x0 : x0 + wide] += out * mask
            weight[y : y + tall, x0 : x0 + wide] += mask
    return total / weight
