"""The resampler against diffusers' image projection."""

import pytest
import torch

from extras.resampler import Resampler
from tests.support.engine_report import agree
from tests.support.tiny_ip_adapter import filled, plus_shapes


def in_diffusers_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = {
        "0.norm1": "ln0",
        "0.norm2": "ln1",
        "0.to_q": "attn.to_q",
        "0.to_out": "attn.to_out.0",
        "1.0": "ff.0",
        "1.1": "ff.1.net.0.proj",
        "1.3": "ff.1.net.2",
    }
    out = {}
    for name, weight in weights.items():
        if not name.startswith("layers."):
            out[name] = weight
            continue
        _, n, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        if part == "0.to_kv":
            for half, w in zip("kv", weight.chunk(2), strict=True):
                out[f"layers.{n}.attn.to_{half}.weight"] = w
        else:
            out[f"layers.{n}.{parts[part]}.{kind}"] = weight
    return out


def test_resampler_is_diffusers_projection():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    weights = filled(plus_shapes(128, 3, 5, 40, 48))
    ours = Resampler(128, 3, 64, 2, 5, 40, 48, 4)
    ours.load_state_dict(weights)
    theirs = embeddings.IPAdapterPlusImageProjection(
        embed_dims=40,
        output_dims=48,
        hidden_dims=128,
        depth=3,
        dim_head=64,
        heads=2,
        num_queries=5,
    )
    theirs.load_state_dict(in_diffusers_names(weights))
    x = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        mine, right = ours(x), theirs(x)
    assert mine.shape == (2, 5, 48)
    assert right.std() > 0.3
    agree("adapter", "IP-Adapter plus, resampler", "diffusers", mine, right, 1e-4)


def test_tokens_differ_for_different_features():
    resampler = Resampler(64, 1, 64, 1, 3, 8, 16).requires_grad_(False)
    a, b = resampler(torch.zeros(1, 4, 8)), resampler(torch.ones(1, 4, 8))
    assert a.shape == (1, 3, 16)
    assert not torch.allclose(a, b)
