"""Other levels and predictions on a clone, against the formulas."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm_patched.contrib import external_model_advanced as advanced
from ldm_patched.modules import model_sampling as ms
from ldm_patched.modules.latent_formats import SDXL_Playground_2_5
from ldm_patched.modules.model_patcher import ModelPatcher


class Model(nn.Module):
    """As little of a model as the patches need."""

    def __init__(self) -> None:
        super().__init__()
        self.model_config = SimpleNamespace(sampling_settings={"linear_end": 0.012})
        self.model_sampling = ms.ModelSamplingDiscrete(self.model_config)
        self.latent_format = None


@pytest.fixture
def patcher() -> ModelPatcher:
    return ModelPatcher(Model())


def sampling_of(patcher: ModelPatcher) -> Any:
    return patcher.get_model_object("model_sampling")


X = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
OUT = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.4, 9.0])
S = SIGMA[:, None, None, None]


def test_discrete_predictions_by_name(patcher: ModelPatcher) -> None:
    wanted = {
        "eps": X - S * OUT,
        "v_prediction": X / (S**2 + 1) - OUT * S / (S**2 + 1).sqrt(),
        "x0": OUT,
    }
    for name, denoised in wanted.items():
        (clone,) = advanced.ModelSamplingDiscrete().patch(patcher, name)
        made = sampling_of(clone)
        torch.testing.assert_close(made.calculate_denoised(SIGMA, OUT, X), denoised)
        torch.testing.assert_close(made.sigmas, patcher.model.model_sampling.sigmas)
    assert sampling_of(patcher) is patcher.model.model_sampling
    with pytest.raises(ValueError, match="no sampling 'flow'; choose one of eps, v_pred"):
        advanced.ModelSamplingDiscrete().patch(patcher, "flow")


def test_pure_noise_at_the_end(patcher: ModelPatcher) -> None:
    (clone,) = advanced.ModelSamplingDiscrete().patch(patcher, "v_prediction", zsnr=True)
    assert sampling_of(clone).sigma_max.item() == pytest.approx(4518.76, rel=1e-4)
    assert sampling_of(patcher).sigma_max.item() == pytest.approx(14.614641, rel=1e-6)


def test_lcm(patcher: ModelPatcher) -> None:
    (clone,) = advanced.ModelSamplingDiscrete().patch(patcher, "lcm")
    made, full = sampling_of(clone), patcher.model.model_sampling
    kept = list(range(19, 1000, 20))
    assert torch.equal(made.sigmas, full.sigmas[kept])
    assert made.timestep(full.sigmas[[19, 20, 30, 999]]).tolist() == [19, 19, 39, 999]
    torch.testing.assert_close(made.sigma(torch.tensor([19, 39, 999])), full.sigmas[[19, 39, 999]])
    middle = made.sigma(torch.tensor([29.0]))
    torch.testing.assert_close(middle, (full.sigmas[19] * full.sigmas[39]).sqrt()[None])
    sigma = full.sigmas[[19, 999]]
    found = made.calculate_denoised(sigma, OUT, X)
    for i, t in enumerate((190.0, 9990.0)):
        skip, out = 0.25 / (t**2 + 0.25), t / math.sqrt(t**2 + 0.25)
        wanted = out * (X[i] - sigma[i] * OUT[i]) + skip * X[i]
        torch.testing.assert_close(found[i], wanted)


def test_continuous(patcher: ModelPatcher) -> None:
    node = advanced.ModelSamplingContinuousEDM()
    (clone,) = node.patch(patcher, "v_prediction", 120.0, 0.01)
    made = sampling_of(clone)
    assert made.sigma_max.item() == pytest.approx(120.0, rel=1e-5)
    assert made.sigma_min.item() == pytest.approx(0.01, rel=1e-5)
    assert "latent_format" not in clone.object_patches
    (clone,) = node.patch(patcher, "edm_playground_v2.5", 80.0, 0.002)
    made = sampling_of(clone)
    total = S**2 + 0.25
    wanted = X * 0.25 / total + OUT * S * 0.5 / total.sqrt()
    torch.testing.assert_close(made.calculate_denoised(SIGMA, OUT, X), wanted)
    assert isinstance(clone.get_model_object("latent_format"), SDXL_Playground_2_5)
    with pytest.raises(ValueError, match="below the highest"):
        node.patch(patcher, "eps", 1.0, 2.0)


def test_cascade(patcher: ModelPatcher) -> None:
    (clone,) = advanced.ModelSamplingStableCascade().patch(patcher, 2.0)
    assert sampling_of(clone).shift == 2.0
    assert isinstance(sampling_of(clone), ms.StableCascadeSampling)
    with pytest.raises(ValueError, match="above 0"):
        advanced.ModelSamplingStableCascade().patch(patcher, 0.0)


def rescaled_by_hand(multiplier: float, scale: float) -> Tensor:
    """The denoised picture by the paper's formulas, in float64, sample by sample."""
    x, cond, uncond, found = X.double(), OUT.double(), OUT.flip(0).double(), []
    for i, sigma in enumerate(SIGMA.double()):
        alpha = 1 / torch.sqrt(sigma**2 + 1)
        noisy = x[i] * alpha  # as the network sees it; its noise has deviation sigma · alpha
        v = [(alpha * noisy - d[i]) / (sigma * alpha) for d in (cond, uncond)]
        guided = v[1] + scale * (v[0] - v[1])
        rescaled = guided * v[0].std() / guided.std()
        v_final = multiplier * rescaled + (1 - multiplier) * guided
        found.append(alpha * noisy - sigma * alpha * v_final)
    return torch.stack(found)


@pytest.mark.parametrize("multiplier", [0.0, 0.7, 1.0])
def test_rescaled_guidance(patcher: ModelPatcher, multiplier: float) -> None:
    (clone,) = advanced.RescaleCFG().patch(patcher, multiplier)
    function = clone.model_options["sampler_cfg_function"]
    cond, uncond = X - OUT, X - OUT.flip(0)
    args = {"cond": cond, "uncond": uncond, "cond_scale": 5.0, "sigma": SIGMA, "input": X}
    found = X - function({**args, "model": None, "timestep": SIGMA})
    torch.testing.assert_close(
        found.double(), rescaled_by_hand(multiplier, 5.0), rtol=1e-4, atol=1e-4
    )
    if multiplier == 0.0:
        plain = OUT.flip(0) + 5.0 * (OUT - OUT.flip(0))
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert "sampler_cfg_function" not in patcher.model_options
