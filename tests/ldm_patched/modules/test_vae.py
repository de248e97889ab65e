"""The VAE object: value ranges, strips, stopping, and numbers that are not numbers."""

import math
import weakref

import pytest
import torch

from ldm_patched.ldm.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderKL,
    detect_autoencoder_config,
)
from ldm_patched.modules import vae, vae_strips
from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.vae import VAE
from tests.support import engine_report
from tests.support.counting_transfer import CountingTransfer
from tests.support.tiny_checkpoint import TINY, random_weights, vae_shapes

MIDDLE = {"num_res_blocks": 1, "z_channels": 4, "embed_dim": 4}


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


def test_the_estimate_of_memory_goes_by_the_width_at_full_size():
    wide, plain = (
        VAE(AutoencoderKL(AutoencoderConfig(ch=ch, ch_mult=mult, **MIDDLE)))
        for ch, mult in ((32, (3, 1)), (96, (1, 1)))
    )
    for decoding in (False, True):
        needed = wide.memory_required(64, 64, decoding=decoding)
        assert needed == plain.memory_required(64, 64, decoding=decoding)


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


@pytest.fixture
def thin_strips(monkeypatch):
    monkeypatch.setattr(vae_strips, "STRIP_NUMBERS", 2**13)


@pytest.fixture(scope="module")
def real_like():
    """Weights whose maps drift as real ones do: norms that scale and shift, groups of unequal
    mean and spread, and latents with a bright and a flat half."""

    def drift(weights):
        g = torch.Generator().manual_seed(9)
        for name, w in weights.items():
            if "norm" in name and name.endswith("weight"):
                w.copy_(1.0 + 0.5 * torch.randn(w.shape, generator=g))
            elif "norm" in name:
                w.copy_(0.5 * torch.randn(w.shape, generator=g))

    latents = noise(1, 4, 20, 28) * 6
    latents[..., 14:] = 3.0
    latents[:, :, :8] += 5.0
    return drift, latents


def decibels(found, wanted):
    """PSNR of pictures in 0..1."""
    return -10 * math.log10(max(float((found - wanted).square().mean()), 1e-12))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(
    ("dtype", "wanted"), [(torch.float32, 100.0), (torch.bfloat16, 45.0)], ids=str
)
def test_strips_give_the_whole_picture(
    real_like, thin_strips, dtype, wanted, memory_format, request
):
    drift, latents = real_like
    model = make_vae(dtype, memory_format, change=drift)
    whole, strips = (model.decode(latents, tiled=tiled) for tiled in (False, True))
    assert whole.std() > 0.05
    found = decibels(strips, whole)
    engine_report.record(
        "memory",
        f"VAE decode in strips, {dtype}",
        request.node.nodeid,
        "the whole picture, root mean square",
        10 ** (-found / 20),
        10 ** (-45 / 20),
    )
    assert found >= wanted
    seams = (strips - whole).abs().amax(dim=(0, 2, 3))
    assert float(seams.max()) < (1e-4 if dtype is torch.float32 else 0.1)

    pixels = torch.rand(1, 168, 200, 3, generator=torch.Generator().manual_seed(4))
    whole, strips = (model.encode(pixels, tiled=tiled) for tiled in (False, True))
    assert strips.shape == whole.shape == (1, 4, 21, 25)
    span = float(whole.max() - whole.min())
    assert decibels(strips / span, whole / span) >= wanted


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3)])
def test_small_pictures_in_strips(plain, thin_strips, size):
    latents = noise(1, 4, *size)
    whole = plain.decode(latents, tiled=False)
    torch.testing.assert_close(plain.decode(latents, tiled=True), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        plain.encode(whole, tiled=True), plain.encode(whole, tiled=False), rtol=1e-4, atol=1e-5
    )


