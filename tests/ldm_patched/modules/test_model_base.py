"""What a model makes of sizes, sigmas and precisions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import latent_formats, model_base
from ldm_patched.modules.conds import CONDCrossAttn, CONDRegular
from ldm_patched.modules.model_base import BaseModel, ModelType, set_weight
from tests.support.unet_oracle import randomise

CONFIG = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    transformer_depth=(0, 1),
    transformer_depth_middle=1,
    transformer_depth_output=(1, 1, 0, 0),
    context_dim=48,
    adm_in_channels=64 + 6 * 256,
    time_embed_dim=128,
)


def family(**changes: object) -> SimpleNamespace:
    known = {
        "unet_config": CONFIG,
        "latent_format": latent_formats.SDXL(),
        "unet_dtype": None,
        "manual_cast_dtype": None,
        "sampling_settings": {},
    }
    return SimpleNamespace(**{**known, **changes})


def make(model_type: ModelType = ModelType.EPS, **changes: object) -> BaseModel:
    model = model_base.SDXL(family(**changes), model_type)
    randomise(model.diffusion_model, 0)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return make()


def embedded(number: float) -> list[float]:
    angles = [number * 10000 ** (-i / 128) for i in range(128)]
    return [math.cos(a) for a in angles] + [math.sin(a) for a in angles]


def test_sizes_are_embedded_in_the_order_of_training(model: BaseModel) -> None:
    pooled = torch.randn(2, 64)
    y = model.encode_adm(
        pooled_output=pooled,
        width=1216,
        height=832,
        crop_w=24,
        crop_h=8,
        target_width=1152,
        target_height=896,
        anything_else=None,
    )
    assert y.shape == (2, model.adm_channels)
    assert torch.equal(y[:, :64], pooled)
    wanted = [v for n in (832, 1216, 8, 24, 896, 1152) for v in embedded(n)]
    for row in y:
        np.testing.assert_allclose(row[64:].numpy(), wanted, atol=1e-3)


def test_sizes_have_defaults(model: BaseModel) -> None:
    short = model.encode_adm(torch.zeros(1, 64), width=640, height=512)
    full = model.encode_adm(
        torch.zeros(1, 64), 640, 512, crop_w=0, crop_h=0, target_width=640, target_height=512
    )
    assert torch.equal(short, full)
    assert torch.equal(model.encode_adm(width=640, height=512), full)


def test_the_refiner_takes_a_score() -> None:
    config = UNetConfig(**{**CONFIG.__dict__, "adm_in_channels": 64 + 5 * 256})
    model = model_base.SDXLRefiner(family(unet_config=config))
    y = model.encode_adm(torch.zeros(1, 64), width=1024, height=768)
    wanted = [v for n in (768, 1024, 0, 0, 6.0) for v in embedded(n)]
    np.testing.assert_allclose(y[0, 64:].numpy(), wanted, atol=1e-3)
    negative = model.encode_adm(torch.zeros(1, 64), prompt_type="negative")
    np.testing.assert_allclose(negative[0, -256:].numpy(), embedded(2.5), atol=1e-3)


def test_conditions_become_inputs(model: BaseModel) -> None:
    text = torch.randn(1, 77, 48)
    conds = model.extra_conds(cross_attn=text, pooled_output=torch.zeros(1, 64), width=64)
    assert isinstance(conds["y"], CONDRegular)
    assert isinstance(conds["c_crossattn"], CONDCrossAttn)
    assert conds["c_crossattn"].cond is text


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 4, 8, 8, generator=g) * 5
    sigma = torch.tensor([0.5, 9.0])[:batch]
    text, y = torch.randn(batch, 77, 48, generator=g), torch.randn(batch, 1600, generator=g)
    return x, sigma, {"c_crossattn": text, "y": y}


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.V_PREDICTION])
def test_denoising_is_scaling_prediction_and_combination(kind: ModelType) -> None:
    model = make(kind)
    x, sigma, conds = inputs()
    s = sigma[:, None, None, None]
    with torch.no_grad():
        found = model.apply_model(x, sigma, **conds)
        prediction = model.diffusion_model(
            x / (s**2 + 1).sqrt(),
            model.model_sampling.timestep(sigma).float(),
            context=conds["c_crossattn"],
            y=conds["y"],
        )
    if kind is ModelType.EPS:
        wanted = x - s * prediction
    else:
        wanted = x / (s**2 + 1) - prediction * s / (s**2 + 1).sqrt()
    torch.testing.assert_close(found, wanted)
    assert model.diffusion_model.current_step == pytest.approx(
        1 - model.model_sampling.timestep(sigma[:1]).item() / 999
    )


@pytest.mark.parametrize("kind", list(ModelType))
def test_the_network_knows_how_far_sampling_is_whatever_it_is_told_of_noise(kind) -> None:
    model = make(kind)
    sampling = model.model_sampling
    _, _, conds = inputs()
    x = torch.zeros(1, 4, 8, 8)
    conds = {name: value[:1] for name, value in conds.items()}
    for percent in (0.0, 0.3, 0.8, 1.0):
        sigma = torch.tensor([sampling.percent_to_sigma(percent)])
        sigma = sigma.clamp(float(sampling.sigma_min), float(sampling.sigma_max)).float()
        with torch.no_grad():
            model.apply_model(x, sigma, **conds)
        assert model.diffusion_model.current_step == pytest.approx(percent, abs=5e-3)


def test_extra_channels_are_joined_to_the_input() -> None:
    model = make(unet_config=UNetConfig(**{**CONFIG.__dict__, "in_channels": 6}))
    x, sigma, conds = inputs()
    more = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        found = model.apply_model(x, sigma, c_concat=more, **conds)
        other = model.apply_model(x, sigma, c_concat=-more, **conds)
    assert found.shape == x.shape
    assert not torch.allclose(found, other)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_computing_in_another_precision_than_stored(stored: torch.dtype, model: BaseModel) -> None:
    cast = make(unet_dtype=stored, manual_cast_dtype=torch.float32)
    x, sigma, conds = inputs()
    assert cast.get_dtype() == stored
    with torch.no_grad():
        found, wanted = (m.apply_model(x, sigma, **conds) for m in (cast, model))
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_half_precision_gives_float32_latents(model: BaseModel) -> None:
    half = make(unet_dtype=torch.bfloat16)
    x, sigma, conds = inputs()
    with torch.no_grad():
        found, wanted = (m.apply_model(x, sigma, **conds) for m in (half, model))
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    "kind", [latent_formats.SD15, latent_formats.SDXL, latent_formats.SDXL_Playground_2_5]
)
def test_latent_formats_go_round(kind: type[latent_formats.LatentFormat]) -> None:
    x = torch.randn(2, 4, 3, 3)
    made = kind()
    torch.testing.assert_close(made.process_out(made.process_in(x)), x)
    assert not torch.allclose(made.process_in(x), x)


def test_the_scale_of_sdxl(model: BaseModel) -> None:
    assert model.process_latent_in(torch.tensor(2.0)).item() == pytest.approx(0.2605)
    assert model.process_latent_out(torch.tensor(0.13025)).item() == pytest.approx(1.0)


def test_memory_grows_with_pixels_and_precision(model: BaseModel) -> None:
    small = model.memory_required((1, 4, 32, 32))
    assert model.memory_required((2, 4, 64, 32)) == pytest.approx(4 * small, rel=1e-3)
    half = make(unet_dtype=torch.bfloat16).memory_required((1, 4, 32, 32))
    assert half == pytest.approx(small / 2, rel=1e-3)


def test_weights_are_set_by_name(model: BaseModel) -> None:
    layer = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    set_weight(layer, "0.running_mean", torch.ones(2))
    set_weight(layer, "0.weight", torch.zeros(2))
    assert layer[0].running_mean.tolist() == [1, 1]
    assert layer[0].weight.tolist() == [0, 0]
    with pytest.raises(AttributeError, match=r"0\.nothing"):
        set_weight(layer, "0.nothing", torch.zeros(2))
