"""The noise on a small picture, and the network that enlarges it, against diffusers."""

import os

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from ldm_patched.ldm.modules.diffusionmodules.upscaling import (
    AbstractLowScaleModel,
    ImageConcatWithNoiseAugmentation,
)
from ldm_patched.modules import latent_formats
from ldm_patched.modules.diffusers_names import unet_names
from ldm_patched.modules.model_base import LoadReport, ModelType
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.supported_models import UNET_PREFIX
from tests.support.engine_report import record
from tests.support.unet_oracle import randomise

TOLERANCE = 1e-4


@pytest.mark.parametrize("t", [0, 20, 999])
def test_noise_is_added_as_diffusers_adds_it(t):
    model = AbstractLowScaleModel({"linear_start": 1e-4, "linear_end": 2e-2})
    library = DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="scaled_linear")
    x, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([t, t])
    found, wanted = model.q_sample(x, level, noise), library.add_noise(x, noise, level)
    difference = float((found - wanted).abs().max())
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("schedule", "low-scale noise", where, "diffusers DDPMScheduler", difference, 1e-5)
    assert difference <= 1e-5


def test_the_same_seed_gives_the_same_noise():
    model = ImageConcatWithNoiseAugmentation({}, max_noise_level=5)
    x = torch.zeros(8, 3, 4, 4)
    first, level = model(x, seed=3)
    assert level.shape == (8,)
    assert int(level.max()) < 5
    assert torch.equal(model(x, level, seed=3)[0], first)
    assert not torch.equal(model(x, level, seed=4)[0], first)


def test_the_upscaler_predicts_what_diffusers_predicts():
    library = UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        only_cross_attention=(True, True, False),
        attention_head_dim=8,
        cross_attention_dim=48,
        use_linear_projection=True,
        num_class_embeds=1000,
        layers_per_block=2,
    )
    randomise(library, seed=1)
    library.requires_grad_(False).eval()
    theirs = library.state_dict()
    names = unet_names(list(theirs))
    weights = {UNET_PREFIX + names[key]: weight for key, weight in theirs.items()}
    config = require_model_config(weights)
    assert config.name == "Stable Diffusion ×4 upscaler"
    assert config.unet_config.context_only_widths == (64,)
    model = config.get_model(weights, device="meta")
    assert model.load_model_weights(weights) == LoadReport()
    assert model.model_type is ModelType.V_PREDICTION
    assert isinstance(model.latent_format, latent_formats.SD_X4)
    levels = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")
    signal = levels.alphas_cumprod.double()
    sigmas = ((1 - signal) / signal).sqrt().float()
    torch.testing.assert_close(model.model_sampling.sigmas, sigmas, rtol=1e-3, atol=0)
    assert model.model_sampling.sigma_max.item() == pytest.approx(36.91, abs=0.01)
    g = torch.Generator().manual_seed(2)
    x, picture = torch.randn(1, 4, 16, 16, generator=g), torch.rand(1, 3, 16, 16, generator=g)
    context = torch.randn(1, 77, 48, generator=g)
    conds = model.extra_conds(
        noise=x, cross_attn=context, concat_image=picture, noise_level=30, seed=5
    )
    level = torch.tensor([30])
    noised, _ = model.low_scale(picture, level, 5)
    sigma = model.model_sampling.sigmas[500][None]
    scaled = model.model_sampling.calculate_input(sigma, x)
    with torch.no_grad():
        ours = model.apply_model(x, sigma, **{key: cond.cond for key, cond in conds.items()})
        output = library(
            torch.cat([scaled, noised], dim=1), 500, context, class_labels=level, return_dict=False
        )[0]
    wanted = model.model_sampling.calculate_denoised(sigma, output, x)
    difference = float((ours - wanted).abs().max() / wanted.abs().max())
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("family", "SD 2 ×4 upscaler", where, "diffusers UNet2DConditionModel", difference, 1e-4)
    assert difference <= TOLERANCE