def test_strips_take_less_memory(plain, monkeypatch):
    """Counted bytes of everything that lives at once."""
    latents = noise(1, 4, 32, 32)
    peaks = {}
    monkeypatch.setattr(vae_strips, "STRIP_NUMBERS", 2**15)
    for tiled in (False, True):
        counter = CountingTransfer()
        with counter.counting():
            plain.decode(latents, tiled=tiled)
        peaks[tiled] = counter.peak
    largest_map = 256 * 256 * TINY.vae_channels * 2 * 4
    # On a CPU the host is the device: the widest map and two of half its width wait there.
    assert peaks[True] < 2.1 * largest_map < 0.85 * peaks[False]


def test_strips_are_used_when_memory_is_short(plain, monkeypatch):
    used = []
    decode, encode = vae_strips.StripCoder.decode, vae_strips.StripCoder.encode
    monkeypatch.setattr(
        vae_strips.StripCoder, "decode", lambda c, z: used.append("decode") or decode(c, z)
    )
    monkeypatch.setattr(
        vae_strips.StripCoder, "encode", lambda c, x: used.append("encode") or encode(c, x)
    )
    plain.decode(noise(1, 4, 8, 8))
    assert not used
    monkeypatch.setattr(vae, "free_memory", lambda device: 1024)
    plain.decode(noise(1, 4, 8, 8))
    plain.encode(torch.rand(1, 64, 64, 3))
    assert used == ["decode", "encode"]


def test_strips_are_used_when_memory_runs_out(plain, monkeypatch, caplog):
    latents = noise(1, 4, 16, 20)
    wanted = plain.decode(latents)

    maps = []

    def fails(z, interrupt=None):
        h = z * 2.0
        maps.append(weakref.ref(h))
        raise torch.OutOfMemoryError("out of memory")

    decode, held = vae_strips.StripCoder.decode, []
    monkeypatch.setattr(
        vae_strips.StripCoder, "decode", lambda c, z: held.append(maps[0]()) or decode(c, z)
    )
    monkeypatch.setattr(plain.first_stage_model, "decode", fails)
    torch.testing.assert_close(plain.decode(latents), wanted, rtol=0, atol=1e-5)
    assert "strips" in caplog.text
    assert held == [None]  # what did not fit is gone before the strips begin


@pytest.mark.parametrize("mode", ["encode", "decode"])
def test_each_strip_can_be_the_last(plain, thin_strips, mode):
    calls = []
    work(plain, mode, lambda: calls.append(1))
    count = len(calls)
    assert count > 40
    for last in (1, count // 2, count):
        calls.clear()

        def stop(last=last):
            calls.append(1)
            if len(calls) == last:
                raise Stop

        with pytest.raises(Stop):
            work(plain, mode, stop)
        assert len(calls) == last


def work(plain, mode, interrupt):
    if mode == "decode":
        return plain.decode(noise(1, 4, 8, 8), interrupt, tiled=True)
    return plain.encode(torch.rand(1, 64, 64, 3), interrupt, tiled=True)


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


def test_strips_find_the_weights_where_the_way_back_in_float32_found_no_room(monkeypatch):
    small, places = make_vae(torch.float16, change=enlarge), []
    wanted = make_vae(change=enlarge).decode(noise(1, 4, 4, 4))

    def enter(_):
        places.append("device")
        if len(places) == 2:  # the one in float32
            places[-1] = "host"
            raise torch.OutOfMemoryError("no room for float32")

    monkeypatch.setattr(small.residence, "enter", enter)
    pixels = small.decode(noise(1, 4, 4, 4))
    assert places == ["device", "host", "device"]
    assert (pixels - wanted).abs().max() < 0.01


def test_the_way_back_in_float32_asks_for_twice_the_room(monkeypatch):
    small, asked = make_vae(torch.float16, change=enlarge), []
    monkeypatch.setattr(small.residence, "enter", asked.append)
    small.decode(noise(1, 4, 4, 4))
    assert asked[1] == 2 * asked[0] > 0
