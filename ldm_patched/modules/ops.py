"""Layers whose weights may be stored in another precision or place than they compute in.

Two groups of the same names: `disable_weight_init` makes layers without spending time on random
numbers (a checkpoint fills them); `manual_cast` also casts weight and bias to the input's dtype
and device at each call, for weights that are stored in one precision and used in another.
Networks take a group as their `operations` argument, so that nothing is swapped process-wide.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def compressed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in an 8-bit dtype, multiplied so that its largest number is near the dtype's.

    The tensor's `stored_scale` is what to multiply by to have the weight again, a power of 2, so
    that nothing but the 8 bits rounds. Without it a large convolution's weights, 0.005 in size,
    would be among e4m3's last few steps above zero.
    """
    wide = weight.detach().float()
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    exponent = 0
    if 0.0 < largest < math.inf:
        exponent = math.floor(math.log2(torch.finfo(dtype).max / largest))
    stored = (wide * 2.0**exponent).to(dtype)
    stored.stored_scale = 2.0**-exponent
    return stored


def expanded(weight: Tensor, dtype: torch.dtype, scale_of: Tensor | None = None) -> Tensor:
    """What `compressed` made, in `dtype`; any other weight is only cast.

    scale_of: the parameter that the numbers are of, if `weight` is a copy of its data.
    """
    scale = getattr(weight if scale_of is None else scale_of, "stored_scale", 1.0)
    wide = weight.to(dtype)
    return wide if scale == 1.0 else wide * scale


def cast_bias_weight(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of `layer` in the dtype and on the device of `x`; no copy if they are so."""
    weight, bias = layer.weight, layer.bias
    if weight.dtype != x.dtype or weight.device != x.device:
        weight = expanded(weight.to(device=x.device), x.dtype, scale_of=weight)
        bias = None if bias is None else bias.to(device=x.device, dtype=x.dtype)
    return weight, bias


class disable_weight_init:  # noqa: N801 - the field's name for this group
    """Layers that are born uninitialised and compute in the precision of their weights."""

    # A large network calls these 1,500 times a step. Taking the weights out of `_parameters`
    # spares nn.Module's slow attribute lookup, 5 % of a step that waits for Python.

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            return None

        def forward(self, x: Tensor) -> Tensor:
            own = self._parameters
            return F.linear(x, own["weight"], own["bias"])

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            return None

    class Conv3d(nn.Conv3d):
        def reset_parameters(self) -> None:
            return None

    class GroupNorm(nn.GroupNorm):
        def reset_parameters(self) -> None:
            return None

    class LayerNorm(nn.LayerNorm):
        def reset_parameters(self) -> None:
            return None

        def forward(self, x: Tensor) -> Tensor:
            own = self._parameters
            return torch.layer_norm(x, self.normalized_shape, own["weight"], own["bias"], self.eps)

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            return None

    @classmethod
    def conv_nd(cls, dims: int, *args, **kwargs) -> nn.Module:
        """A convolution over `dims` (2 or 3) axes. Raises ValueError for any other number."""
        if dims == 2:
            return cls.Conv2d(*args, **kwargs)
        if dims == 3:
            return cls.Conv3d(*args, **kwargs)
        raise ValueError(f"Convolutions over {dims} axes are not used here; give 2 or 3.")


class manual_cast(disable_weight_init):  # noqa: N801 - the field's name for this group
    """The same layers, computing in the precision and on the device of their input."""

    class Linear(disable_weight_init.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, *cast_bias_weight(self, x))

    class Conv2d(disable_weight_init.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *cast_bias_weight(self, x))

    class Conv3d(disable_weight_init.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *cast_bias_weight(self, x))

    class GroupNorm(disable_weight_init.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = cast_bias_weight(self, x)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    class LayerNorm(disable_weight_init.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = cast_bias_weight(self, x)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    class Embedding(disable_weight_init.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            out = super().forward(ids)
            if out.dtype.itemsize > 1:
                return out
            return expanded(out, torch.float32, scale_of=self.weight)
