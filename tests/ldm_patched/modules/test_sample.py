"""The sampling call: reproducible, stoppable, and exact about what it must not touch."""

import pytest
import torch

from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.latent_formats import SDXL_Playground_2_5
from ldm_patched.modules.model_sampling import rescale_zero_terminal_snr_sigmas
from ldm_patched.modules.sample import part_of_schedule, prepare_noise, sample
from ldm_patched.modules.samplers import (
    SAMPLERS,
    SCHEDULERS,
    KSampler,
    calculate_sigmas_scheduler,
)
from tests.support.fake_model import FakeModel, prompt

EACH = sorted(name for name in SAMPLERS if not name.endswith("_gpu"))  # those are other names
LATENT = torch.zeros(1, 4, 16, 16)


class Patcher:
    """A model with options, as a pipeline hands it over."""

    load_device = torch.device("cpu")

    def __init__(self, model, **transformer_options):
        self.model = model
        self.model_options = {"transformer_options": transformer_options}

    def get_model_object(self, name):
        return getattr(self.model, name)


def run(
    model=None,
    latent=LATENT,
    seed=5,
    steps=4,
    sampler="dpmpp_2m",
    cfg=3.0,
    scheduler="karras",
    **options,
):
    return sample(
        model or FakeModel(),
        options.pop("noise", None),
        steps,
        cfg,
        sampler,
        scheduler,
        prompt(1),
        prompt(2),
        latent,
        seed=seed,
        **options,
    )


def test_noise_depends_on_the_seed_alone():
    batch = prepare_noise(torch.zeros(3, 4, 8, 8), [4, 5, 6])
    assert torch.equal(prepare_noise(torch.zeros(1, 4, 8, 8), 5)[0], batch[1])
    assert torch.equal(prepare_noise(torch.zeros(3, 4, 8, 8), 4), batch)
    by_hand = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(6))
    assert torch.equal(batch[2], by_hand)


@pytest.mark.parametrize("sampler", EACH)
def test_a_picture_is_the_same_in_any_batch(sampler):
    together = run(latent=LATENT.repeat(3, 1, 1, 1), seed=[5, 6, 7], sampler=sampler)
    alone = run(seed=6, sampler=sampler)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_seeds_decide_the_picture():
    assert torch.equal(run(seed=1), run(seed=1))
    assert not torch.allclose(run(seed=1), run(seed=2))


def test_latents_come_back_in_the_scale_they_went_in():
    model = FakeModel()
    seen = []
    out = run(model, callback=lambda step, denoised, x, total: seen.append(denoised))
    torch.testing.assert_close(out, seen[-1] / 0.13025)


def test_the_callback_hears_of_each_step():
    heard = []
    run(callback=lambda step, denoised, x, total: heard.append((step, total, denoised.shape)))
    assert heard == [(i, 4, LATENT.shape) for i in range(4)]


def test_sampling_in_two_halves_equals_sampling_at_once():
    noise = prepare_noise(LATENT, 5)
    whole = run(noise=noise, sampler="euler", steps=8)
    first = run(noise=noise, sampler="euler", steps=8, last_step=3)
    second = run(latent=first, sampler="euler", steps=8, start_step=3, disable_noise=True)
    torch.testing.assert_close(second, whole, rtol=0, atol=1e-4)


def test_force_full_denoise_leaves_no_noise_over():
    sigmas = torch.tensor([8.0, 4.0, 2.0, 0.0])
    assert part_of_schedule(sigmas, 1, 2, False).tolist() == [4.0, 2.0]
    assert part_of_schedule(sigmas, None, 2, True).tolist() == [8.0, 4.0, 0.0]
    assert sigmas.tolist() == [8.0, 4.0, 2.0, 0.0]


def test_a_schedule_of_one_s_own_is_used():
    model = FakeModel()
    run(model, sigmas=torch.tensor([5.0, 1.0, 0.0]))
    assert [float(c["t"][0]) for c in model.calls] == [5.0, 1.0]


def test_options_reach_the_sampler():
    plain = run(sampler="euler_ancestral", sampler_options={"eta": 0.0})
    torch.testing.assert_close(plain, run(sampler="euler"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", EACH)
def test_masked_sampling_keeps_what_the_mask_leaves_out(sampler):
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3)) * 7
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    out = run(latent=latent, noise_mask=mask, sampler=sampler, denoise=1.0)
    kept = mask.expand_as(out) == 0
    assert torch.equal(out[kept], latent[kept])
    assert (out[~kept] - latent[~kept]).abs().mean() > 1.0


def test_masked_sampling_does_not_depend_on_the_batch():
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)) * 7
    mask = torch.zeros(1, 1, 128, 128)  # in pixels
    mask[..., 64:] = 1
    together = run(latent=latent.repeat(2, 1, 1, 1), seed=[4, 5], noise_mask=mask)
    alone = run(latent=latent, seed=5, noise_mask=mask)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)


def test_a_soft_mask_mixes():
    latent = torch.full((1, 4, 16, 16), 7.0)
    kept, half, painted = (
        run(latent=latent, noise_mask=torch.full((16, 16), m)) for m in (0.0, 0.5, 1.0)
    )
    assert torch.equal(kept, latent)
    assert (half - latent).abs().mean() < 0.7 * (painted - latent).abs().mean()


