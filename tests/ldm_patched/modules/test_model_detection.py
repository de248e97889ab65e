"""Families and dimensions from names and shapes: real manifests, small models, strangers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import latent_formats, model_base
from ldm_patched.modules import model_detection as detection
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.model_base import ModelType
from ldm_patched.modules.supported_models import UNET_PREFIX
from tests.support.tiny_checkpoint import tiny_sdxl_state_dict

MANIFESTS = Path(__file__).resolve().parents[3].parent / "shared" / "manifests"


def manifest(name: str) -> dict[str, Tensor]:
    """A real file's names and shapes, as tensors without numbers."""
    path = MANIFESTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    shapes = json.loads(path.read_text())
    return {k: torch.empty(s, dtype=torch.float16, device="meta") for k, s in shapes.items()}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    return tiny_sdxl_state_dict()


def test_the_real_sdxl() -> None:
    weights = manifest("sdxl_base")
    config = detection.require_model_config(weights)
    assert config.name == "SDXL"
    assert config.unet_config == UNetConfig()  # whose defaults are SDXL's dimensions
    config.set_inference_dtype(torch.float16)
    model = config.get_model(weights, device="meta")
    assert isinstance(model, model_base.SDXL)
    assert model.adm_channels == 2816
    report = model.load_model_weights(weights, memory_format=torch.channels_last)
    assert report == model_base.LoadReport()
    assert not any(key.startswith(UNET_PREFIX) for key in weights)
    assert sum(p.numel() for p in model.diffusion_model.parameters()) == 2_567_463_684


def test_the_real_refiner() -> None:
    weights = manifest("sdxl_refiner")
    config = detection.require_model_config(weights)
    assert config.name == "SDXL refiner"
    assert config.unet_config == UNetConfig(
        model_channels=384,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(0, 0, 4, 4, 4, 4, 0, 0),
        transformer_depth_middle=4,
        transformer_depth_output=(0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0),
        context_dim=1280,
        adm_in_channels=2560,
        time_embed_dim=1536,
    )
    model = config.get_model(weights, device="meta")
    assert model.load_model_weights(weights) == model_base.LoadReport()
    y = model.encode_adm(torch.zeros(1, 1280), width=8, height=8, prompt_type="negative")
    assert y.shape == (1, 2560)


def test_a_small_model_of_the_family(tiny: dict[str, Tensor]) -> None:
    weights = dict(tiny)
    config = detection.require_model_config(weights)
    assert config.unet_config == UNetConfig(
        model_channels=32,
        num_res_blocks=(1, 1, 1),
        transformer_depth=(0, 1, 2),
        transformer_depth_middle=2,
        transformer_depth_output=(2, 2, 1, 1, 0, 0),
        context_dim=192,
        adm_in_channels=128 + 6 * 256,
        time_embed_dim=128,
    )
    model = config.get_model(weights, device="meta")
    kept = weights[UNET_PREFIX + "input_blocks.1.0.in_layers.2.weight"].float()
    report = model.load_model_weights(weights, memory_format=torch.channels_last)
    assert report == model_base.LoadReport()
    loaded = model.diffusion_model.input_blocks[1][0].in_layers[2].weight
    assert torch.equal(loaded, kept)
    assert loaded.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.is_meta for p in model.parameters())
    assert model.model_type is ModelType.EPS


def test_what_is_missing_and_what_is_too_much_is_told(tiny: dict[str, Tensor]) -> None:
    weights = dict(tiny)
    del weights[UNET_PREFIX + "out.0.bias"]
    weights[UNET_PREFIX + "new.weight"] = torch.zeros(1)
    weights[UNET_PREFIX + "out.0.weight"] = torch.zeros(7)
    model = detection.require_model_config(tiny).get_model(weights, device="meta")
    report = model.load_model_weights(weights)
    assert report == model_base.LoadReport(("out.0.bias",), ("new.weight",), ("out.0.weight",))


@pytest.mark.parametrize(
    ("markers", "kind", "sigma_max"),
    [
        (["v_pred"], ModelType.V_PREDICTION, 14.6146),
        (["v_pred", "ztsnr"], ModelType.V_PREDICTION, 4518.76),
        (["edm_mean", "edm_std"], ModelType.EDM, 80.0),
        (["edm_vpred.sigma_max"], ModelType.V_PREDICTION_EDM, 60.0),
    ],
)
def test_files_say_what_their_network_predicts(
    tiny: dict[str, Tensor], markers: list[str], kind: ModelType, sigma_max: float
) -> None:
    weights = {**tiny, **{name: torch.tensor(60.0) for name in markers}}
    model = detection.require_model_config(weights).get_model(weights, device="meta")
    assert model.model_type is kind
    assert model.model_sampling.sigma_max.item() == pytest.approx(sigma_max, rel=1e-4)
    playground = isinstance(model.latent_format, latent_formats.SDXL_Playground_2_5)
    assert playground == (kind is ModelType.EDM)


