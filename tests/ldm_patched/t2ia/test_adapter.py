"""The T2I-Adapter networks against diffusers, in both layouts of their files."""

import os
import re

import pytest
import torch

from ldm_patched.t2ia.adapter import Adapter, detect_adapter_config, from_original
from tests.support.engine_report import record
from tests.support.unet_oracle import randomise

KINDS = {
    "full": ("full_adapter", [32, 64, 128, 128], 2, 8),
    "SDXL": ("full_adapter_xl", [32, 64, 128, 128], 2, 16),
    "light": ("light_adapter", [32, 64, 128], 4, 8),
}


def diffusers_adapter(kind, in_channels=3):
    from diffusers import T2IAdapter

    adapter_type, channels, blocks, factor = KINDS[kind]
    model = T2IAdapter(in_channels, channels, blocks, factor, adapter_type)
    randomise(model, 3)
    return model.requires_grad_(False).eval()


def original_names(weights):
    """A file as the adapters' authors wrote it: two blocks a level, counted through."""
    named = {}
    for name, tensor in weights.items():
        plain = name.removeprefix("adapter.")
        if "body.0.out_conv.weight" in {n.removeprefix("adapter.") for n in weights}:
            plain = re.sub(r"body\.(\d)\.resnets\.", r"body.\1.body.", plain)
        else:
            plain = re.sub(
                r"body\.(\d)\.resnets\.(\d)",
                lambda m: f"body.{int(m[1]) * 2 + int(m[2])}",
                plain,
            )
            plain = re.sub(r"body\.(\d)\.in_conv", lambda m: f"body.{int(m[1]) * 2}.in_conv", plain)
        named[plain] = tensor
    return named


def ours(weights):
    names = from_original(list(weights))
    weights = {names[name]: w for name, w in weights.items()}
    config = detect_adapter_config({name: tuple(w.shape) for name, w in weights.items()})
    network = Adapter(config)
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("in_channels", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_gives_the_maps_that_diffusers_gives(kind, in_channels, layout):
    theirs = diffusers_adapter(kind, in_channels)
    weights = dict(theirs.state_dict())
    network = ours(original_names(weights) if layout == "original" else weights)
    hint = torch.rand(2, in_channels, 128, 192, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = network(hint), theirs(hint)
    largest = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)
    )
    if in_channels == 3 and layout == "diffusers":
        test = os.environ["PYTEST_CURRENT_TEST"]
        record("adapter", f"T2I-Adapter ({kind})", test, "diffusers", largest, 1e-5)
    assert largest < 1e-5
    assert network.config.in_channels == in_channels


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"conv_in.weight": (320, 192, 3, 3)},
        {"conv_in.weight": (320,), "body.0.resnets.0.block2.weight": (320, 320, 1, 1)},
        {"conv_in.weight": (320, 100, 3, 3), "body.0.resnets.0.block2.weight": (320, 320, 1, 1)},
        {"conv_in.weight": (320, 192, 3, 3), "body.3.resnets.0.block2.weight": (320, 320, 1, 1)},
    ],
)
def test_what_is_no_adapter_is_not_taken_for_one(shapes):
    assert detect_adapter_config(shapes) is None
