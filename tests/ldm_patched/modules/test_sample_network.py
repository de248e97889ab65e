"""Sampling with a real network of the SDXL family, at a tenth of its width."""

import copy

import pytest
import torch

from ldm_patched.controlnet import cldm
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_patched.modules.control_networks import ControlNet
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.refiner import RefinerSwitch
from ldm_patched.modules.sample import sample
from tests.support.tiny_checkpoint import TINY, UNET_PREFIX, random_weights, unet_shapes
from tests.support.unet_oracle import randomise

LATENT = torch.zeros(1, 4, 8, 8)
WEIGHT = "diffusion_model.middle_block.0.in_layers.2.weight"


@pytest.fixture(scope="module")
def model():
    weights = random_weights({UNET_PREFIX + k: s for k, s in unet_shapes(TINY).items()})
    model = require_model_config(weights).get_model(weights, device="meta")
    report = model.load_model_weights(weights)
    assert not report.missing
    return model


@pytest.fixture
def patcher(model):
    yield ModelPatcher(model)
    ModelPatcher(model).unpatch_model()


def prompt(seed: int, tokens: int = 77) -> list:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, TINY.context, generator=generator)
    pooled = torch.randn(1, TINY.clip_g_width, generator=generator)
    return [[context, {"pooled_output": pooled}]]


def run(patcher, tokens=(77, 77), latent=LATENT, seed=3, **options):
    positive, negative = prompt(1, tokens[0]), prompt(2, tokens[1])
    scheme = ("dpmpp_2m", "karras", positive, negative)
    return sample(patcher, None, 3, 5.0, *scheme, latent, seed=seed, **options)


@pytest.mark.parametrize("tokens", [(77, 77), (77, 154)])
def test_both_prompts_at_once_give_the_picture_that_one_after_the_other_gives(patcher, tokens):
    together = run(patcher, tokens)
    calls = []

    def one_at_a_time(apply_model, call):
        calls.append(len(call["cond_or_uncond"]))
        if len(call["cond_or_uncond"]) > 1:
            raise torch.OutOfMemoryError("too large")
        return apply_model(call["input"], call["timestep"], **call["c"])

    patcher.model_options["model_function_wrapper"] = one_at_a_time
    apart = run(patcher, tokens)
    assert calls == [2, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-3 * float(apart.abs().max()))


def test_a_picture_does_not_depend_on_its_batch(patcher):
    together = run(patcher, latent=LATENT.repeat(2, 1, 1, 1), seed=[9, 3])
    alone = run(patcher)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-3 * float(alone.abs().max()))


def test_keys_and_values_of_the_prompts_are_made_once(patcher, monkeypatch):
    network = patcher.model.diffusion_model
    made = []
    attention = network.middle_block[1].transformer_blocks[0].attn2
    monkeypatch.setattr(
        attention.to_k, "forward", lambda x, f=attention.to_k.forward: made.append(1) or f(x)
    )
    network.clear_cache()
    run(patcher)
    assert len(made) == 1


def test_a_patch_changes_the_picture_and_a_failure_takes_it_out(patcher):
    plain, original = run(patcher), patcher.model.state_dict()[WEIGHT].clone()
    clone = patcher.clone()
    clone.add_patches({WEIGHT: (torch.full_like(original, 5.0),)})
    assert not torch.allclose(run(clone), plain, atol=1e-3)

    def fail():
        raise RuntimeError("stopped")

    clone.model_options["transformer_options"]["interrupt"] = fail
    with pytest.raises(RuntimeError, match="stopped"):
        run(clone)
    assert torch.equal(patcher.model.state_dict()[WEIGHT], original)
    assert torch.equal(run(patcher), plain)


