"""The ControlNet network against diffusers, and its plan against the family's files."""

import os

import pytest
import torch

from ldm_patched.controlnet.cldm import ControlNet
from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.control_detection import detect_control_config, short_names
from tests.support.control_oracle import (
    SD1_LIKE,
    SDXL_LIKE,
    Inputs,
    call_controlnet,
    diffusers_controlnet,
    in_ldm_layout,
)
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import SDXL, unet_shapes

CONFIGS = {"SDXL": SDXL_LIKE, "SD 1.x": SD1_LIKE}
TOLERANCE = 1e-4


def ours(config, theirs):
    network = ControlNet(config)
    network.load_state_dict(in_ldm_layout(config, theirs))
    return network.requires_grad_(False).eval()


def run(network, inputs):
    with torch.no_grad():
        hint = network.embed_hint(inputs.hint)
        return network(inputs.x, hint, inputs.t, inputs.context, inputs.y)


def difference(found, wanted):
    """The largest difference of any tensor, relative to that tensor's largest value."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_gives_the_residuals_that_diffusers_gives(family):
    config = CONFIGS[family]
    theirs, inputs = diffusers_controlnet(config), Inputs(config)
    wanted = call_controlnet(theirs, inputs)
    found = run(ours(config, theirs), inputs)
    assert len(found) == sum(config.num_res_blocks) + len(config.num_res_blocks) + 1
    largest = difference(found, wanted)
    test = os.environ["PYTEST_CURRENT_TEST"]
    record("adapter", f"ControlNet ({family})", test, "diffusers", largest, TOLERANCE)
    assert largest < TOLERANCE
    assert all(w.std() > 1e-3 for w in wanted)


def test_has_the_weights_of_the_family_s_files():
    # The encoder of the SDXL UNet, nine zero convolutions, one for the middle, eight hint layers.
    encoder = {
        name: shape
        for name, shape in unet_shapes(SDXL).items()
        if name.startswith(("time_embed", "label_emb", "input_blocks", "middle_block"))
    }
    widths = [320] * 4 + [640] * 3 + [1280] * 2
    own = {f"zero_convs.{n}.0.weight": (w, w, 1, 1) for n, w in enumerate(widths)}
    own |= {f"zero_convs.{n}.0.bias": (w,) for n, w in enumerate(widths)}
    own |= {"middle_block_out.0.weight": (1280, 1280, 1, 1), "middle_block_out.0.bias": (1280,)}
    hints = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for n, (c_in, c_out) in enumerate(zip(hints, hints[1:], strict=False)):
        own[f"input_hint_block.{2 * n}.weight"] = (c_out, c_in, 3, 3)
        own[f"input_hint_block.{2 * n}.bias"] = (c_out,)
    shapes = {**encoder, **own}
    assert len(shapes) == 844
    config, hint_channels = detect_control_config(shapes)
    network = ControlNet(config, hint_channels, device="meta")
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == shapes
    assert config.transformer_depth == (0, 0, 2, 2, 10, 10)
    assert config.context_dim == 2048


@pytest.mark.parametrize("family", CONFIGS)
def test_diffusers_names_become_the_family_s(family):
    config = CONFIGS[family]
    theirs = diffusers_controlnet(config)
    names = short_names(list(theirs.state_dict()))
    network = ControlNet(config, device="meta")
    assert sorted(names.values()) == sorted(name for name, _ in network.named_parameters())
    wanted = in_ldm_layout(config, theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(wanted[names[name]].flatten(), tensor.flatten()), name


def test_dimensions_are_read_from_shapes():
    for config in CONFIGS.values():
        network = ControlNet(config, device="meta")
        found, channels = detect_control_config(
            {name: tuple(p.shape) for name, p in network.named_parameters()}
        )
        assert channels == 3
        heads = {w: found.heads_of(w) for w in (64, 128)}
        if config is SD1_LIKE:  # 8 heads whatever the width
            assert heads == {64: (8, 8), 128: (8, 16)}
        fields = ("channel_mult", "num_res_blocks", "transformer_depth", "context_dim")
        for field in (*fields, "adm_in_channels", "use_linear_in_transformer"):
            assert getattr(found, field) == getattr(config, field), field


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"input_blocks.0.0.weight": (320, 4, 3, 3)},
        {"input_blocks.0.0.weight": (8,), "input_hint_block.0.weight": (16, 3, 3, 3)},
        {
            "input_blocks.0.0.weight": (0, 4, 3, 3),
            "input_hint_block.0.weight": (16, 3, 3, 3),
            "zero_convs.0.0.weight": (0, 0, 1, 1),
            "time_embed.0.weight": (4, 4),
        },
    ],
)
def test_what_is_no_controlnet_is_not_taken_for_one(shapes):
    assert detect_control_config(shapes) is None


def test_every_block_asks_whether_to_go_on():
    config = SDXL_LIKE
    network, inputs, asked = ours(config, diffusers_controlnet(config)), Inputs(config), []
    with torch.no_grad():
        hint = network.embed_hint(inputs.hint)
        network(inputs.x, hint, inputs.t, inputs.context, inputs.y, lambda: asked.append(1))
    assert len(asked) == len(network.input_blocks) + 1


def test_the_precision_patch_reaches_its_timesteps(monkeypatch):
    config = SDXL_LIKE
    network, inputs = ours(config, diffusers_controlnet(config)), Inputs(config)
    plain = run(network, inputs)
    monkeypatch.setattr(openaimodel, "timestep_embedding", lambda t, dim: torch.zeros(len(t), dim))
    assert difference(run(network, inputs), plain) > 1e-3


def test_a_missing_y_is_said():
    network, inputs = ControlNet(SDXL_LIKE), Inputs(SDXL_LIKE)
    with pytest.raises(ValueError, match="needs y"):
        network(inputs.x, torch.zeros(1, 64, 16, 16), inputs.t, inputs.context)


def test_a_plan_without_attention_in_its_last_level_is_kept():
    small = UNetConfig(
        **{**SDXL_LIKE.__dict__, "transformer_depth": (0, 0, 1, 1, 0, 0)}
        | {"transformer_depth_middle": 0, "transformer_depth_output": (0,) * 9}
    )
    shapes = {n: tuple(p.shape) for n, p in ControlNet(small, device="meta").named_parameters()}
    found, _ = detect_control_config(shapes)
    assert found.transformer_depth == (0, 0, 1, 1, 0, 0)
    assert found.transformer_depth_middle == 0
