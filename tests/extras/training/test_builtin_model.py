"""The built-in model's file: SDXL's layout, read by the same loader as any other."""

import json

import pytest
import torch
from safetensors.torch import save_file

from extras.training import builtin_model as builtin
from extras.training.caption_tokens import caption_ids, framed, used_ids
from extras.training.window import conditions
from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from ldm_patched.modules.sd import load_checkpoint_guess_config, read_model_metadata


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    sizes = builtin.TOY
    return {
        "unet": builtin.make_unet(sizes), "vae": builtin.make_vae(sizes),
        "clip": builtin.make_text_encoders(sizes, used_ids()),
    }  # fmt: skip


@pytest.fixture(scope="module")
def path(networks, tmp_path_factory):
    clip_l, clip_g = networks["clip"]
    weights = builtin.checkpoint_file(
        networks["unet"].state_dict(),
        networks["vae"].state_dict(),
        builtin.clip_l_file(clip_l, clip_l.state_dict()),
        builtin.clip_g_file(clip_g, clip_g.state_dict()),
        dtype=torch.float32,
    )
    path = tmp_path_factory.mktemp("builtin") / "toy.safetensors"
    metadata = {key: json.dumps(value) for key, value in builtin.file_metadata().items()}
    save_file(weights, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    policy = DevicePolicy.detect(DeviceFlags(always_cpu=True, all_in_fp32=True))
    model, clip, vae, _ = load_checkpoint_guess_config(path, policy=policy)
    return model, clip, vae


def test_a_fresh_autoencoder_tells_flat_colours_apart_by_how_far_they_lie():
    """A norm that divides by the picture's own spread would answer all four pairs alike."""
    torch.manual_seed(0)
    vae = builtin.make_vae(builtin.MINI)

    def difference(half, channels, side, value):
        """Between a flat input of `value` and one of its negative, away from the border."""
        flat = torch.full((2, channels, side, side), value)
        flat[0] *= -1
        first, second = half(flat)
        inner = slice(len(first[0]) // 4, -len(first[0]) // 4)
        return float((first - second)[:, inner, inner].abs().mean())

    with torch.no_grad():
        assert difference(vae.encode, 3, 64, 0.8) > 2 * difference(vae.encode, 3, 64, 0.2)
        assert difference(vae.decode, 4, 8, 2.0) > 4 * difference(vae.decode, 4, 8, 0.5)


def test_the_shipped_dimensions_are_as_small_as_promised():
    sizes = builtin.MINI
    assert 13e6 < parameters(builtin.make_unet(sizes)) < 15e6
    assert parameters(builtin.make_vae(sizes)) < 4e6
    config = sizes.unet_config()
    assert config.num_head_channels == 64
    assert {sizes.clip_l_width % 64, sizes.clip_g_width % 64} == {0}


@pytest.mark.parametrize("sizes", [builtin.MINI, builtin.TOY], ids=["mini", "toy"])
def test_a_loader_reads_the_autoencoders_dimensions_from_its_shapes(sizes):
    with torch.device("meta"):
        vae = AutoencoderKL(sizes.vae_config())
    shapes = {name: tuple(w.shape) for name, w in vae.state_dict().items()}
    assert detect_autoencoder_config(shapes) == sizes.vae_config()


def test_nothing_is_missing_or_left_over(loaded):
    model, clip, vae = loaded
    for report in (model.model.load_report, clip.load_report, vae.load_report):
        assert report == LoadReport()


def test_prompts_are_encoded_as_in_training(networks, loaded):
    text = "a tiny masterpiece, two red cats"  # with a word that captions never use
    tokens = torch.from_numpy(framed(caption_ids(text))).long()[None]
    rows = conditions(tokens, torch.zeros(1, 6), torch.device("cpu"))
    clip_l, clip_g = networks["clip"]
    with torch.no_grad():
        hidden = torch.cat([clip_l(rows["tokens_l"])[0], clip_g(rows["tokens_g"])[0]], dim=-1)
        pooled = clip_g(rows["tokens_g"])[1]
    clip = loaded[1]
    theirs, their_pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    torch.testing.assert_close(theirs, hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(their_pooled, pooled, rtol=1e-4, atol=1e-5)


def test_pictures_are_encoded_and_decoded_as_in_training(networks, loaded):
    pixels = torch.rand(1, 64, 32, 3, generator=torch.Generator().manual_seed(1))
    x = pixels.permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        latents = networks["vae"].encode(x)
        back = networks["vae"].decode(latents)
    vae = loaded[2]
    torch.testing.assert_close(vae.encode(pixels), latents, rtol=1e-3, atol=1e-4)
    expected = (back.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(latents), expected, rtol=1e-3, atol=1e-4)


def test_the_network_is_the_trained_one(networks, loaded):
    generator = torch.Generator().manual_seed(2)
    unet = networks["unet"]
    inputs = {
        "timesteps": torch.tensor([500.0]),
        "context": torch.randn(1, 77, unet.config.context_dim, generator=generator),
        "y": torch.randn(1, unet.config.adm_in_channels, generator=generator),
    }
    x = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        unet.out[2].weight.normal_(std=0.1, generator=generator)
        loaded[0].model.diffusion_model.out[2].weight.copy_(unet.out[2].weight)
        ours = unet(x, **inputs)
        theirs = loaded[0].model.diffusion_model(x, **inputs)
    assert float(ours.std()) > 0.01
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_the_file_says_what_sizes_it_paints(path):
    metadata = read_model_metadata(path)
    assert metadata.area == 65536
    assert metadata.ratios[:3] == ("1:1", "9:7", "7:9")
    assert len(metadata.ratios) == 7


def test_unknown_words_share_one_row(networks):
    table = networks["clip"][0].text_model.embeddings.token_embedding
    whole = table.whole(table.weight)
    known = set(used_ids())
    strange = [token for token in range(1000, 2000) if token not in known][:5]
    assert all(torch.equal(whole[token], table.weight[-1]) for token in strange)
    assert len(known) == len(table.weight) - 1
