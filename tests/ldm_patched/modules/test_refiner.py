"""A second model for the last steps, in the three ways there are."""

import pytest
import torch

from ldm_patched.k_diffusion import sampling as k_diffusion
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.refiner import RefinerSwitch
from ldm_patched.modules.sample import prepare_noise, sample
from ldm_patched.modules.samplers import calculate_sigmas_scheduler
from tests.support.counting_transfer import CountingTransfer
from tests.support.fake_model import EpsilonSampling, FakeModel, Scale, prompt

LATENT = torch.zeros(1, 4, 8, 8)


class Other(FakeModel):
    """A model with opinions of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.value = torch.nn.Parameter(torch.randn(8, 4, generator=generator), False)


def run(base, refiner=None, steps=8, sampler="euler", cfg=4.0, **more):
    return sample(
        base, None, steps, cfg, sampler, "karras", prompt(1), prompt(2), LATENT,
        seed=3, refiner=refiner, **more,
    )  # fmt: skip


def switch(model, step, method="joint", **more):
    return RefinerSwitch(model, step, prompt(5), prompt(6), method, **more)


def levels(model):
    return [round(float(call["t"][0]), 4) for call in model.calls]


@pytest.mark.parametrize("method", ["joint", "separate", "vae"])
def test_the_refiner_does_the_last_steps(method):
    base, other = FakeModel(), Other()
    seen = []
    out = run(base, switch(other, 5, method), callback=lambda i, *_: seen.append(i))
    sigmas = [round(float(s), 4) for s in calculate_sigmas_scheduler(base, "karras", 8)]
    factor = 1.4 if method == "vae" else 1.0
    assert levels(base) == sigmas[:5]
    assert levels(other) == pytest.approx([s * factor for s in sigmas[5:8]], rel=5e-3)
    assert seen == list(range(8))
    assert out.shape == LATENT.shape and torch.isfinite(out).all()
    assert not torch.equal(out, run(FakeModel()))


def test_its_own_conditions_are_what_it_sees():
    base, other = FakeModel(), Other()
    run(base, switch(other, 4))
    assert torch.equal(other.calls[0]["context"][0], prompt(5)[0][0][0])
    assert torch.equal(base.calls[0]["context"][0], prompt(1)[0][0][0])


def test_joint_keeps_what_the_sampler_remembers():
    """By hand: dpmpp_2m with a denoiser that is another one from step 4 on."""
    base, other = FakeModel(), Other()
    found = run(base, switch(other, 4), sampler="dpmpp_2m", cfg=1.0)
    sigmas = calculate_sigmas_scheduler(base, "karras", 8)
    seen = {True: (FakeModel(), prompt(1)), False: (Other(), prompt(5))}

    def denoise(x, sigma):
        model, conditions = seen[float(sigma[0]) > float(sigmas[4]) * 1.0001]
        context, options = conditions[0]
        return model.apply_model(
            x, sigma, context, y=options["pooled_output"], transformer_options={}
        )

    noise = prepare_noise(LATENT, 3)
    x = base.model_sampling.noise_scaling(float(sigmas[0]), noise, LATENT, True)
    right = k_diffusion.sample_dpmpp_2m(denoise, x, sigmas)
    torch.testing.assert_close(found, base.latent_format.process_out(right), rtol=1e-4, atol=1e-4)
    apart = run(FakeModel(), switch(Other(), 4, "separate"), sampler="dpmpp_2m", cfg=1.0)
    assert not torch.allclose(found, apart, atol=1e-3)


def test_with_the_same_model_and_prompt_joint_changes_nothing():
    alone = run(FakeModel(), sampler="dpmpp_2m_sde")
    same = RefinerSwitch(FakeModel(), 5, prompt(1), prompt(2))
    assert torch.equal(run(FakeModel(), same, sampler="dpmpp_2m_sde"), alone)


def test_separate_euler_is_joint_euler():
    joint = run(FakeModel(), switch(Other(), 3))
    separate = run(FakeModel(), switch(Other(), 3, "separate"))
    torch.testing.assert_close(joint, separate, rtol=1e-5, atol=1e-5)


def test_a_switch_at_the_end_never_asks_the_refiner():
    other = Other()
    assert torch.equal(run(FakeModel(), switch(other, 8)), run(FakeModel()))
    assert other.calls == []


def test_a_switch_at_the_beginning_never_asks_the_base():
    base = FakeModel()
    run(base, switch(Other(), 0))
    assert base.calls == []


def test_vae_noise_keeps_the_colours_on_their_way():
    base, other = FakeModel(), Other()
    given = {}

    def convert(latents):
        given["done"] = latents
        return latents * 0.5

    run(base, switch(other, 5, "vae", convert=convert))
    started = other.calls[0]["x"][:1]
    done = given["done"] * 0.5 * 0.13025
    last_sigma = levels(base)[-1]
    assert torch.isfinite(started).all()
    noise = (started - done) / (levels(other)[0])
    last = base.calls[-1]
    assert noise.std() == pytest.approx(1.0, abs=0.2)
    assert float(last["t"][0]) == pytest.approx(last_sigma, rel=1e-3)


def test_other_latents_need_the_vae_between():
    class Foreign:
        process_in = staticmethod(lambda latent: latent)
        process_out = staticmethod(lambda latent: latent)

    other = Other()
    other.latent_format = Foreign()
    for method in ("joint", "separate", "vae"):
        with pytest.raises(UnsupportedModel, match="choose the method vae"):
            run(FakeModel(), switch(other, 5, method))
    out = run(FakeModel(), switch(other, 5, "vae", convert=lambda latents: latents * 0.1))
    assert torch.isfinite(out).all()


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="no method 'magic'"):
        run(FakeModel(), switch(Other(), 3, "magic"))


def test_a_mask_is_kept_to_with_the_refiner():
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1.0
    found = sample(
        FakeModel(), None, 8, 4.0, "euler", "karras", prompt(1), prompt(2), image,
        noise_mask=mask, seed=3, refiner=switch(Other(), 5, "separate"),
    )  # fmt: skip
    assert torch.equal(found[..., :4], image[..., :4])
    assert not torch.equal(found[..., 4:], image[..., 4:])


@pytest.mark.parametrize("method", ["joint", "separate", "vae"])
@pytest.mark.parametrize("scheduler", ["lcm", "edm_playground_v2.5"])
def test_the_checkpoint_as_its_own_refiner_keeps_its_noise_levels(method, scheduler):
    model = FakeModel()
    own = model.model_sampling
    sample(
        model, None, 6, 2.0, "euler", scheduler, prompt(1), prompt(2), LATENT, seed=3,
        refiner=switch(model, 3, method),
    )  # fmt: skip
    assert model.model_sampling is own


@pytest.mark.parametrize("method", ["joint", "separate", "vae"])
@pytest.mark.parametrize("scheduler", ["karras", "lcm"])
@pytest.mark.parametrize("patched", ["base", "refiner", "both"])
def test_two_clones_of_a_network_leave_its_own_noise_levels(method, scheduler, patched):
    model = FakeModel()
    own = model.model_sampling
    plain = ModelPatcher(model)
    clones = {"base": plain.clone(), "refiner": plain.clone()}
    for name, clone in clones.items():
        clone.add_patches({"query": ("diff", (torch.ones(4, 8),))})  # so that none is as another
        if patched in (name, "both"):
            clone.add_object_patch("model_sampling", EpsilonSampling())
    sample(
        clones["base"], None, 6, 2.0, "euler", scheduler, prompt(1), prompt(2), LATENT, seed=3,
        refiner=switch(clones["refiner"], 3, method),
    )  # fmt: skip
    assert model.model_sampling is clones["refiner"].get_model_object("model_sampling")
    plain.patch_model()
    assert model.model_sampling is own
    plain.unpatch_model()
    assert model.model_sampling is own


def test_a_mask_puts_nothing_of_other_latents_back():
    other = Other()
    other.latent_format = type("Foreign", (Scale,), {})()
    latent, mask = torch.full_like(LATENT, 2.0), torch.zeros(8, 8)
    refiner = switch(other, 5, "vae", convert=lambda latents: latents * 0.1)
    out = sample(
        FakeModel(), None, 8, 4.0, "euler", "karras", prompt(1), prompt(2), latent,
        noise_mask=mask, seed=3, refiner=refiner,
    )  # fmt: skip
    torch.testing.assert_close(out, latent * 0.1)


def test_the_first_model_makes_room_for_the_refiner():
    transfer = CountingTransfer()
    budget = MemoryBudget("normal", transfer.free, transfer=transfer, reserve=0)
    base, other = FakeModel(), Other()
    base.weight = torch.nn.Parameter(torch.zeros(2**20), False)
    patchers = [ModelPatcher(m, offload_device="meta", budget=budget) for m in (base, other)]
    transfer.capacity = patchers[0].model_size() + 2**12  # not both
    run(patchers[0], switch(patchers[1], 5))
    assert patchers[0].residence.device_bytes == 0
    assert patchers[1].residence.device_bytes == patchers[1].model_size()
    assert not any(patcher.residence.is_busy for patcher in patchers)