@pytest.mark.parametrize(
    ("markers", "what"),
    [
        ({"edm_mean": [0.0] * 4, "edm_std": [1.0, 1.0, math.nan, 1.0]}, "statistics"),
        ({"edm_mean": [0.0, math.inf, 0.0, 0.0], "edm_std": [1.0] * 4}, "statistics"),
        ({"edm_mean": [1e30] * 4, "edm_std": [1.0] * 4}, "statistics"),
        ({"edm_mean": [0.0] * 4, "edm_std": [1.0, 0.0, 1.0, 1.0]}, "statistics"),
        ({"edm_mean": [0.0] * 4, "edm_std": [-1.0] * 4}, "statistics"),
        ({"edm_vpred.sigma_max": math.nan}, "noise levels"),
        ({"edm_vpred.sigma_max": math.inf}, "noise levels"),
        ({"edm_vpred.sigma_max": 1e30}, "noise levels"),
        ({"edm_vpred.sigma_max": -80.0}, "noise levels"),
        ({"edm_vpred.sigma_max": 0.001}, "noise levels"),  # below the least that is usual
        ({"edm_vpred.sigma_max": [80.0, 90.0]}, "noise levels"),
        ({"edm_vpred.sigma_max": 80.0, "edm_vpred.sigma_min": 0.0}, "noise levels"),
        ({"edm_vpred.sigma_max": 80.0, "edm_vpred.sigma_min": 90.0}, "noise levels"),
        ({"edm_vpred.sigma_max": 80.0, "edm_vpred.sigma_min": math.nan}, "noise levels"),
    ],
)
def test_markers_that_cannot_be_are_refused_in_words(
    tiny: dict[str, Tensor], markers: dict[str, Any], what: str
) -> None:
    weights = {**tiny, **{name: torch.tensor(value) for name, value in markers.items()}}
    with pytest.raises(CorruptModelFile, match=f"{what} make no sense. Download it again"):
        detection.require_model_config(weights).get_model(weights, device="meta")


def test_widths_that_coincide_are_told_apart_by_the_text_encoders(tiny: dict[str, Tensor]) -> None:
    # Text width 384 = 256 + 128, pooled width 128: y is as long as a refiner's, 384 + 1280.
    wide = {k: torch.zeros(w.shape[0], 384) for k, w in tiny.items() if "attn2.to_" in k}
    wide = {k: w for k, w in wide.items() if ".to_k." in k or ".to_v." in k}
    weights = {**tiny, **wide}
    assert detection.require_model_config(weights).name == "SDXL"
    alone = {k: w for k, w in weights.items() if k.startswith(UNET_PREFIX)}
    assert detection.require_model_config(alone).name == "SDXL refiner"


def test_weights_made_in_inference_mode_can_still_be_watched(tiny: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        weights = {k: w.clone() for k, w in tiny.items()}
        config = detection.require_model_config(weights)
        config.set_inference_dtype(torch.float16)
        model = config.get_model(weights, device="meta")
        model.load_model_weights(weights)
    assert not any(p.is_inference() for p in model.diffusion_model.parameters())


def test_eight_bit_weights_compute_in_another_precision(tiny: dict[str, Tensor]) -> None:
    weights = dict(tiny)
    config = detection.require_model_config(weights)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    model = config.get_model(weights, device="meta")
    assert model.load_model_weights(weights) == model_base.LoadReport()
    layer = model.diffusion_model.middle_block[1]
    assert layer.proj_in.weight.dtype == torch.float8_e4m3fn
    assert layer.norm.weight.dtype == layer.proj_in.bias.dtype == torch.float32
    with torch.inference_mode():
        found = model.apply_model(
            torch.randn(1, 4, 8, 8),
            torch.tensor([1.0]),
            c_crossattn=torch.randn(1, 77, 192),
            y=model.encode_adm(torch.randn(1, 128)),
        )
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["controlnet_sdxl", "taesd_decoder"])
def test_strangers_are_named_as_unsupported(name: str) -> None:
    weights = manifest(name)
    assert detection.model_config_from_unet(weights) is None
    with pytest.raises(UnsupportedModel, match="SDXL"):
        detection.require_model_config(weights)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {UNET_PREFIX + "input_blocks.0.0.weight": torch.zeros(3)},
        {"anything": torch.zeros(1)},
    ],
)
def test_what_holds_no_network_is_none(weights: dict[str, Tensor]) -> None:
    assert detection.detect_unet_config(weights) is None
    with pytest.raises(UnsupportedModel, match="no diffusion network"):
        detection.require_model_config(weights)


def test_another_number_of_input_channels_is_not_taken(tiny: dict[str, Tensor]) -> None:
    weights = dict(tiny)
    weights[UNET_PREFIX + "input_blocks.0.0.weight"] = torch.zeros(32, 8, 3, 3)
    assert detection.model_config_from_unet(weights) is None


def test_depths_need_a_number_for_each_block() -> None:
    with pytest.raises(ValueError, match="transformer_depth has 1 entries; these levels need 6"):
        UNetConfig(transformer_depth=(1,))


def test_attention_blocks_of_sdxl() -> None:
    blocks = UNetConfig().attention_blocks
    assert blocks[:4] == (("input", 4, 2), ("input", 5, 2), ("input", 7, 10), ("input", 8, 10))
    assert blocks[4] == ("middle", 0, 10)
    assert blocks[5:] == tuple(("output", n, d) for n, d in enumerate((10, 10, 10, 2, 2, 2)))
    assert sum(depth for _, _, depth in blocks) == 70
