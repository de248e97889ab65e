"""A consistency model in full is told its guidance scale: from the file to the picture."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from safetensors.torch import save_file

from ldm_patched.modules import sd
from ldm_patched.modules.conds import guidance_embedding
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.sample import sample
from tests.support.engine_report import agree
from tests.support.tiny_checkpoint import TINY, UNET_PREFIX, tiny_sdxl_state_dict
from tests.support.unet_oracle import diffusers_unet, randomise, to_diffusers

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
DIM = 32
OURS = f"{UNET_PREFIX}time_embed.cond_proj.weight"


def load(path, weights):
    save_file(weights, str(path))
    model, *_ = sd.load_checkpoint_guess_config(
        str(path), output_vae=False, output_clip=False, policy=POLICY
    )
    assert model.model.load_report.unexpected == ()
    assert model.model.diffusion_model.config.guidance_dim == DIM
    return model


@pytest.fixture(scope="module")
def weights():
    made = tiny_sdxl_state_dict(3, torch.float32, TINY)
    width = made[f"{UNET_PREFIX}time_embed.0.weight"].shape[1]
    made[OURS] = torch.randn(width, DIM, generator=torch.Generator().manual_seed(1)) * DIM**-0.5
    return made


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return load(tmp_path_factory.mktemp("lcm") / "lcm.safetensors", weights)


def test_the_part_is_found_in_every_layout(model, weights, tmp_path):
    mixed = dict(weights)
    mixed[OURS.replace("time_embed", "time_embedding")] = mixed.pop(OURS)
    unet = model.model.diffusion_model
    alone = {k: w.contiguous() for k, w in to_diffusers(unet.config, unet.state_dict()).items()}
    for name, file in (("mixed", mixed), ("diffusers", alone)):
        found = load(tmp_path / f"{name}.safetensors", file).model.diffusion_model
        assert torch.equal(found.time_embed.cond_proj.weight, weights[OURS])


@pytest.mark.parametrize("scale", [1.0, 2.5, 8.0])
def test_the_embedding_is_that_of_diffusers(scale):
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    wanted = theirs(None, torch.tensor([scale - 1.0]), 256)
    torch.testing.assert_close(guidance_embedding(scale, 256), wanted, rtol=0, atol=1e-6)
    assert guidance_embedding(scale, 5).shape == (1, 5)


def test_the_network_predicts_what_diffusers_predicts(model):
    unet = model.model.diffusion_model
    randomise(unet, seed=5)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 16, 16, generator=g)
    context = torch.randn(2, 77, unet.config.context_dim, generator=g)
    pooled = torch.randn(2, TINY.clip_g_width, generator=g)
    told, t = guidance_embedding(8.0, DIM).expand(2, -1), torch.tensor([700.0] * 2)
    y = model.model.encode_adm(pooled, 128, 128)
    sizes = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]] * 2)
    with torch.no_grad():
        wanted = diffusers_unet(unet)(
            x,
            t,
            context,
            timestep_cond=told,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        found = unet(x, t, context, y, guidance=told)
        untold = unet(x, t, context, y)
    most, name = wanted.abs().max(), "LCM that is told its guidance scale"
    agree("family", name, "diffusers UNet2DConditionModel", found / most, wanted / most, 1e-4)
    assert (untold - found).abs().max() > 0.05


def test_the_scale_is_told_and_nothing_is_guided_twice(model, monkeypatch):
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 8, 8, generator=g)
    width = model.model.diffusion_model.config.context_dim
    texts = [[[torch.randn(1, 77, width, generator=g), {}]] for _ in range(3)]
    calls, own = [], model.model.apply_model

    def noted(x, t, **keywords):
        calls.append(keywords["guidance"])
        return own(x, t, **keywords)

    monkeypatch.setattr(model.model, "apply_model", noted)

    def paint(cfg, negative):
        return sample(
            model, noise, 3, cfg, "lcm", "lcm", texts[0], negative, torch.zeros_like(noise), seed=1
        )

    first = paint(8.0, texts[1])
    assert len(calls) == 3
    torch.testing.assert_close(calls[0], guidance_embedding(8.0, DIM))
    assert torch.equal(paint(8.0, texts[2]), first)  # the negative prompt has no say
    assert not torch.equal(paint(2.0, texts[1]), first)