def test_a_mask_function_may_change_the_mask_as_noise_falls():
    model = Patcher(FakeModel())
    seen = []

    def function(sigma, mask, extra_options):
        seen.append((float(sigma[0]), len(extra_options["sigmas"])))
        return mask * 0

    model.model_options["denoise_mask_function"] = function
    latent = torch.full((1, 4, 16, 16), 7.0)
    out = run(model, latent=latent, noise_mask=torch.ones(16, 16))
    torch.testing.assert_close(out, latent)
    assert [n for _, n in seen] == [5] * 4


class Stop(Exception):
    """What a cancelled task raises."""


@pytest.mark.parametrize("sampler", EACH)
def test_an_interrupt_stops_before_the_next_evaluation(sampler):
    calls = {"interrupt": 0}

    def interrupt():
        calls["interrupt"] += 1
        if calls["interrupt"] == 6:
            raise Stop

    model = FakeModel()
    sampling = model.model_sampling
    with pytest.raises(Stop):
        run(Patcher(model, interrupt=interrupt), steps=20, sampler=sampler, scheduler="lcm")
    assert len(model.calls) == 5
    assert model.calls[0]["interrupt"] is interrupt  # the network may ask more often
    assert model.model_sampling is sampling  # what a schedule brings along goes with it


@pytest.mark.parametrize("sampler", EACH)
@pytest.mark.parametrize(("steps", "denoise"), [(1, 1.0), (2, 1.0), (2, 0.4), (5, 0.7)])
def test_every_sampler_ends_on_every_schedule(sampler, steps, denoise):
    latent = torch.full((1, 4, 8, 8), 0.5)
    for scheduler in SCHEDULERS:
        last = []
        out = run(
            latent=latent,
            steps=steps,
            denoise=denoise,
            sampler=sampler,
            scheduler=scheduler,
            callback=lambda step, denoised, x, total, last=last: last.append((step, total)),
        )
        assert out.isfinite().all()
        assert out.abs().max() < 1e4  # Heun in two steps from sigma 120 leaps far
        assert not torch.equal(out, latent)
        assert last[-1] == (steps - 1, steps)


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
def test_some_samplers_leave_out_the_last_but_one_level(sampler):
    model = FakeModel()
    whole = calculate_sigmas_scheduler(model, "karras", 9)
    sigmas = KSampler(model, 8, "cpu", sampler, "karras").sigmas
    assert sigmas.tolist() == [*whole[:-2].tolist(), 0.0]
    assert len(KSampler(model, 8, "cpu", sampler, "karras", denoise=0.5).sigmas) == 9


def test_no_steps_leave_the_latents_as_they_are():
    assert run(steps=0) is LATENT


def test_a_schedule_may_bring_the_levels_of_a_distilled_model():
    class Watched(FakeModel):
        def apply_model(self, x, t, *args, **kwargs):
            times.extend(self.model_sampling.timestep(t).tolist())
            return super().apply_model(x, t, *args, **kwargs)

    times: list[int] = []
    model = Watched()
    run(model, steps=4, sampler="lcm", scheduler="lcm")
    assert all(t % 20 == 19 for t in times)
    assert times[0] == 999
    assert len(model.model_sampling.sigmas) == 1000


def test_playground_s_schedule_brings_its_latents_scale_along():
    seen = []
    out = run(
        sampler="euler",
        scheduler="edm_playground_v2.5",
        callback=lambda step, denoised, x, total: seen.append(denoised),
    )
    torch.testing.assert_close(out, SDXL_Playground_2_5().process_out(seen[-1]))


@pytest.mark.parametrize("sampler", EACH)
def test_every_sampler_starts_from_pure_noise_too(sampler):
    model = FakeModel()
    sampling = model.model_sampling
    sampling.set_sigmas(rescale_zero_terminal_snr_sigmas(sampling.sigmas))
    out = run(model, steps=12, sampler=sampler, scheduler="sgm_uniform")
    assert out.isfinite().all()
    assert out.abs().max() < 2e3


def test_options_of_the_model_are_not_written_to():
    model = Patcher(FakeModel(), patches={"x": 1})
    run(model)
    assert model.model_options == {"transformer_options": {"patches": {"x": 1}}}


@pytest.mark.parametrize("bad_call", [0, 2, 3])
def test_a_network_that_gives_nan_is_an_error_in_words(bad_call):
    class Broken(FakeModel):
        def apply_model(self, x, *args, **kwargs):
            out = super().apply_model(x, *args, **kwargs)
            return out * float("nan") if len(self.calls) == bad_call + 1 else out

    with pytest.raises(NotFinite, match=f"step {bad_call + 1} of 4.*--all-in-fp32"):
        run(Broken(), sampler="euler")


def test_nothing_to_do_gives_the_latents_back():
    latent = torch.randn(1, 4, 16, 16)
    assert torch.equal(run(latent=latent, denoise=0.0), latent)
    assert torch.equal(run(latent=latent, start_step=4), latent)
