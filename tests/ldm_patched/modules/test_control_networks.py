"""Controls on a network: what they add, agreement with diffusers, and that nothing sticks."""

import copy
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_patched.controlnet import cldm
from ldm_patched.modules import control_networks
from ldm_patched.modules.control_base import control_bytes, controls_in_place
from ldm_patched.modules.control_networks import ControlLora, ControlNet, T2IAdapter
from ldm_patched.modules.errors import CorruptModelFile, NotFinite, UnsupportedModel
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.t2ia.adapter import Adapter, AdapterConfig
from tests.support.control_oracle import (
    SD1_LIKE,
    SDXL_LIKE,
    Inputs,
    call_controlnet,
    control_lora_file,
    diffusers_controlnet,
    in_ldm_layout,
)
from tests.support.counting_transfer import CountingTransfer
from tests.support.engine_report import record
from tests.support.unet_oracle import diffusers_unet, make_unet, randomise

TOLERANCE = 1e-4


class Sampling:
    """Noise levels that leave the input as it is and count timesteps as sigmas."""

    def calculate_input(self, _sigma, x):
        return x

    def timestep(self, sigma):
        return sigma

    def percent_to_sigma(self, percent):
        return (1.0 - percent) * 999.0


class Model:
    """A BaseModel as controls see it."""

    manual_cast_dtype = None

    def __init__(self, config):
        self.diffusion_model = make_unet(config)
        self.model_sampling = Sampling()

    def get_dtype(self):
        return torch.float32


FAMILIES = {"SDXL": SDXL_LIKE, "SD 1.x": SD1_LIKE}


class Parts:
    """A model of a family, and a ControlNet for it in diffusers' hands and in ours."""

    def __init__(self, name):
        self.name, self.config = name, FAMILIES[name]
        self.model, self.theirs = Model(self.config), diffusers_controlnet(self.config)
        self.network = cldm.ControlNet(self.config)
        self.network.load_state_dict(in_ldm_layout(self.config, self.theirs))
        self.network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def families():
    return {name: Parts(name) for name in FAMILIES}


@pytest.fixture(scope="module")
def model(families):
    return families["SDXL"].model


@pytest.fixture(scope="module")
def network(families):
    return families["SDXL"].network


@pytest.fixture
def control(network):
    return ControlNet("canny.safetensors", ModelPatcher(network), torch.float32)


def ask(control, model, inputs, kinds=(0,), batched=1):
    control.pre_run(model)
    cond = {"c_crossattn": inputs.context, "transformer_options": {"cond_or_uncond": list(kinds)}}
    if inputs.y is not None:
        cond["y"] = inputs.y
    with torch.no_grad():
        return control.get_control(inputs.x, inputs.t, cond, batched)


def flat(additions):
    return [*additions["output"], *additions["middle"]]


def close(found, wanted, atol=1e-4):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


# --- ControlNet -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_unet_and_control_predict_what_diffusers_predicts(families, family):
    parts, strength = families[family], 0.7
    model, inputs = parts.model, Inputs(parts.config)
    control = ControlNet("x", ModelPatcher(parts.network), torch.float32)
    additions = ask(control.set_cond_hint(inputs.hint, strength), model, inputs)
    theirs = call_controlnet(parts.theirs, inputs, strength)
    unet = model.diffusion_model
    with torch.no_grad():
        found = unet(inputs.x, inputs.t, inputs.context, inputs.y, control=additions)
        wanted = diffusers_unet(unet)(
            inputs.x,
            inputs.t,
            inputs.context,
            added_cond_kwargs=inputs.added,
            down_block_additional_residuals=tuple(theirs[:-1]),
            mid_block_additional_residual=theirs[-1],
            return_dict=False,
        )[0]
        plain = unet(inputs.x, inputs.t, inputs.context, inputs.y)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    name = f"ControlNet on the UNet ({family})"
    record("adapter", name, os.environ["PYTEST_CURRENT_TEST"], "diffusers", difference, TOLERANCE)
    assert difference < TOLERANCE
    assert float((found - plain).abs().max()) > 0.01  # the control matters


