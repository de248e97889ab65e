"""Every family from its file to a picture, each part held against another library's."""

import json
import os
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import sd
from ldm_patched.modules.model_base import LoadReport, ModelType
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.prediction_type import predicts_velocity
from ldm_patched.modules.sample import sample
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import (
    REFINER,
    SD15,
    SD21,
    SDXL,
    TINY,
    TINY_REFINER,
    TINY_SD1,
    TINY_SD2,
    UNET_PREFIX,
    checkpoint_shapes,
    tiny_sdxl_state_dict,
    unet_shapes,
    write_tiny_sdxl,
    write_zeros,
)
from tests.support.unet_oracle import diffusers_unet, make_unet, randomise

MANIFESTS = Path(__file__).resolve().parents[3].parent / "shared" / "manifests"
POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
TOLERANCE = 1e-4

# What users call it: (sizes, marker keys, metadata, kind of prediction, scale of its latents).
FAMILIES = {
    "SD 1.5": (TINY_SD1, (), {}, ModelType.EPS, 0.18215),
    "SD 2.x eps": (TINY_SD2, (), {"modelspec.prediction_type": "epsilon"}, ModelType.EPS, 0.18215),
    "SD 2.x v": (TINY_SD2, (), {"modelspec.prediction_type": "v"}, ModelType.V_PREDICTION, 0.18215),
    "SDXL": (TINY, (), {}, ModelType.EPS, 0.13025),
    "SDXL refiner": (TINY_REFINER, (), {}, ModelType.EPS, 0.13025),
    "SDXL v-prediction": (TINY, ("v_pred",), {}, ModelType.V_PREDICTION, 0.13025),
    "SD 1.5 inpaint": (replace(TINY_SD1, in_channels=9), (), {}, ModelType.EPS, 0.18215),
    "SDXL inpaint": (replace(TINY, in_channels=9), (), {}, ModelType.EPS, 0.13025),
    "SDXL zero-SNR": (TINY, ("v_pred", "ztsnr"), {}, ModelType.V_PREDICTION, 0.13025),
}