def test_an_interrupt_acts_within_an_evaluation(patcher):
    asked = []

    def interrupt():
        asked.append(1)
        if len(asked) == 5:
            raise RuntimeError("stopped")

    patcher.model_options["transformer_options"]["interrupt"] = interrupt
    steps = []
    with pytest.raises(RuntimeError, match="stopped"):
        run(patcher, callback=lambda *state: steps.append(state))
    assert not steps  # it ended within the first step, at the network's fourth block


def test_weights_can_still_be_trained_afterwards(patcher):
    run(patcher)
    assert not any(p.is_inference() for p in patcher.model.parameters())


@pytest.fixture
def asked(monkeypatch):
    """(working, kept) of each time that room is made."""
    rooms, own = [], ModelPatcher.patch_model

    def noted(patcher, device, working=0, kept=0):
        rooms.append((working, kept))
        return own(patcher, device, working, kept)

    monkeypatch.setattr(ModelPatcher, "patch_model", noted)
    return rooms


def stored(unet: UNetModel) -> int:
    """Bytes of the keys and values that are kept."""
    stores = [entry.store for entry in unet._contexts._entries]
    return sum(t.nbytes for store in stores for _, made in store.values() for t in made)


@pytest.mark.parametrize("tokens", [(77, 77), (154, 231)])
def test_room_is_asked_for_what_is_kept_of_the_texts_and_once(patcher, asked, tokens):
    unet = patcher.model.diffusion_model
    unet.clear_cache()
    latent = torch.zeros(1, 4, 8, 8)
    for _ in range(2):
        run(patcher, tokens, latent=latent)
    working, kept = patcher.memory_required(latent.shape), stored(unet)
    assert kept > 0
    assert asked == [(working, kept), (working, 0)]


def test_other_texts_ask_for_room_of_their_own(patcher, asked):
    unet = patcher.model.diffusion_model
    unet.clear_cache()
    run(patcher)
    before = stored(unet)
    run(patcher, (77, 154))
    assert asked[1][1] == stored(unet) - before > 0


def test_no_room_is_asked_for_a_negative_prompt_that_is_never_evaluated(patcher, asked):
    unet = patcher.model.diffusion_model
    unet.clear_cache()
    sample(patcher, None, 2, 1.0, "euler", "karras", prompt(1), prompt(2), LATENT, seed=3)
    assert asked[0][1] == stored(unet) > 0


def test_the_refiner_s_texts_are_counted_too(patcher, asked):
    other = ModelPatcher(copy.deepcopy(patcher.model))
    run(patcher, refiner=RefinerSwitch(other, 2, prompt(5), prompt(6)))
    assert asked[1] == (other.memory_required(LATENT.shape), stored(other.model.diffusion_model))
    assert asked[1][1] > 0


def test_room_is_asked_for_controls(patcher, asked):
    network = cldm.ControlNet(patcher.model.diffusion_model.config)
    randomise(network, 4)
    control = ControlNet("canny", ModelPatcher(network), torch.float32)
    control.set_cond_hint(torch.rand(1, 3, 64, 64))
    run(patcher)
    controlled = [[text, options | {"control": control}] for text, options in prompt(1)]
    sample(patcher, None, 2, 1.0, "euler", "karras", controlled, prompt(2), LATENT, seed=3)
    assert asked[1][1] == control.patcher.model_size() + stored(control.network)
    assert stored(control.network) > 0


def test_texts_that_are_not_kept_take_no_room(patcher):
    unet, text = patcher.model.diffusion_model, torch.zeros(1, 77, TINY.context)
    unet.clear_cache()
    one = unet.text_bytes([text], 1, torch.float32)
    assert one == 2 * unet.text_bytes([text], 1, torch.float16) > 0  # by what it computes in
    assert unet.text_bytes([text, text], 6, torch.float32) == 12 * one
    assert unet.text_bytes([text, text], 8, torch.float32) * 77 == 1024 * one  # one at a time
    assert unet.text_bytes([text, text], 14, torch.float32) == 0
    assert unet.text_bytes([], 1, torch.float32) == 0
