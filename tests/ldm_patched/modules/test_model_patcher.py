"""Clones share weights, patches come off byte by byte, options are each clone's own."""

import pytest
import torch
from torch import Tensor, nn

from ldm_patched.modules.model_base import BaseModel
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.weight_patches import delta_of, patched_weight
from tests.support.tiny_checkpoint import tiny_sdxl_state_dict

KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2.weight"


@pytest.fixture(scope="module")
def loaded() -> BaseModel:
    weights = tiny_sdxl_state_dict()
    config = require_model_config(weights)
    config.set_inference_dtype(torch.float16)
    model = config.get_model(weights, device="meta")
    model.load_model_weights(weights, memory_format=torch.channels_last)
    return model


@pytest.fixture
def patcher(loaded: BaseModel) -> ModelPatcher:
    return ModelPatcher(loaded)


def snapshot(model: nn.Module) -> dict[str, tuple[int, bytes]]:
    """Where each weight is, and its bytes."""
    return {
        name: (t.data_ptr(), t.contiguous().view(torch.uint8).numpy().tobytes())
        for name, t in model.state_dict().items()
    }


def lora(out: int, into: int, seed: int = 0) -> tuple[str, tuple[Tensor, Tensor, float]]:
    g = torch.Generator().manual_seed(seed)
    return "lora", (torch.randn(out, 4, generator=g), torch.randn(4, into, generator=g), 2.0)


def test_patches_change_weights_and_come_off_byte_by_byte(patcher: ModelPatcher) -> None:
    before = snapshot(patcher.model)
    weight = patcher.model.get_parameter(KEY).detach().clone()
    conv = patcher.model.get_parameter(CONV).detach().clone()
    patch, difference = lora(*weight.shape), torch.randn(conv.shape)
    known = patcher.add_patches({KEY: patch, "no.such.weight": patch}, 0.75)
    assert known == [KEY]
    assert patcher.add_patches({CONV: ("diff", (difference,))}, 0.5, 0.25) == [CONV]
    model = patcher.patch_model()
    assert patcher.is_patched
    up, down, alpha = patch[1]
    wanted = weight.double() + 0.75 * (alpha / 4) * (up.double() @ down.double())
    found = model.get_parameter(KEY)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
    changed = model.get_parameter(CONV)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    wanted = conv.double() * 0.25 + difference.double() * 0.5
    torch.testing.assert_close(changed.double(), wanted, rtol=1e-3, atol=1e-3)
    others = {n: v for n, v in snapshot(model).items() if n not in (KEY, CONV)}
    assert others == {n: v for n, v in before.items() if n not in (KEY, CONV)}
    patcher.unpatch_model()
    assert snapshot(patcher.model) == before
    assert not patcher.is_patched


def test_one_clone_at_a_time_is_in_the_model(patcher: ModelPatcher) -> None:
    before = snapshot(patcher.model)
    shape = patcher.model.get_parameter(KEY).shape
    first, second = patcher.clone(), patcher.clone()
    first.add_patches({KEY: lora(*shape, seed=1)})
    second.add_patches({KEY: lora(*shape, seed=2)})
    first.patch_model()
    of_first = snapshot(first.model)[KEY][1]
    second.patch_model()
    assert not first.is_patched
    assert snapshot(second.model)[KEY][1] not in (of_first, before[KEY][1])
    again = first.clone()
    again.patch_model()
    assert first.is_patched  # a clone with equal patches
    assert snapshot(first.model)[KEY][1] == of_first
    patcher.patch_model()  # without patches: the weights as they were
    assert snapshot(patcher.model) == before
    patcher.unpatch_model()


def test_patching_twice_applies_once(patcher: ModelPatcher) -> None:
    patcher.add_patches({KEY: lora(*patcher.model.get_parameter(KEY).shape)})
    once = snapshot(patcher.patch_model())[KEY]
    assert snapshot(patcher.patch_model())[KEY] == once
    patcher.unpatch_model()


def test_a_failing_patch_leaves_the_model_as_it_was(patcher: ModelPatcher) -> None:
    before = snapshot(patcher.model)
    patcher.add_patches({KEY: lora(*patcher.model.get_parameter(KEY).shape)})
    patcher.add_patches({CONV: (torch.zeros(2, 2),)})
    sampling = patcher.model.model_sampling
    patcher.add_object_patch("model_sampling", nn.Identity())
    with pytest.raises(ValueError, match="does not fit"):
        patcher.patch_model()
    assert snapshot(patcher.model) == before
    assert patcher.model.model_sampling is sampling


def test_patched_weights_reach_a_network_that_knows_the_text(patcher: ModelPatcher) -> None:
    model = patcher.model
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 192)
    y = model.encode_adm(torch.randn(1, 128))

    def run() -> Tensor:
        with torch.inference_mode():
            return model.apply_model(x, torch.tensor([2.0]), c_crossattn=context, y=y)

    plain = run()
    patcher.add_patches({KEY: (torch.randn(model.get_parameter(KEY).shape),)})
    with torch.inference_mode():
        patcher.patch_model()
    assert not torch.equal(run(), plain)
    patcher.unpatch_model()
    assert torch.equal(run(), plain)


