"""The tiny autoencoder against diffusers', in every layout of its files."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import latent_formats
from ldm_patched.modules.errors import CorruptModelFile
from ldm_patched.taesd.taesd import TAESD, TaesdPreviewer, load_taesd, make_decoder, make_encoder
from tests.support.engine_report import record
from tests.support.unet_oracle import randomise

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def theirs():
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny()
    randomise(model, 2)
    return model.requires_grad_(False).eval()


def write(path, weights):
    save_file({name: w.contiguous().clone() for name, w in weights.items()}, str(path))
    return path


def own_names(theirs, side):
    """A released file of one side: the decoder counts its clamp."""
    shift = side == "decoder"
    weights = getattr(theirs, side).layers.state_dict()
    return {
        f"{int(name.split('.')[0]) + shift}.{name.split('.', 1)[1]}": w
        for name, w in weights.items()
    }


def files(theirs, tmp_path, layout):
    if layout == "two files":
        return [
            write(tmp_path / f"taesdxl_{side}.safetensors", own_names(theirs, side))
            for side in ("decoder", "encoder")
        ]
    if layout == "diffusers":
        return [write(tmp_path / "both.safetensors", theirs.state_dict())]
    both = {
        f"taesd_{side}.{name}": w
        for side in ("decoder", "encoder")
        for name, w in own_names(theirs, side).items()
    }
    return [write(tmp_path / "both.safetensors", both)]


@pytest.mark.parametrize("layout", ["two files", "diffusers", "prefixed"])
def test_gives_what_diffusers_gives(theirs, tmp_path, layout):
    ours = load_taesd(*files(theirs, tmp_path, layout))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 6, 10, generator=generator)
    pixels = torch.rand(2, 3, 48, 80, generator=generator)
    with torch.no_grad():
        wanted = ((theirs.decode(latents).sample + 1.0) / 2.0).clamp(0.0, 1.0)
        wanted_latents = theirs.encode(pixels * 2.0 - 1.0).latents
    found, found_latents = ours.decode(latents), ours.encode(pixels)
    scale = float(wanted_latents.abs().max())
    difference = float((found - wanted).abs().max())
    latent_difference = float((found_latents - wanted_latents).abs().max()) / scale
    largest = max(difference, latent_difference)
    if layout == "two files":
        test = os.environ["PYTEST_CURRENT_TEST"]
        record("adapter", "TAESD", test, "diffusers", largest, TOLERANCE)
    assert largest < TOLERANCE
    assert wanted.std() > 0.05


def test_has_the_weights_of_the_released_files():
    for make, first, last in ((make_decoder, (64, 4, 3, 3), (3, 64, 3, 3)),
                              (make_encoder, (64, 3, 3, 3), (4, 64, 3, 3))):  # fmt: skip
        shapes = {name: tuple(p.shape) for name, p in make().named_parameters()}
        assert len(shapes) == 67
        ends = [shape for name, shape in shapes.items() if name.count(".") == 1 and len(shape) == 4]
        assert (ends[0], ends[-1]) == (first, last)
        assert sum(name.endswith("conv.4.weight") for name in shapes) == 10


def test_the_other_side_can_be_missing(theirs, tmp_path):
    decoder = load_taesd(files(theirs, tmp_path, "two files")[0])
    assert decoder.taesd_encoder is None
    with pytest.raises(ValueError, match="encoder"):
        decoder.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="decoder"):
        TAESD().decode(torch.zeros(1, 4, 1, 1))


def test_a_layer_that_is_no_number_is_damage(theirs, tmp_path):
    weights = {
        name.replace("0.", "0a.", 1): w for name, w in own_names(theirs, "encoder").items()
    } | {"0.weight": torch.zeros(64, 3, 3, 3)}
    path = write(tmp_path / "taesdxl_encoder.safetensors", weights)
    with pytest.raises(CorruptModelFile, match=r"taesdxl_encoder\.safetensors"):
        load_taesd(path)


def test_previews_are_the_decoded_latents_scaled_down(theirs, tmp_path):
    decoder = load_taesd(files(theirs, tmp_path, "two files")[0])
    latents = torch.randn(2, 4, 32, 48, generator=torch.Generator().manual_seed(3))
    whole = TaesdPreviewer(decoder, latent_formats.SDXL()).to_jpeg_ready(latents)
    assert whole.shape == (256, 384, 3)
    wanted = decoder.decode(latents[:1])[0].permute(1, 2, 0).mul(255.0)
    assert np.abs(whole.astype(float) - wanted.numpy()).max() <= 1.0
    small = TaesdPreviewer(decoder, latent_formats.SD15(), max_side=128).to_jpeg_ready(latents)
    assert small.shape == (88, 128, 3)
    latents[0, 0, 0, 0] = float("nan")
    assert TaesdPreviewer(decoder, latent_formats.SDXL()).to_jpeg_ready(latents).dtype == np.uint8


def test_playground_s_latents_are_brought_to_the_decoder_s_scale(theirs, tmp_path):
    decoder = load_taesd(files(theirs, tmp_path, "two files")[0])
    playground, sdxl = latent_formats.SDXL_Playground_2_5(), latent_formats.SDXL()
    raw = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 5.0
    found = TaesdPreviewer(decoder, playground).to_jpeg_ready(playground.process_in(raw))
    wanted = TaesdPreviewer(decoder, sdxl).to_jpeg_ready(sdxl.process_in(raw))
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
