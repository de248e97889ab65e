"""The VAE object: value ranges, tiles, stopping, and numbers that are not numbers."""

import pytest
import torch

from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from ldm_patched.modules import utils, vae
from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.vae import VAE
from tests.support.tiny_checkpoint import TINY, random_weights, vae_shapes


def make_vae(dtype=torch.float32, memory_format=torch.channels_last, change=None):
    weights = random_weights(vae_shapes(TINY), seed=2)
    if change:
        change(weights)
    model = AutoencoderKL(
        detect_autoencoder_config({k: tuple(v.shape) for k, v in weights.items()})
    )
    model.load_state_dict(weights)
    return VAE(
        model.to(dtype=dtype, memory_format=memory_format), dtype=dtype, memory_format=memory_format
    )


@pytest.fixture(scope="module")
def plain():
    return make_vae()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_pixels_and_latents_have_the_promised_shapes_and_ranges(plain):
    pixels = plain.decode(noise(2, 4, 5, 9) * 8)
    assert pixels.shape == (2, 40, 72, 3)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    latents = plain.encode(pixels)
    assert latents.shape == (2, 4, 5, 9)
    assert plain.encode(torch.rand(1, 21, 35, 4)).shape == (1, 4, 2, 4)


def test_the_model_sees_pixels_from_minus_one_to_one(plain):
    pixels = torch.rand(1, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = plain.first_stage_model.encode(pixels.permute(0, 3, 1, 2) * 2 - 1)
        torch.testing.assert_close(plain.encode(pixels), expected, rtol=1e-4, atol=1e-5)
        picture = plain.first_stage_model.decode(expected)
    torch.testing.assert_close(
        plain.decode(expected),
        (picture.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_picture_does_not_depend_on_the_batch_around_it(plain):
    latents = noise(3, 4, 4, 4)
    together = plain.decode(latents)
    torch.testing.assert_close(plain.decode(latents[1:2]), together[1:2], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(plain, dtype):
    latents = noise(1, 4, 8, 8)
    error = (make_vae(dtype).decode(latents) - plain.decode(latents)).abs()
    assert error.mean() < 0.01


# --- Tiles ------------------------------------------------------------------------------------


def test_tiles_of_a_local_function_blend_to_the_whole():
    x = noise(1, 2, 50, 37)
    doubled = utils.tiled_map(
        lambda part: part.repeat_interleave(2, -1).repeat_interleave(2, -2),
        x,
        tile=16,
        overlap=6,
        scale=2.0,
    )
    torch.testing.assert_close(doubled, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    halved = utils.tiled_map(
        lambda part: part[..., ::2, ::2], x[..., :36], tile=16, overlap=6, scale=0.5
    )
    torch.testing.assert_close(halved, x[..., :36][..., ::2, ::2])


def test_tiles_fade_into_each_other():
    counter = iter(range(100))
    levels = utils.tiled_map(
        lambda part: torch.full_like(part, float(next(counter))),
        torch.zeros(1, 1, 4, 28),
        tile=16,
        overlap=4,
        scale=1.0,
    )[0, 0, 0]
    assert levels[:12].tolist() == [0.0] * 12
    assert levels[16:].tolist() == [1.0] * 12
    assert (levels.diff()[11:16] > 0.1).all()


@pytest.mark.parametrize(
    ("length", "starts"), [(10, [0]), (16, [0]), (17, [0, 1]), (28, [0, 12]), (40, [0, 12, 24])]
)
def test_tiles_cover_everything_and_overlap(length, starts):
    assert utils.tile_starts(length, 16, 4) == starts


def test_tiled_decoding_is_like_the_whole(plain, monkeypatch):
    monkeypatch.setattr(vae, "TILE", 16)
    latents = noise(1, 4, 20, 28)
    whole, tiled = plain.decode(latents, tiled=False), plain.decode(latents, tiled=True)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05  # norms and attention see a tile, not the whole
    encoded = plain.encode(whole, tiled=True)
    assert encoded.shape == latents.shape
    assert (encoded - plain.encode(whole, tiled=False)).abs().mean() < 0.2 * encoded.std()


def test_tiles_are_used_when_memory_is_short(plain, monkeypatch):
    calls = []
    original = utils.tiled_map
    monkeypatch.setattr(utils, "tiled_map", lambda *a, **k: calls.append(1) or original(*a, **k))
    plain.decode(noise(1, 4, 8, 8))
    assert not calls
    monkeypatch.setattr(vae, "free_memory", lambda device: 1024)
    plain.decode(noise(1, 4, 8, 8))
    plain.encode(torch.rand(1, 64, 64, 3))
    assert len(calls) == 2


def test_tiles_are_used_when_memory_runs_out(plain, monkeypatch):
    decode = plain.first_stage_model.decode

    def fails_on_large(z, interrupt=None):
        if z.shape[-1] > 16:
            raise torch.OutOfMemoryError("out of memory")
        return decode(z, interrupt)

    monkeypatch.setattr(plain.first_stage_model, "decode", fails_on_large)
    monkeypatch.setattr(vae, "TILE", 16)
    assert plain.decode(noise(1, 4, 16, 20)).shape == (1, 128, 160, 3)


# --- Stopping and broken numbers --------------------------------------------------------------


class Stop(Exception):
    """What an interrupt raises."""


@pytest.mark.parametrize("tiled", [False, True])
def test_an_interrupt_stops_decoding_and_encoding(plain, tiled):
    calls = []

    def stop():
        calls.append(1)
        raise Stop

    with pytest.raises(Stop):
        plain.decode(noise(1, 4, 8, 8), stop, tiled=tiled)
    with pytest.raises(Stop):
        plain.encode(torch.rand(1, 64, 64, 3), stop, tiled=tiled)
    assert len(calls) == 2


def enlarge(weights):
    weights["decoder.conv_in.weight"] *= 1e5  # beyond float16, well inside float32


def test_an_overflow_in_half_precision_is_repeated_in_float32(caplog):
    small = make_vae(torch.float16, change=enlarge)
    latents = noise(1, 4, 4, 4)
    pixels = small.decode(latents)
    assert small.dtype == torch.float32
    assert pixels.std() > 0.01
    assert "float32" in caplog.text
    reference = make_vae(change=enlarge).decode(latents)
    assert (pixels - reference).abs().mean() < 0.01


def test_broken_weights_raise_not_finite():
    def break_them(weights):
        weights["decoder.conv_out.bias"][0] = float("nan")

    with pytest.raises(NotFinite, match="VAE"):
        make_vae(torch.bfloat16, change=break_them).decode(noise(1, 4, 4, 4))


def test_broken_latents_are_not_blamed_on_the_vae():
    half = make_vae(torch.bfloat16)
    with pytest.raises(NotFinite, match="before it reached the VAE"):
        half.decode(torch.full((1, 4, 4, 4), float("inf")))
    assert half.dtype == torch.bfloat16