def load(path):
    return sd.load_checkpoint_guess_config(str(path), policy=POLICY)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, its entry above, what loading a small file of it gave)."""
    sizes, markers, metadata, *_ = FAMILIES[request.param]
    weights = tiny_sdxl_state_dict(3, torch.float32, sizes)
    weights |= {name: torch.zeros(0) for name in markers}
    weights["first_stage_model.quant_conv.bias"] += 0.5  # so that grey has latents of its own
    path = tmp_path_factory.mktemp("family") / "x.safetensors"
    save_file(weights, str(path), metadata=metadata or None)
    return request.param, FAMILIES[request.param], load(path)


def largest_difference(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def inputs(model, seed=1):
    """(x, context, pooled) for a network of this plan."""
    g = torch.Generator().manual_seed(seed)
    config = model.diffusion_model.config
    x = torch.randn(2, 4, 16, 16, generator=g)
    context = torch.randn(2, 77, config.context_dim, generator=g)
    return x, context, torch.randn(2, TINY.clip_g_width, generator=g)


def added(model, pooled):
    """What diffusers takes in the place of y, for pictures of 128 × 128 pixels."""
    if not model.adm_channels:
        return None
    count = (model.adm_channels - pooled.shape[1]) // 256
    numbers = (
        [128.0, 128.0, 0.0, 0.0, 6.0] if count == 5 else [128.0, 128.0, 0.0, 0.0, 128.0, 128.0]
    )
    return {"text_embeds": pooled, "time_ids": torch.tensor([numbers] * 2)}


def test_a_file_of_each_family_loads_in_full(family):
    _, (_, _, _, kind, scale), (model, clip, vae, _) = family
    for part in (model.model, clip, vae):
        assert part.load_report.missing == part.load_report.unexpected == ()
        assert part.load_report.wrong_shape == ()
    assert model.model.model_type is kind
    assert model.model.process_latent_in(torch.ones(1)).item() == pytest.approx(scale)


def test_each_network_predicts_what_diffusers_predicts(family):
    """The denoised latents of a step: the network, its conditions and its kind of prediction."""
    name, (_, markers, _, kind, scale), (patcher, *_) = family
    model = patcher.model
    randomise(model.diffusion_model, seed=5)
    x, context, pooled = inputs(model)
    library = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction" if kind is ModelType.V_PREDICTION else "epsilon",
        rescale_betas_zero_snr="ztsnr" in markers,
    )
    library.set_timesteps(1000)
    timestep = 700
    sigma = model.model_sampling.sigmas[timestep].repeat(2)
    scaled = model.model_sampling.calculate_input(sigma, x)
    picture = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:, 64:] = 1.0
    conds = model.extra_conds(
        pooled_output=pooled,
        width=128,
        height=128,
        noise=x,
        cross_attn=context,
        concat_latent_image=picture,
        concat_mask=mask,
    )
    inpaint = [mask[..., ::8, ::8].repeat(2, 1, 1, 1), picture * scale] if "inpaint" in name else []
    with torch.no_grad():
        theirs = diffusers_unet(model.diffusion_model)(
            torch.cat([scaled, *inpaint], dim=1),
            torch.tensor([timestep] * 2),
            context,
            added_cond_kwargs=added(model, pooled),
            return_dict=False,
        )[0]
        ours = model.apply_model(x, sigma, **{key: cond.cond for key, cond in conds.items()})
    wanted = library.step(theirs, timestep, scaled).pred_original_sample
    difference = largest_difference(ours, wanted)
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("family", name, where, "diffusers UNet2DConditionModel", difference, TOLERANCE)
    assert wanted.std() > 0.1
    assert difference <= TOLERANCE


def test_each_family_paints_from_words(family):
    _, _, (model, clip, vae, _) = family
    positive, negative = (
        [[cond, {"pooled_output": pooled}]]
        for cond, pooled in (clip.encode_from_tokens(clip.tokenize(t)) for t in ("a boat", ""))
    )
    latents = sample(
        model, None, 2, 3.0, "euler", "normal", positive, negative, torch.zeros(1, 4, 8, 8), seed=1
    )
    pixels = vae.decode(latents)
    assert pixels.shape == (1, 64, 64, 3)
    assert pixels.isfinite().all()
    assert pixels.std() > 0.01


def test_an_inpainting_network_without_a_picture_paints_everything(family):
    name, _, (patcher, _, vae, _) = family
    model, noise = patcher.model, torch.zeros(1, 4, 6, 10)
    conds = model.extra_conds(noise=noise, cross_attn=torch.zeros(1, 77, 8))
    assert ("c_concat" in conds) == ("inpaint" in name)
    if "c_concat" in conds:
        mask, picture = conds["c_concat"].cond.split([1, 4], dim=1)
        assert torch.equal(mask, torch.ones(1, 1, 6, 10))
        grey = vae.encode(torch.full((1, 64, 64, 3), 0.5)).mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(picture, model.process_latent_in(grey).expand(1, -1, 6, 10))
        assert picture.any()


# --- Depths of distilled networks -------------------------------------------------------------

SMALL = UNetConfig(
    model_channels=64, context_dim=128, adm_in_channels=96 + 1536, time_embed_dim=256
)
PLANS = {
    "SSD-1B": replace(
        SMALL,
        transformer_depth=(0, 0, 2, 2, 4, 4),
        transformer_depth_middle=0,
        transformer_depth_output=(4, 4, 10, 2, 1, 1, 0, 0, 0),
    ),
    "Segmind Vega": replace(
        SMALL,
        transformer_depth=(0, 0, 1, 1, 2, 2),
        transformer_depth_middle=0,
        transformer_depth_output=(2, 2, 2, 1, 1, 1, 0, 0, 0),
    ),
    "KOALA": replace(
        SMALL,
        num_res_blocks=(1, 1, 1),
        transformer_depth=(0, 2, 5),
        transformer_depth_middle=None,
        transformer_depth_output=(5, 5, 2, 2, 0, 0),
    ),
    "SDXL, averaging between levels": replace(
        SMALL,
        conv_resample=False,
        transformer_depth=(0, 0, 1, 1, 2, 2),
        transformer_depth_middle=2,
        transformer_depth_output=(2, 2, 2, 1, 1, 1, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_distilled_networks_are_sdxl_with_depths_of_their_own(name):
    config = PLANS[name]
    unet = make_unet(config)
    weights = {UNET_PREFIX + key: weight for key, weight in unet.state_dict().items()}
    found = require_model_config(weights)
    assert (found.name, found.unet_config) == ("SDXL", config)
    model = found.get_model(weights, device="meta")
    assert model.load_model_weights(weights) == LoadReport()
    x, context, pooled = inputs(model)
    pooled, timesteps = pooled[:, :96], torch.tensor([900, 3])
    y = model.encode_adm(pooled_output=pooled, width=128, height=128)
    with torch.no_grad():
        ours = model.diffusion_model(x, timesteps, context, y)
        theirs = diffusers_unet(unet)(
            x, timesteps, context, added_cond_kwargs=added(model, pooled), return_dict=False
        )[0]
    difference = largest_difference(ours, theirs)
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("family", name, where, "diffusers UNet2DConditionModel", difference, TOLERANCE)
    assert difference <= TOLERANCE


# --- Layouts of published files ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("sd15", SD15), ("sd21", SD21), ("sdxl_base", SDXL), ("sdxl_refiner", REFINER)],
)
def test_the_rules_give_the_layout_of_the_published_file(name, sizes):
    path = MANIFESTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    published = {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    assert checkpoint_shapes(sizes) == published


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        (SD15, {(8, 40), (8, 80), (8, 160)}),
        (SD21, {(5, 64), (10, 64), (20, 64)}),
        (REFINER, {(12, 64), (24, 64)}),
    ],
    ids=["sd15", "sd21", "refiner"],
)
def test_the_published_layout_loads_without_a_name_too_many_or_too_few(
    tmp_path, sizes, heads, caplog
):
    # In float16 throughout, weights stay in the file's memory: nothing of it is read.
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp16=True), Hardware(kind="cpu"))
    policy.memory_format = torch.contiguous_format
    # Saying what the network predicts spares asking it.
    path = write_zeros(tmp_path / "real.safetensors", checkpoint_shapes(sizes) | {"v_pred": ()})
    model, clip, vae, _ = sd.load_checkpoint_guess_config(path, policy=policy)
    path.unlink()
    assert not caplog.records
    for part in (model.model, clip, vae):
        assert part.load_report.missing == part.load_report.unexpected == ()
    unet = model.model.diffusion_model
    assert {n: tuple(p.shape) for n, p in unet.named_parameters()} == unet_shapes(sizes)
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert {(block.n_heads, block.d_head) for block in blocks} >= heads
    assert all(block.n_heads * block.d_head == block.norm1.weight.shape[0] for block in blocks)


# --- What no name tells -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd2") / "x.safetensors"
    return load(write_tiny_sdxl(path, dtype=torch.float32, sizes=TINY_SD2))


def test_a_network_that_gives_noise_back_predicts_noise(sd2):
    model = sd2[0].model
    network, config = model.diffusion_model, model.diffusion_model.config
    try:
        for share, is_velocity in ((0.95, False), (0.1, True), (-0.07, True)):
            model.diffusion_model = _stub(config, share)
            assert predicts_velocity(model) is is_velocity
    finally:
        model.diffusion_model = network


def _stub(config, share):
    stub = torch.nn.Module()
    stub.config, stub.dtype, stub.weight = config, None, torch.nn.Parameter(torch.zeros(1))
    stub.forward = lambda x, timesteps, context: (
        share * x + (1 - share) * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    )
    return stub


def test_without_a_word_the_network_itself_is_asked(sd2):
    assert sd2[0].model.model_type is ModelType.V_PREDICTION  # random weights give no noise back
