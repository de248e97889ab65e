"""FreeU against an independent rendering in float64 and, for its filter, diffusers'."""

import math
import os

import numpy as np
import pytest
import torch

from extras.guidance import freeu
from extras.guidance.freeu import FreeU, amplified, scaled_slow_part
from ldm_patched.modules.model_patcher import ModelPatcher
from tests.support.control_oracle import SDXL_LIKE, Inputs
from tests.support.engine_report import record
from tests.support.unet_oracle import make_unet


def spectrum_in_float64(x, scale):
    """The description, word for word: shift, scale a box of radius 1, shift back."""
    spectrum = np.fft.fftshift(np.fft.fft2(x, axes=(-2, -1)), axes=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    mask = np.ones(x.shape[-2:])
    mask[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = scale
    spectrum = np.fft.ifftshift(spectrum * mask, axes=(-2, -1))
    return np.fft.ifft2(spectrum, axes=(-2, -1)).real


def backbone_in_float64(h, b):
    mean = h.mean(1)
    out = h.copy()
    for n in range(len(h)):
        share = (mean[n] - mean[n].min()) / (mean[n].max() - mean[n].min())
        out[n, : h.shape[1] // 2] *= (b - 1.0) * share + 1.0
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (2, 2), (1, 6), (32, 48), (64, 1)])
@pytest.mark.parametrize("scale", [0.2, 0.95, 1.0, 1.7])
def test_the_slow_part_is_that_of_the_spectrum(size, scale):
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1)) + 0.5
    wanted = spectrum_in_float64(x.double().numpy(), scale)
    found = scaled_slow_part(x, scale).double().numpy()
    assert np.abs(found - wanted).max() < 1e-5


def test_the_slow_part_is_that_of_diffusers():
    from diffusers.utils.torch_utils import fourier_filter

    x = torch.randn(2, 6, 16, 24, generator=torch.Generator().manual_seed(1))
    wanted = fourier_filter(x, threshold=1, scale=0.6)
    difference = float((scaled_slow_part(x, 0.6) - wanted).abs().max())
    test = os.environ["PYTEST_CURRENT_TEST"]
    record("guidance", "FreeU's filter", test, "diffusers", difference, 1e-5)
    assert difference < 1e-5


@pytest.mark.parametrize("b", [0.8, 1.0, 1.3])
def test_the_backbone_grows_where_it_is_strong(b):
    h = torch.randn(3, 8, 6, 10, generator=torch.Generator().manual_seed(2))
    wanted = backbone_in_float64(h.double().numpy(), b)
    difference = float(np.abs(amplified(h, b).double().numpy() - wanted).max())
    test = os.environ["PYTEST_CURRENT_TEST"]
    if b == 1.3:
        record("guidance", "FreeU v2's backbone", test, "float64 rendering", difference, 1e-5)
    assert difference < 1e-5
    assert torch.equal(amplified(h, b)[:, 4:], h[:, 4:])


def test_even_features_stay_finite():
    assert torch.equal(amplified(torch.ones(1, 4, 3, 3), 1.5), torch.ones(1, 4, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_its_kind(dtype):
    h = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for function in (amplified, scaled_slow_part):
        found = function(h.to(dtype), 1.2)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), function(h, 1.2), rtol=0.02, atol=0.02)


class Holder(torch.nn.Module):
    """What a ModelPatcher holds, with a UNet in it."""

    def __init__(self):
        super().__init__()
        self.diffusion_model = make_unet(SDXL_LIKE)


def test_it_acts_in_the_two_widest_stages_and_vanishes_with_its_clone():
    patcher, inputs = ModelPatcher(Holder()), Inputs(SDXL_LIKE)
    unet = patcher.model.diffusion_model

    def run(on):
        options = on.model_options["transformer_options"]
        with torch.no_grad():
            return unet(inputs.x, inputs.t, inputs.context, inputs.y, transformer_options=options)

    plain, clone, off = run(patcher), patcher.clone(), patcher.clone()
    seen = []
    clone.set_model_output_block_patch(lambda h, skip, o: (seen.append(h.shape[1]), (h, skip))[1])
    FreeU(1.3, 1.4, 0.9, 0.2).attach(clone)
    FreeU(1.0, 1.0, 1.0, 1.0).attach(off)
    assert float((run(clone) - plain).abs().max()) > 0.01
    torch.testing.assert_close(run(off), plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(patcher), plain)
    assert set(seen) == {256, 128, 64}
    assert math.isclose(FreeU().b2, 1.02)


def test_waves_of_a_size_are_made_once():
    first = freeu._waves(6, 8, torch.device("cpu"))
    assert freeu._waves(6, 8, torch.device("cpu")) is first
    assert freeu._waves(8, 6, torch.device("cpu")) is not first
    assert not first.is_inference()
