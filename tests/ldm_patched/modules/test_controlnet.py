"""Control files: each layout is known and loads whole, bad ones are refused; sampling with them."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from ldm_patched.controlnet import cldm
from ldm_patched.modules.controlnet import (
    ControlLora,
    ControlNet,
    T2IAdapter,
    apply_controls,
    load_controlnet,
)
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.sample import sample
from ldm_patched.t2ia.adapter import Adapter, AdapterConfig
from tests.support.control_oracle import (
    SD1_LIKE,
    SDXL_LIKE,
    SMALL,
    Inputs,
    call_controlnet,
    diffusers_controlnet,
    in_ldm_layout,
    write,
)
from tests.support.tiny_checkpoint import TINY, UNET_PREFIX, random_weights, unet_shapes
from tests.support.unet_oracle import randomise

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware())


def load(path, model=None):
    return load_controlnet(path, model, policy=POLICY)


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["diffusers", "", "control_model."])
@pytest.mark.parametrize("config", [SDXL_LIKE, SD1_LIKE, SMALL], ids=["sdxl", "sd1", "small"])
def test_a_controlnet_loads_whole_from_every_layout(tmp_path, config, layout):
    theirs, inputs = diffusers_controlnet(config), Inputs(config)
    weights = dict(theirs.state_dict())
    if layout != "diffusers":
        weights = in_ldm_layout(config, theirs, layout)
    control = load(write(tmp_path / "canny.safetensors", weights))
    assert isinstance(control, ControlNet)
    assert control.name == "canny.safetensors"
    network = control.network
    with torch.no_grad():
        hint = network.embed_hint(inputs.hint)
        found = network(inputs.x, hint, inputs.t, inputs.context, inputs.y)
    for a, b in zip(found, call_controlnet(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_control_without_attention_goes_with_any_text(tmp_path, model):
    path = write(tmp_path / "small.safetensors", dict(diffusers_controlnet(SMALL).state_dict()))
    control = load(path)
    control.check_fits(SimpleNamespace(diffusion_model=SimpleNamespace(config=SDXL_LIKE)))
    with pytest.raises(UnsupportedModel, match="small.safetensors is made for"):
        control.check_fits(model)


def test_a_pickle_of_plain_weights_loads_too(tmp_path):
    path = tmp_path / "control_v11p_sd15_canny.pth"
    torch.save(in_ldm_layout(SD1_LIKE, diffusers_controlnet(SD1_LIKE), "control_model."), path)
    assert isinstance(load(path), ControlNet)


def test_adapters_and_control_loras_are_known(tmp_path):
    adapter = Adapter(AdapterConfig(unshuffle=16, channels=(32, 64, 128, 128)))
    randomise(adapter, 1)
    found = load(write(tmp_path / "t2i.safetensors", dict(adapter.state_dict())))
    assert isinstance(found, T2IAdapter)
    lora = {
        "lora_controlnet": torch.tensor([]),
        "input_hint_block.0.weight": torch.zeros(16, 3, 3, 3),
        "input_blocks.0.0.up": torch.zeros(32, 2, 1, 1),
        "input_blocks.0.0.down": torch.zeros(2, 4, 3, 3),
    }
    assert isinstance(load(write(tmp_path / "lora.safetensors", lora)), ControlLora)


def without(name):
    weights = in_ldm_layout(SDXL_LIKE, diffusers_controlnet(SDXL_LIKE))
    del weights[name]
    return save({k: v.clone() for k, v in weights.items()})


def with_shape(name, shape):
    weights = in_ldm_layout(SDXL_LIKE, diffusers_controlnet(SDXL_LIKE))
    return save({k: v.clone() for k, v in weights.items()} | {name: torch.zeros(shape)})


BAD = {
    "a weight missing": (
        lambda: without("zero_convs.3.0.weight"),
        CorruptModelFile,
        "1 weights of its ControlNet",
    ),
    "a LoRA": (
        lambda: save({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}),
        UnsupportedModel,
        r"looks like a LoRA.*models/loras.*choose a ControlNet",
    ),
    "a checkpoint": (
        lambda: save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}),
        UnsupportedModel,
        "looks like a checkpoint",
    ),
    "anything": (lambda: save({"x": torch.zeros(1)}), UnsupportedModel, "no control of a known"),
    "wrong ranks": (
        lambda: save(
            {
                "input_blocks.0.0.weight": torch.zeros(4),
                "input_hint_block.0.weight": torch.zeros(4),
                "zero_convs.0.0.weight": torch.zeros(4),
            }
        ),
        UnsupportedModel,
        "no control of a known",
    ),
    "a weight that is a number": (
        lambda: with_shape("input_blocks.1.0.out_layers.3.weight", ()),
        CorruptModelFile,
        "do not fit together",
    ),
    "a width that no norm divides": (
        lambda: with_shape("input_blocks.0.0.weight", (8, 4, 3, 3)),
        CorruptModelFile,
        "do not fit together",
    ),
    "a union": (
        lambda: save({"task_embedding": torch.zeros(2), "control_add_embedding.x": torch.zeros(2)}),
        UnsupportedModel,
        "no control of a known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_words(tmp_path, kind):
    content, error, words = BAD[kind]
    path = tmp_path / "control.safetensors"
    path.write_bytes(content())
    with pytest.raises(error, match=words) as caught:
        load(path)
    assert "control.safetensors" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_another_family_s_control_is_refused_at_once(tmp_path, model):
    path = write(tmp_path / "sd15.safetensors", dict(diffusers_controlnet(SD1_LIKE).state_dict()))
    with pytest.raises(UnsupportedModel, match=r"sd15\.safetensors is made for Stable Diffusion 1"):
        load(path, ModelPatcher(model))


# --- sampling ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    weights = random_weights({UNET_PREFIX + k: s for k, s in unet_shapes(TINY).items()})
    model = require_model_config(weights).get_model(weights, device="meta")
    model.load_model_weights(weights)
    return model


@pytest.fixture(scope="module")
def control(model):
    network = cldm.ControlNet(model.diffusion_model.config)
    randomise(network, 8)
    return ControlNet(
        "canny.safetensors",
        ModelPatcher(network.requires_grad_(False).eval()),
        torch.float32,
    )


@pytest.fixture
def hint():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, 77, TINY.context, generator=generator)
    return [[context, {"pooled_output": torch.randn(1, TINY.clip_g_width, generator=generator)}]]


def run(model, control=None, options=None, batch=1, seeds=3, cfg=5.0):
    patcher = ModelPatcher(model)
    if options:
        patcher.model_options["transformer_options"].update(options)
    prompts = [apply_controls(prompt(seed), control) for seed in (1, 2)]
    return sample(
        patcher, None, 3, cfg, "euler", "karras", *prompts, torch.zeros(batch, 4, 8, 8), seed=seeds
    )


def test_a_control_changes_the_picture_and_leaves_no_trace(model, control, hint):
    plain = run(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    controlled = run(model, control.copy().set_cond_hint(hint))
    assert float((controlled - plain).abs().max()) > 1e-2
    assert torch.equal(run(model), plain)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("strength", "window"), [(0.0, (0.0, 1.0)), (1.0, (0.0, 0.0))])
def test_no_strength_or_no_time_is_the_plain_picture(model, control, hint, strength, window):
    if window == (0.0, 0.0):  # even at the very first step it is over
        window = (0.0, -1.0)
    own = control.copy().set_cond_hint(hint, strength, window)
    assert torch.equal(run(model, own), run(model))


def test_both_prompts_share_one_call(model, control, hint, monkeypatch):
    batches = []
    forward = control.network.forward
    monkeypatch.setattr(
        control.network, "forward", lambda x, *a, **k: batches.append(len(x)) or forward(x, *a, **k)
    )
    run(model, control.copy().set_cond_hint(hint))
    assert batches == [2, 2, 2]
    batches.clear()
    run(model, control.copy().set_cond_hint(hint, positive_only=True))
    assert batches == [1, 1, 1]
    batches.clear()
    run(model, control.copy().set_cond_hint(hint, 1.0, (0.0, 0.8)))
    assert len(batches) == 2  # the last of three steps is later


def test_a_picture_does_not_depend_on_its_batch(model, control, hint):
    own = control.copy().set_cond_hint(hint)
    together = run(model, own, batch=2, seeds=[9, 3])
    alone = run(model, own, seeds=[3])
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-3 * float(alone.abs().max()))


def test_a_stop_acts_within_the_control_s_network(model, control, hint):
    asked = []

    def interrupt():
        asked.append(1)
        if len(asked) == 6:  # made ready, the step, and four blocks
            raise RuntimeError("stopped")

    own = control.copy().set_cond_hint(hint)
    reached = []
    control.network.middle_block.register_forward_hook(lambda *_: reached.append(1))
    with pytest.raises(RuntimeError, match="stopped"):
        run(model, own, {"interrupt": interrupt})
    assert not reached
    assert own._guided is None  # put away
    run(model, own)


def test_conditions_are_copied():
    given = prompt(1)
    control = object()
    made = apply_controls(given, control)
    assert made[0][1]["control"] is control
    assert "control" not in given[0][1]
    assert apply_controls(given, None) == given
