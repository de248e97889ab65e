"""The one attention against softmax written out, with its masks."""

import math

import pytest
import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.attention import (
    GEGLU,
    CrossAttention,
    SpatialTransformer,
    optimized_attention,
)
from tests.support.unet_oracle import randomise


def by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention in float64; bias (N, M), (B, N, M) or (B, heads, N, M) is added."""
    q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + (bias[:, None] if bias.ndim == 3 else bias)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", [None, (5, 7), (2, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("kind", ["float", "bool"])
def test_attention(shape: tuple[int, ...] | None, kind: str) -> None:
    q, k, v = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    if shape is None:
        mask, bias = None, None
    elif kind == "float":
        mask = bias = torch.randn(shape)
    else:
        mask = torch.rand(shape) > 0.4
        mask[..., 0] = True
        bias = torch.zeros(shape).masked_fill(~mask, -math.inf)
    found = optimized_attention(q, k, v, 3, mask)
    torch.testing.assert_close(found.double(), by_hand(q, k, v, 3, bias), rtol=1e-4, atol=1e-5)


def test_a_value_of_its_own_is_attended() -> None:
    layer = CrossAttention(16, 12, heads=2, dim_head=8, operations=nn)
    x, context, value = torch.randn(1, 3, 16), torch.randn(1, 4, 12), torch.randn(1, 4, 12)
    wanted = layer.to_out(
        optimized_attention(layer.to_q(x), layer.to_k(context), layer.to_v(value), 2)
    )
    torch.testing.assert_close(layer(x, context, value), wanted)
    assert not torch.allclose(layer(x, context), wanted)


def test_the_gate_is_the_second_half() -> None:
    layer = GEGLU(3, 4, operations=nn)
    x = torch.randn(2, 3)
    a, b = layer.proj(x).chunk(2, -1)
    wanted = a * (b * 0.5 * (1 + torch.erf(b / math.sqrt(2))))
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)


def test_linear_and_convolution_projections_are_the_same_map() -> None:
    linear = SpatialTransformer(32, 2, 16, 1, 8, use_linear=True, operations=nn)
    conv = SpatialTransformer(32, 2, 16, 1, 8, use_linear=False, operations=nn)
    randomise(linear, 0)
    weights = linear.state_dict()
    for name in ("proj_in.weight", "proj_out.weight"):
        weights[name] = weights[name][:, :, None, None]
    conv.load_state_dict(weights)
    x, context = torch.randn(2, 32, 4, 6), torch.randn(2, 5, 8)
    torch.testing.assert_close(conv(x, context), linear(x, context))
    with torch.no_grad():
        torch.testing.assert_close(conv(x, context), linear(x, context))