def test_options_are_each_clones_own(patcher: ModelPatcher) -> None:
    patcher.set_model_attn1_patch(len)
    patcher.set_model_attn2_replace(max, "input", 4, 1)
    patcher.set_model_sampler_post_cfg_function(min)
    clone = patcher.clone()
    assert clone.model_options == patcher.model_options
    clone.set_model_attn1_patch(abs)
    clone.set_model_attn2_patch(abs)
    clone.set_model_attn2_replace(abs, "middle", 0)
    clone.set_model_attn1_replace(abs, "output", 1)
    clone.set_model_attn1_output_patch(abs)
    clone.set_model_attn2_output_patch(abs)
    clone.set_model_input_block_patch(abs)
    clone.set_model_output_block_patch(abs)
    clone.set_model_sampler_post_cfg_function(abs)
    clone.set_model_denoise_mask_function(abs)
    clone.set_model_unet_function_wrapper(abs)
    assert patcher.model_options == {
        "transformer_options": {
            "patches": {"attn1_patch": [len]},
            "patches_replace": {"attn2": {("input", 4, 1): max}},
        },
        "sampler_post_cfg_function": [min],
    }
    assert clone.model_options == {
        "transformer_options": {
            "patches": {
                "attn1_patch": [len, abs],
                "attn2_patch": [abs],
                "attn1_output_patch": [abs],
                "attn2_output_patch": [abs],
                "input_block_patch": [abs],
                "output_block_patch": [abs],
            },
            "patches_replace": {
                "attn2": {("input", 4, 1): max, ("middle", 0): abs},
                "attn1": {("output", 1): abs},
            },
        },
        "sampler_post_cfg_function": [min, abs],
        "denoise_mask_function": abs,
        "model_function_wrapper": abs,
    }


def test_guidance_functions_of_both_kinds(patcher: ModelPatcher) -> None:
    args = {"cond": 3.0, "uncond": 1.0, "cond_scale": 2.0}
    patcher.set_model_sampler_cfg_function(lambda a: a["cond"] * 10)
    assert patcher.model_options["sampler_cfg_function"](args) == 30.0
    assert "disable_cfg1_optimization" not in patcher.model_options
    patcher.set_model_sampler_cfg_function(lambda c, u, s: u + s * (c - u), True)
    assert patcher.model_options["sampler_cfg_function"](args) == 5.0
    assert patcher.model_options["disable_cfg1_optimization"] is True


def test_objects_are_replaced_and_put_back(patcher: ModelPatcher) -> None:
    original = patcher.model.model_sampling
    other, note = nn.Identity(), object()
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", other)
    clone.add_object_patch("diffusion_model.note", note)
    assert clone.get_model_object("model_sampling") is other
    assert patcher.get_model_object("model_sampling") is original
    model = clone.patch_model()
    assert model.model_sampling is other
    assert model.diffusion_model.note is note
    assert patcher.get_model_object("model_sampling") is original
    clone.unpatch_model()
    assert model.model_sampling is original
    assert not hasattr(model.diffusion_model, "note")
    assert clone.is_clone(patcher)


def test_sizes_and_places(patcher: ModelPatcher) -> None:
    bytes_of_weights = sum(t.nbytes for t in patcher.model.state_dict().values())
    assert patcher.model_size() == bytes_of_weights > 2**20
    assert patcher.current_device == patcher.load_device == torch.device("cpu")
    assert patcher.model_dtype() == torch.float16
    one, two = (patcher.memory_required((n, 4, 64, 64)) for n in (1, 2))
    assert two == pytest.approx(2 * one)


def test_lora_for_convolutions() -> None:
    weight = torch.zeros(6, 3, 3, 3)
    up, down = torch.randn(6, 2, 1, 1), torch.randn(2, 3, 3, 3)
    plain = delta_of(("lora", (up, down)), weight)
    wanted = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    torch.testing.assert_close(plain, wanted)
    middle, thin = torch.randn(2, 2, 3, 3), torch.randn(2, 3, 1, 1)
    tucker = delta_of(("lora", (up, thin, 1.0, middle)), weight)
    wanted = 0.5 * torch.einsum("or,rshw,si->oihw", up[:, :, 0, 0], middle, thin[:, :, 0, 0])
    torch.testing.assert_close(tucker, wanted)


def test_unknown_kinds_of_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight patch 'magic'"):
        delta_of(("magic", ()), torch.zeros(1))


def test_a_weight_is_not_written_to() -> None:
    weight = torch.ones(2, 2)
    patch = (torch.ones(2, 2),)
    found = patched_weight(weight, [(0.5, patch, 2.0), (1.0, patch, 1.0)])
    assert torch.equal(found, torch.full((2, 2), 3.5))
    assert torch.equal(weight, torch.ones(2, 2))