def test_softness_lessens_the_parts_near_the_full_size(model, control):
    inputs = Inputs(SDXL_LIKE)
    plain = flat(ask(control.copy().set_cond_hint(inputs.hint), model, inputs))
    soft = flat(ask(control.copy().set_cond_hint(inputs.hint, softness=0.25), model, inputs))
    assert len(plain) == 10
    for i, (a, b) in enumerate(zip(soft, plain, strict=True)):
        torch.testing.assert_close(a, b * (1.0 - 0.25 * (1.0 - i / 9.0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [998.0, 500.0, 251.0])
def test_it_counts_within_its_part_of_the_sampling(model, control, sigma):
    inputs = Inputs(SDXL_LIKE, batch=1)
    inputs.t = torch.tensor([sigma])
    timed = control.copy().set_cond_hint(inputs.hint, 1.0, (0.25, 0.6))
    assert (ask(timed, model, inputs) is not None) == (0.4 * 999 <= sigma <= 0.75 * 999)


def test_one_control_does_not_send_another_away(model):
    """With little memory all leave for the next one, but not those that a run needs."""
    transfer = CountingTransfer()
    budget = MemoryBudget("low", transfer.free, transfer=transfer, reserve=0)
    hint, networks = (
        Inputs(SDXL_LIKE).hint,
        [cldm.ControlNet(SDXL_LIKE), cldm.ControlNet(SDXL_LIKE)],
    )
    patchers = [ModelPatcher(network, offload_device="meta", budget=budget) for network in networks]
    one, two = (ControlNet("a", patcher, torch.float32).set_cond_hint(hint) for patcher in patchers)
    two.set_previous_controlnet(one)
    with controls_in_place(model, [[None, {"control": two}]]):
        here = [patcher.residence.device_bytes for patcher in patchers]
        assert here == [patcher.model_size() for patcher in patchers]
    budget.make_room(None)
    assert not any(patcher.residence.device_bytes for patcher in patchers)


KINDS = ("ControlNet", "control-LoRA", "T2I-Adapter")


def a_control(parts, kind):
    """A control of a kind with a picture, on a device of its own where it has a network."""
    transfer = CountingTransfer()
    budget = MemoryBudget("normal", transfer.free, transfer=transfer, reserve=0)
    hint = Inputs(parts.config).hint
    if kind == "control-LoRA":
        file, _ = control_lora_file(parts.network, parts.model.diffusion_model)
        return ControlLora("lora", file).set_cond_hint(hint)
    network = (
        parts.network
        if kind == "ControlNet"
        else Adapter(AdapterConfig(unshuffle=16, channels=(64, 128, 256, 256)))
    )
    make = ControlNet if kind == "ControlNet" else T2IAdapter
    patcher = ModelPatcher(copy.deepcopy(network), offload_device="meta", budget=budget)
    return make(kind, patcher, torch.float32).set_cond_hint(hint)


@pytest.mark.parametrize("kind", ["ControlNet", "control-LoRA"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_run_makes_it_take_is_told_before(families, family, kind):
    """Its weights, but not those that it borrows, and the keys and values of the text."""
    parts = families[family]
    unet, inputs = parts.model.diffusion_model, Inputs(parts.config, batch=1)
    control = a_control(parts, kind)
    told = control_bytes([[inputs.context, {"control": control}]], [], unet, 1, is_guided=True)
    ask(control, parts.model, inputs)
    borrowed = {weight.data_ptr() for weight in unet.parameters()}
    taken = [*control.network.parameters(), *control.network.buffers()]
    for layer in control.network.modules():
        taken += [t for part in ("up", "down") if (t := getattr(layer, part, None)) is not None]
    (entry,) = control.network._contexts._entries
    taken += [tensor for _, keys_and_values in entry.store.values() for tensor in keys_and_values]
    assert told == sum(t.nbytes for t in taken if t.data_ptr() not in borrowed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_or_shared_or_never_seen_is_not_counted(families, kind):
    parts = families["SDXL"]
    unet, text, other = parts.model.diffusion_model, *torch.randn(2, 1, 77, 80)
    control = a_control(parts, kind)

    def told(positive, negative=control, is_guided=True):
        conditions = ([[t, {"control": c}]] for t, c in ((text, positive), (other, negative)))
        return control_bytes(*conditions, unet, 1, is_guided=is_guided)

    both, one = told(control), told(control, is_guided=False)
    kept = both - one  # of a text
    assert (kept > 0) == (kind != "T2I-Adapter")
    alone = control.copy().set_cond_hint(control.cond_hint, positive_only=True)
    assert told(alone, alone) == one
    chained = control.copy().set_previous_controlnet(control)
    own = one - kept
    assert told(chained, chained) == both + (own + 2 * kept if kind == "control-LoRA" else 0)
    idle = control.copy().set_cond_hint(control.cond_hint, 0.0)
    assert told(idle, idle) == 0
    if kind != "control-LoRA":
        control.pre_run(parts.model)
        assert told(control) == 2 * kept  # the weights are on the device
        control.cleanup()


def test_rows_are_picked_without_waiting_for_the_device(model, control):
    """A list of rows is a tensor on the host that has to be sent first."""
    inputs = Inputs(SDXL_LIKE)
    alone = control.copy().set_cond_hint(inputs.hint, positive_only=True)
    with _NoLists():
        assert ask(alone, model, inputs, (0, 1), 2) is not None


class _NoLists(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002
        assert "aten.index" not in str(function)
        return function(*args, **(kwargs or {}))


def test_without_strength_nothing_is_computed(model, control, monkeypatch):
    inputs = Inputs(SDXL_LIKE)
    monkeypatch.setattr(control.network, "forward", None)
    assert ask(control.copy().set_cond_hint(inputs.hint, 0.0), model, inputs) is None


def test_a_chain_adds_up(model, control):
    inputs = Inputs(SDXL_LIKE)
    one = control.copy().set_cond_hint(inputs.hint, 0.5)
    two = control.copy().set_cond_hint(1.0 - inputs.hint, 0.25)
    apart = [flat(ask(c, model, inputs)) for c in (one, two)]
    two.set_previous_controlnet(one)
    one.pre_run(model)
    both = flat(ask(two, model, inputs))
    close(both, [a + b for a, b in zip(*apart, strict=True)])
    assert list(two.chain()) == [two, one]


@pytest.mark.parametrize(("kinds", "rows"), [((0, 1), (0,)), ((1, 0), (1,)), ((1, 1), ())])
def test_the_negative_prompt_can_go_without(model, control, kinds, rows):
    inputs = Inputs(SDXL_LIKE)
    whole = flat(ask(control.copy().set_cond_hint(inputs.hint), model, inputs, kinds, 2))
    alone = control.copy().set_cond_hint(inputs.hint, positive_only=True)
    part = ask(alone, model, inputs, kinds, 2)
    if not rows:
        assert part is None
        return
    for a, b in zip(flat(part), whole, strict=True):
        wanted = torch.zeros_like(b)
        wanted[list(rows)] = b[list(rows)]
        torch.testing.assert_close(a, wanted, rtol=1e-4, atol=1e-4)


def test_each_picture_of_a_batch_has_its_own_hint(model, control):
    two = Inputs(SDXL_LIKE)
    two.t = torch.full((2,), 500.0)
    hints = torch.cat([two.hint, 1.0 - two.hint])
    both = flat(ask(control.copy().set_cond_hint(hints), model, two))
    for row in range(2):
        alone = flat(ask(control.copy().set_cond_hint(hints[row : row + 1]), model, two))
        close([t[row] for t in both], [t[row] for t in alone])


def test_the_hint_is_embedded_once_a_run(model, control, monkeypatch):
    inputs, calls = Inputs(SDXL_LIKE), []
    embed = control.network.embed_hint
    monkeypatch.setattr(control.network, "embed_hint", lambda h: calls.append(1) or embed(h))
    own = control.copy().set_cond_hint(inputs.hint)
    own.pre_run(model)
    cond = {"c_crossattn": inputs.context, "y": inputs.y, "transformer_options": {}}
    with torch.no_grad():
        for _ in range(3):
            own.get_control(inputs.x, inputs.t, cond, 1)
    assert len(calls) == 1
    own.cleanup()
    assert own._guided is None


def test_a_copy_has_a_picture_of_its_own(control):
    first = control.copy().set_cond_hint(torch.zeros(1, 3, 8, 8), 0.3)
    second = control.copy().set_cond_hint(torch.ones(1, 3, 8, 8))
    assert first.cond_hint is not second.cond_hint
    assert (first.strength, second.strength, control.cond_hint) == (0.3, 1.0, None)
    assert first.network is second.network


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_weights_are_no_numbers_is_damaged(families, kind):
    parts = families["SDXL"]
    control, nan = a_control(parts, kind), float("nan")
    if kind == "control-LoRA":
        name = next(name for name in control._weights if name.endswith(".up"))
        control._weights[name] = torch.full_like(control._weights[name], nan)
    else:
        with torch.no_grad():
            next(iter(control.patcher.model.parameters())).fill_(nan)
    with pytest.raises(
        CorruptModelFile, match=f"^{control.name} is damaged: weights of its network"
    ):
        ask(control, parts.model, Inputs(SDXL_LIKE))


@pytest.mark.parametrize("kind", ["ControlNet", "control-LoRA"])
def test_invalid_numbers_of_a_sound_file_are_said_with_its_name(families, kind):
    parts, inputs = families["SDXL"], Inputs(SDXL_LIKE)
    inputs.x = inputs.x.fill_(float("inf"))
    control = a_control(parts, kind)
    with pytest.raises(NotFinite, match=f"^{control.name} gave invalid numbers"):
        ask(control, parts.model, inputs)


def test_another_family_s_checkpoint_is_refused(control):
    with pytest.raises(UnsupportedModel, match="Stable Diffusion 1"):
        control.check_fits(Model(SD1_LIKE))


# --- hints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "target"),
    [((64, 64), (64, 64)), ((10, 20), (64, 64)), ((300, 100), (64, 96)), ((1, 5000), (64, 64))],
)
def test_a_hint_fills_the_picture_from_its_middle(size, target):
    hint = torch.rand(1, 3, *size)
    fitted = control_networks.ControlBase("x").set_cond_hint(hint)._hint_for(target[1], target[0])
    assert fitted.shape == (1, 3, *target)
    assert 0.0 <= float(fitted.min()) <= float(fitted.max()) <= 1.0


def test_a_hint_is_cut_at_the_sides_that_are_too_long():
    hint = torch.zeros(1, 1, 16, 48)
    hint[..., 16:32] = 1.0  # the middle third
    base = control_networks.ControlBase("x").set_cond_hint(hint)
    assert float(base._hint_for(64, 64).min()) > 0.9


# --- control-LoRA -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_control_lora_is_the_controlnet_that_it_makes_with_the_unet(families, family):
    model, inputs = families[family].model, Inputs(families[family].config)
    file, merged = control_lora_file(families[family].network, model.diffusion_model)
    before = {k: v.clone() for k, v in model.diffusion_model.state_dict().items()}
    lora = ControlLora("lora.safetensors", file).set_cond_hint(inputs.hint)
    whole = ControlNet("whole.safetensors", ModelPatcher(merged), torch.float32)
    found = flat(ask(lora, model, inputs))
    wanted = flat(ask(whole.set_cond_hint(inputs.hint), model, inputs))
    largest = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)
    )
    test = os.environ["PYTEST_CURRENT_TEST"]
    record("adapter", f"control-LoRA ({family})", test, "merged weights", largest, TOLERANCE)
    assert largest < TOLERANCE
    # Weights without a difference are the UNet's own, not copies.
    borrowed = dict(lora.network.named_parameters())["input_blocks.1.0.in_layers.2.weight"]
    own = model.diffusion_model.input_blocks[1][0].in_layers[2].weight
    assert borrowed.data_ptr() == own.data_ptr()
    lora.cleanup()
    with pytest.raises(ValueError, match="pre_run"):
        _ = lora.network
    after = model.diffusion_model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("change", ["rank", "name", "family", "two ranks"])
def test_a_control_lora_that_does_not_fit_is_refused(model, network, change):
    file, _ = control_lora_file(network, model.diffusion_model)
    target = model
    if change == "rank":
        file["input_blocks.1.0.in_layers.2.down"] = torch.zeros(4, 7, 3, 3)
    elif change == "name":
        file["input_blocks.40.0.in_layers.2.down"] = torch.zeros(4, 7, 3, 3)
    elif change == "two ranks":
        file["input_blocks.4.1.proj_in.up"] = torch.zeros(128, 5)
    else:
        target = Model(SD1_LIKE)
    with pytest.raises(UnsupportedModel, match="control-LoRA for another model"):
        ControlLora("lora.safetensors", file).check_fits(target)


# --- T2I-Adapter ------------------------------------------------------------------------------


ADAPTERS = {
    "SDXL": (SDXL_LIKE, AdapterConfig(unshuffle=16, channels=(64, 128, 256, 256))),
    "SD 1.x": (SD1_LIKE, AdapterConfig(channels=(32, 64, 128, 128))),
}


@pytest.mark.parametrize("family", ADAPTERS)
def test_unet_and_adapter_predict_what_diffusers_predicts(family):
    network, config = ADAPTERS[family]
    adapter = Adapter(config)
    randomise(adapter, 4)
    model, inputs = Model(network), Inputs(network)
    own = T2IAdapter("sketch.safetensors", ModelPatcher(adapter.eval()), torch.float32)
    additions = ask(own.set_cond_hint(inputs.hint, 0.5), model, inputs)
    unet = model.diffusion_model
    with torch.no_grad():
        maps = [m.repeat(2, 1, 1, 1) * 0.5 for m in adapter(inputs.hint)]
        found = unet(inputs.x, inputs.t, inputs.context, inputs.y, control=additions)
        plain = unet(inputs.x, inputs.t, inputs.context, inputs.y)
        wanted = diffusers_unet(unet)(
            inputs.x,
            inputs.t,
            inputs.context,
            added_cond_kwargs=inputs.added,
            down_intrablock_additional_residuals=maps,
            return_dict=False,
        )[0]
    assert float((plain - wanted).abs().max() / wanted.abs().max()) > 100 * TOLERANCE
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    name = f"T2I-Adapter on the UNet ({family})"
    record("adapter", name, os.environ["PYTEST_CURRENT_TEST"], "diffusers", difference, TOLERANCE)
    assert difference < TOLERANCE


def test_the_maps_of_stable_diffusion_1_come_after_each_level():
    adapter = Adapter(AdapterConfig(channels=(32, 64, 128, 128)))
    randomise(adapter, 4)
    model, inputs = Model(SD1_LIKE), Inputs(SD1_LIKE)
    own = T2IAdapter("sketch.safetensors", ModelPatcher(adapter.eval()), torch.float32)
    additions = ask(own.set_cond_hint(inputs.hint), model, inputs)
    inputs_in_order = additions["input"][::-1]
    assert [i for i, t in enumerate(inputs_in_order) if t is not None] == [2, 5, 8, 11]
    assert "middle" not in additions
    with torch.no_grad():
        model.diffusion_model(inputs.x, inputs.t, inputs.context, control=additions)
    with pytest.raises(UnsupportedModel, match="T2I-Adapter for Stable Diffusion 1"):
        own.check_fits(Model(SDXL_LIKE))
