"""The autoencoder strip by strip: the very picture of the whole, in a fraction of its memory.

Tiles that are decoded apart see each other neither through norms nor through attention, and show
seams that blending only hides. Here every layer runs over the whole picture before the next one
does, on a strip of rows at a time with the rows around it that its convolution reads. Norms take
their statistics over all strips, and the attention, at an eighth of the size, sees everything. So
nothing is blended or computed twice; the result is that of the whole picture but for rounding.

A video decoder also looks from frame to frame, which is not done here: it decodes frames whole.

Maps between two layers lie on `store`, in the host's memory where the device has none to spare.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.ldm.modules.diffusionmodules.model import Interrupt, ResnetBlock, call

STRIP_NUMBERS = 2**24
"""Numbers in the widest map of a strip, 32 MB in half precision."""

Rows = Callable[[int, int], Tensor]
"""The rows [from, to) of a layer's input, on the device."""


class StripCoder:
    """Encodes or decodes one picture at a time."""

    def __init__(
        self,
        model: AutoencoderKL,
        *,
        device: torch.device,
        store: torch.device,
        interrupt: Interrupt = None,
    ) -> None:
        """device: where the model is and computes. interrupt: called before each strip."""
        self._model, self._device, self._store = model, device, store
        self._interrupt = interrupt

    def decode(self, z: Tensor) -> Tensor:
        """As AutoencoderKL.decode; on `store`. Raises ValueError for a video decoder."""
        if self._model.config.video:
            raise ValueError("The frames of a video are not decoded in strips.")
        decoder = self._model.decoder
        h = decoder.mid(decoder.conv_in(self._model.post_quant_conv(z)), self._interrupt)
        h = self._keep(h)
        for stage in reversed(decoder.up):
            for block in stage.block:
                h = self._resnet(block, h)
            if hasattr(stage, "upsample"):
                h = self._upsample(stage.upsample.conv, h)
        return self._conv(decoder.conv_out, self._normed(decoder.norm_out, h), h.shape[2])

    def encode(self, x: Tensor) -> Tensor:
        """As AutoencoderKL.encode; x is on `store`."""
        encoder = self._model.encoder
        h = self._conv(encoder.conv_in, self._plain(x), x.shape[2])
        for stage in encoder.down:
            for block in stage.block:
                h = self._resnet(block, h)
            if hasattr(stage, "downsample"):
                # one more row and column of zeros, at the bottom and the right only
                conv = stage.downsample.conv
                h = self._conv(conv, self._plain(h), h.shape[2], stride=2, before=0)
        h = self._keep(encoder.mid(h.to(self._device), self._interrupt))
        h = self._conv(encoder.conv_out, self._normed(encoder.norm_out, h), h.shape[2])
        moments = self._model.quant_conv(h.to(self._device))
        return moments[:, : self._model.config.embed_dim]

    # --- layers ----------------------------------------------------------------------------------

    def _resnet(self, block: ResnetBlock, x: Tensor) -> Tensor:
        """A residual block; `x` is written over where its width stays."""
        height, shortcut = x.shape[2], block.nin_shortcut
        h = self._conv(block.conv1, self._normed(block.norm1, x), height)
        rows = self._plain(x)

        def skip(start: int, stop: int) -> Tensor:
            return rows(start, stop) if shortcut is None else shortcut(rows(start, stop))

        normed = self._normed(block.norm2, h)
        return self._conv(
            block.conv2, normed, height, add=skip, out=x if shortcut is None else None
        )

    def _upsample(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        rows = self._plain(x)

        def doubled(start: int, stop: int) -> Tensor:
            first = start // 2
            wide = F.interpolate(rows(first, -(-stop // 2)), scale_factor=2.0, mode="nearest")
            return wide[:, :, start - 2 * first : stop - 2 * first]

        return self._conv(conv, doubled, 2 * x.shape[2])

    def _normed(self, norm: nn.GroupNorm, x: Tensor) -> Rows:
        """SiLU of the normed rows; the statistics are those of all of `x`."""
        rows, groups, channels = self._plain(x), norm.num_groups, x.shape[1]
        count, mean, squares = 0, torch.zeros(1), torch.zeros(1)
        for start, stop in self._strips(x.shape[2], x.shape[1] * x.shape[3]):
            call(self._interrupt)
            part = rows(start, stop).float().reshape(groups, -1)
            variance, middle = torch.var_mean(part, dim=1, correction=0)
            # Two sets of numbers joined (Chan et al. 1983), which loses nothing to cancellation;
            # on the host, since not every device has float64.
            middle, variance, more = middle.cpu().double(), variance.cpu().double(), part.shape[1]
            shift, total = middle - mean, count + more
            squares = squares + variance * more + shift**2 * (count * more / total)
            mean = mean + shift * (more / total)
            count = total
        spread = (squares / count + norm.eps).rsqrt()
        each = channels // groups
        factor = norm.weight.cpu().double() * spread.repeat_interleave(each)
        offset = norm.bias.cpu().double() - mean.repeat_interleave(each) * factor
        factor, offset = (
            t.float().to(self._device).reshape(1, channels, 1, 1) for t in (factor, offset)
        )

        def normed(start: int, stop: int) -> Tensor:
            part = rows(start, stop)
            return F.silu((part.float() * factor).add_(offset).to(part.dtype), inplace=True)

        return normed

    def _conv(
        self,
        conv: nn.Conv2d,
        rows: Rows,
        height: int,
        *,
        stride: int = 1,
        before: int = 1,
        add: Rows | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """A 3×3 convolution of `height` rows, padded by one at each side.

        before: rows and columns of zeros at the top and the left. add: what is added to the
        result's rows. out: where the result goes, if not into a new map.
        """
        wide = max(conv.in_channels, conv.out_channels)
        lines = (height + before + 1 - 3) // stride + 1
        width = rows(0, 1).shape[3]
        for start, stop in self._strips(lines, wide * width * stride):
            call(self._interrupt)
            first, last = start * stride - before, (stop - 1) * stride - before + 3
            part = rows(max(first, 0), min(last, height))
            part = F.pad(part, (before, 1, max(0, -first), max(0, last - height)))
            made = F.conv2d(part, conv.weight, conv.bias, stride)
            if add is not None:
                made += add(start, stop)
            if out is None:
                out = torch.empty(
                    (*made.shape[:2], lines, made.shape[3]),
                    dtype=made.dtype,
                    device=self._store,
                    memory_format=_format_of(made),
                )
            out[:, :, start:stop] = made
        return out

    def _plain(self, x: Tensor) -> Rows:
        return lambda start, stop: x[:, :, start:stop].to(self._device)

    def _keep(self, x: Tensor) -> Tensor:
        return x.to(self._store)

    @staticmethod
    def _strips(height: int, row: int) -> list[tuple[int, int]]:
        """(from, to) of each strip; row: numbers in one row."""
        step = max(1, STRIP_NUMBERS // row)
        return [(start, min(start + step, height)) for start in range(0, height, step)]


def _format_of(x: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format
