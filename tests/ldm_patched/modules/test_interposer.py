"""The net between two families' latents, against PyTorch's own layers in float64."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm_patched.modules.interposer import load_interposer
from tests.support.engine_report import agree
from tests.support.tiny_interposer import interposer_weights

LATENTS = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1)) * 8


def filled(layer, weights, name):
    layer.load_state_dict(
        {
            key.removeprefix(f"{name}."): weight
            for key, weight in weights.items()
            if key.startswith(f"{name}.")
        }
    )
    return layer.double().eval()


def by_layers(weights, latents, width, blocks):
    """Head, residual blocks, norm and tail, each a layer of PyTorch's."""

    def conv(name):
        c_out, c_in = weights[f"{name}.weight"].shape[:2]
        return filled(nn.Conv2d(c_in, c_out, 3, padding=1), weights, name)

    def long(name, x):
        silu = nn.functional.silu
        return conv(f"{name}.4")(silu(conv(f"{name}.2")(silu(conv(f"{name}.0")(x)))))

    x = latents.double()
    x = torch.relu(long("head.long", x) + conv("head.short")(x))
    for place in range(1, blocks + 1):
        x = filled(nn.BatchNorm2d(width), weights, f"core.{place}.norm")(x)
        x = torch.relu(long(f"core.{place}.long", x) + x)
    x = filled(nn.BatchNorm2d(width), weights, f"core.{blocks + 1}")(x)
    return conv("tail")(nn.functional.silu(x))


@pytest.mark.parametrize(("width", "blocks"), [(8, 2), (64, 12)])
def test_it_is_its_layers(tmp_path, width, blocks):
    weights = interposer_weights(width, blocks)
    save_file(weights, tmp_path / "net.safetensors")
    with torch.no_grad():
        expected = by_layers(weights, LATENTS, width, blocks)
    found = load_interposer(tmp_path / "net.safetensors")(LATENTS)
    assert found.dtype == torch.float32 and found.shape == LATENTS.shape
    most = expected.abs().max()
    name, reference = f"latent interposer, {blocks} blocks", "PyTorch's layers in float64"
    agree("family", name, reference, found / most.float(), expected / most, 1e-5)


def test_counters_of_the_training_may_be_missing(tmp_path):
    weights = interposer_weights(8, 1)
    kept = {name: w for name, w in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(weights)
    for name, part in (("whole", weights), ("kept", kept)):
        save_file(part, tmp_path / f"{name}.safetensors")
    whole, without = (load_interposer(tmp_path / f"{n}.safetensors") for n in ("whole", "kept"))
    assert torch.equal(whole(LATENTS), without(LATENTS))
