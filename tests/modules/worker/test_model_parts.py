"""Models whose parts the user chooses or keeps apart: VAE, text encoders, CLIP skip, folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_patched.modules import model_source, sd
from ldm_patched.modules.errors import CorruptModelFile
from modules.library.catalog import ModelFile
from modules.library.model_sizes import model_sizes
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing, ModelUnsupported, SpecError
from modules.spec.flags import TaskState
from modules.spec.sizes import SD1, SDXL
from modules.spec.task_spec import TaskSpec
from modules.worker.model_files import stamp_of
from tests.modules.worker.test_prompts import paint, pixels
from tests.support.tiny_checkpoint import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    TINY,
    UNET_PREFIX,
    VAE_PREFIX,
    tiny_sdxl_state_dict,
    write_tiny_sdxl,
)


@pytest.fixture
def studio(fresh_studio):
    """What it loads, and from where, is what is looked at here."""
    return fresh_studio


ROOTS = {
    "unet": (UNET_PREFIX, ModelFolder.CHECKPOINTS),
    "vae": (VAE_PREFIX, ModelFolder.VAE),
    "clip_l": (CLIP_L_PREFIX.removesuffix("text_model."), ModelFolder.TEXT_ENCODERS),
    "clip_g": (CLIP_G_PREFIX, ModelFolder.TEXT_ENCODERS),
}


@pytest.fixture
def apart(studio, tiny_checkpoint):
    """The tiny checkpoint again, a file for each part."""
    weights = load_file(str(tiny_checkpoint))
    for name, (root, folder) in ROOTS.items():
        part = {k.removeprefix(root): v for k, v in weights.items() if k.startswith(root)}
        write(studio, folder, f"{name}.safetensors", part)


def write(studio, folder, name, weights):
    path = studio.settings.models_path / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path), metadata={"easel.area": "4096"})
    return path


def find(studio, folder, name):
    return studio.catalog.find(folder, name)


def refresh(studio, name, **options):
    return studio.pipeline.refresh(studio.catalog.find_checkpoint(name), **options)


def parts(studio):
    return {
        "spare_vaes": studio.catalog.files(ModelFolder.VAE),
        "text_encoders": studio.catalog.files(ModelFolder.TEXT_ENCODERS),
    }


def painted(studio, **values):
    task = paint(studio, **values)
    assert task.state is TaskState.DONE, task.message
    return pixels(studio, task)


def weight_of(model):
    return next(model.vae.first_stage_model.parameters())


def test_parts_in_files_of_their_own_paint_what_the_whole_paints(studio, apart):
    whole = painted(studio, checkpoint="tiny.safetensors", width=64, height=64)
    joined = painted(studio, checkpoint="unet.safetensors", width=64, height=64)
    assert np.array_equal(joined, whole)


@pytest.mark.parametrize(
    ("gone", "words"), [("vae", "no VAE.*models/vae"), ("clip_g", "no text encoders.*text_enc")]
)
def test_a_part_that_is_nowhere_is_named(studio, apart, gone, words):
    (studio.settings.models_path / ROOTS[gone][1] / f"{gone}.safetensors").unlink()
    with pytest.raises(ModelUnsupported, match=words):
        refresh(studio, "unet.safetensors", **parts(studio))


def test_of_two_vaes_none_is_guessed(studio, apart):
    files = studio.settings.models_path / ModelFolder.VAE
    (files / "other.safetensors").write_bytes((files / "vae.safetensors").read_bytes())
    with pytest.raises(ModelUnsupported, match="choose it in the VAE list"):
        refresh(studio, "unet.safetensors", **parts(studio))


def test_a_replaced_text_encoder_is_noticed(studio, apart):
    before = refresh(studio, "unet.safetensors", **parts(studio))
    assert refresh(studio, "unet.safetensors", **parts(studio)) is before
    assert len(before.text_stamps) == 2
    words = studio.pipeline.encode(before, ["a boat"])[0][0]
    write(studio, ModelFolder.TEXT_ENCODERS, "unused.safetensors", {"x": torch.ones(2)})
    assert refresh(studio, "unet.safetensors", **parts(studio)) is before
    path = find(studio, ModelFolder.TEXT_ENCODERS, "clip_l.safetensors").path
    weights = {k: -v if v.is_floating_point() else v for k, v in load_file(str(path)).items()}
    path.unlink()  # else the new file would be written over the one that is in use
    write(studio, ModelFolder.TEXT_ENCODERS, "clip_l.safetensors", weights)
    after = refresh(studio, "unet.safetensors", **parts(studio))
    assert after is not before
    assert not torch.allclose(studio.pipeline.encode(after, ["a boat"])[0][0], words)


def test_only_a_checkpoint_without_them_has_text_encoders_opened(studio, apart, monkeypatch):
    opened = []
    real = model_source.open_weights
    monkeypatch.setattr(
        model_source, "open_weights", lambda path: opened.append(Path(path).name) or real(path)
    )
    model = refresh(studio, "tiny.safetensors", **parts(studio))
    assert opened == ["tiny.safetensors"]
    assert model.text_stamps == ()
    refresh(studio, "unet.safetensors", **parts(studio))
    assert {"clip_l.safetensors", "clip_g.safetensors"} <= set(opened)


def test_an_inpainting_network_sees_grey_as_the_vae_that_is_used_codes_it(studio):
    weights = tiny_sdxl_state_dict(3, torch.float32, dataclasses.replace(TINY, in_channels=9))
    bare = {k: w for k, w in weights.items() if not k.startswith(VAE_PREFIX)}
    write(studio, ModelFolder.CHECKPOINTS, "whole.safetensors", weights)
    write(studio, ModelFolder.CHECKPOINTS, "bare.safetensors", bare)
    vaes = []
    for name, shift in (("right", 0.5), ("broken", float("nan"))):
        vae = {k.removeprefix(VAE_PREFIX): w for k, w in weights.items() if k not in bare}
        vae["quant_conv.bias"] = vae["quant_conv.bias"] + shift
        write(studio, ModelFolder.VAE, f"{name}.safetensors", vae)
        vaes.append(find(studio, ModelFolder.VAE, f"{name}.safetensors"))
    right, broken = vaes

    def blank(name, **options):
        model = refresh(studio, name, **options)
        grey = model.vae.encode(torch.full((1, 64, 64, 3), 0.5)).mean(dim=(2, 3), keepdim=True)
        assert torch.equal(model.unet.model.blank_picture, grey)
        return grey

    own, other = blank("whole.safetensors"), blank("whole.safetensors", vae=right)
    assert (own - other).abs().max() > 0.1
    with pytest.raises(CorruptModelFile, match="broken.safetensors is damaged"):
        refresh(studio, "whole.safetensors", vae=broken)
    assert torch.equal(blank("whole.safetensors", vae=right), other)
    assert torch.equal(blank("whole.safetensors"), own)
    studio.pipeline.drop_models()
    assert torch.equal(blank("whole.safetensors", vae=right), other)
    assert torch.equal(blank("bare.safetensors", spare_vaes=[right]), other)


def test_another_spare_vae_takes_the_place_of_the_one_before(studio, apart):
    before = refresh(studio, "unet.safetensors", **parts(studio))
    assert refresh(studio, "unet.safetensors", **parts(studio)) is before
    path = find(studio, ModelFolder.VAE, "vae.safetensors").path
    weights = {k: v * 2 for k, v in load_file(str(path)).items()}
    path.unlink()
    write(studio, ModelFolder.VAE, "right.safetensors", weights)
    after = refresh(studio, "unet.safetensors", **parts(studio))
    assert after.unet is before.unet
    wanted = weights["decoder.conv_in.weight"].float()
    found = after.vae.first_stage_model.decoder.conv_in.weight.float().cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    assert refresh(studio, "unet.safetensors", **parts(studio)) is after


def test_a_chosen_vae_takes_the_place_of_the_checkpoints_own_and_gives_it_back(studio, apart):
    own = refresh(studio, "tiny.safetensors")
    weights = {k: v + 1 for k, v in load_file(str(own_vae(studio))).items()}
    write(studio, ModelFolder.VAE, "bright.safetensors", weights)
    vae = find(studio, ModelFolder.VAE, "bright.safetensors")
    other = refresh(studio, "tiny.safetensors", vae=vae)
    assert other.unet is own.unet
    torch.testing.assert_close(weight_of(other), weight_of(own) + 1)
    assert refresh(studio, "tiny.safetensors", vae=vae) is other
    again = refresh(studio, "tiny.safetensors")
    assert again.unet is own.unet
    torch.testing.assert_close(weight_of(again), weight_of(own), rtol=0, atol=0)


def own_vae(studio):
    return studio.settings.models_path / ModelFolder.VAE / "vae.safetensors"


def test_the_vae_of_the_request_is_used(studio, apart):
    plain = painted(studio, checkpoint="tiny.safetensors")
    weights = load_file(str(own_vae(studio)))
    weights["decoder.conv_out.bias"] += 1.0
    write(studio, ModelFolder.VAE, "bright.safetensors", weights)
    bright = painted(studio, checkpoint="tiny.safetensors", vae="bright.safetensors")
    assert bright.mean() > plain.mean() + 20
    missing = paint(studio, vae="gone.safetensors")
    assert "'gone.safetensors' is not in models/vae" in missing.message


def test_a_vae_of_another_kind_of_model_does_not_fit(studio, apart):
    weights = load_file(str(own_vae(studio)))
    wide = {
        "decoder.conv_in.weight": (1, 16),
        "post_quant_conv.weight": (0, 1, 16),
        "post_quant_conv.bias": (0, 16),
        "quant_conv.weight": (0, 1, 32),
        "quant_conv.bias": (0, 32),
        "encoder.conv_out.weight": (0, 32),
        "encoder.conv_out.bias": (0, 32),
    }
    for name, (*axes, size) in wide.items():
        for axis in axes:
            weight = weights[name]
            repeats = [1] * weight.ndim
            repeats[axis] = -(-size // weight.shape[axis])
            weights[name] = weight.repeat(*repeats)
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    write(studio, ModelFolder.VAE, "wide.safetensors", weights)
    vae = find(studio, ModelFolder.VAE, "wide.safetensors")
    with pytest.raises(ModelUnsupported, match=r"wide\.safetensors is the VAE of another kind"):
        refresh(studio, "tiny.safetensors", vae=vae)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b"])
def test_a_vae_is_named_never_a_path(name):
    with pytest.raises(SpecError, match="VAE"):
        TaskSpec.from_mapping({"vae": name})


def test_clip_skip_reads_another_layer(studio):
    model = refresh(studio, "tiny.safetensors")
    texts = ("a red house",)
    default, two, one = (studio.pipeline.encode(model, texts, 1, s)[0][0] for s in (None, 2, 1))
    torch.testing.assert_close(two, default, rtol=0, atol=0)  # SDXL reads the one before the last
    assert not torch.allclose(one, default)
    again = studio.pipeline.encode(model, texts, 1, None)[0][0]
    torch.testing.assert_close(again, default, rtol=0, atol=0)


def test_the_clip_skip_of_the_request_is_used(studio):
    plain, same, other = (painted(studio, clip_skip=skip) for skip in (None, 2, 1))
    assert np.array_equal(plain, same)
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("skip", [0, 13])
def test_clip_skip_has_a_range(skip):
    with pytest.raises(SpecError, match="CLIP skip must be at"):
        TaskSpec.from_mapping({"clip_skip": skip})


# --- Folders ----------------------------------------------------------------------------------


@pytest.fixture
def folder(studio, tiny_checkpoint):
    """A model folder whose parts are the tiny checkpoint's."""
    path = studio.settings.models_path / "checkpoints" / "sets" / "my model"
    weights = load_file(str(tiny_checkpoint))
    names = {
        "unet": "unet/diffusion_pytorch_model",
        "vae": "vae/diffusion_pytorch_model",
        "clip_l": "text_encoder/model",
        "clip_g": "text_encoder_2/model",
    }
    for name, place in names.items():
        root = ROOTS[name][0]
        part = {k.removeprefix(root): v for k, v in weights.items() if k.startswith(root)}
        (path / place).parent.mkdir(parents=True)
        save_file(part, str(path / f"{place}.safetensors"))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    (path / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    return path


def test_a_folder_is_one_checkpoint_and_paints_like_its_file(studio, folder):
    names = [file.name for file in studio.catalog.checkpoints()]
    assert names == ["sets/my model", "tiny.safetensors"]
    file = studio.catalog.find_checkpoint("sets/my model")
    assert file.size == sum(path.stat().st_size for path in folder.glob("*/*"))
    whole = painted(studio, checkpoint="tiny.safetensors", width=64, height=64)
    assert np.array_equal(painted(studio, checkpoint=file.name, width=64, height=64), whole)


def test_a_folder_whose_part_was_replaced_is_another(studio, folder, tmp_path):
    file = studio.catalog.find_checkpoint("sets/my model")
    before = stamp_of(file)
    assert stamp_of(file) == before
    write_tiny_sdxl(folder / "vae" / "diffusion_pytorch_model.safetensors", seed=2)
    assert stamp_of(file) != before


def test_a_folder_that_is_gone_is_missing(studio, folder):
    file = studio.catalog.find_checkpoint("sets/my model")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ModelMissing, match="sets/my model was there a moment ago"):
        stamp_of(file)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ('{"sample_size": 64}', SD1),
        ('{"sample_size": 128}', SDXL),
        ('{"sample_size": [64, 64]}', SDXL),
        ('{"sample_size": 1e999}', SDXL),
        ("{", SDXL),
        ("[" * 100_000, SDXL),
        ("{}", SDXL),
    ],
)
def test_a_folder_says_its_size(studio, folder, config, sizes):
    (folder / "unet" / "config.json").write_text(config)
    file = ModelFile("my model", folder, 1, ModelFolder.CHECKPOINTS)
    assert model_sizes(file) == studio.sizes_of(file) == sizes


def test_a_header_is_read_again_only_when_the_file_has_changed(studio, monkeypatch):
    file = studio.catalog.find_checkpoint("tiny.safetensors")
    read: list[str] = []
    monkeypatch.setattr(sd, "read_model_metadata", read.append)
    assert studio.sizes_of(file) is studio.sizes_of(file)
    assert read == [str(file.path)]
    monkeypatch.undo()
    other = write(studio, ModelFolder.CHECKPOINTS, "other.safetensors", {"a": torch.zeros(1)})
    file = studio.catalog.find_checkpoint("other.safetensors")
    before = studio.sizes_of(file)
    save_file({"a": torch.zeros(2)}, str(other), metadata={"easel.area": "65536"})
    assert studio.sizes_of(file).default != before.default


def test_a_folder_has_no_hash(studio, folder):
    file = studio.catalog.find_checkpoint("sets/my model")
    studio.hashes.compute_soon(file)
    studio.hashes.wait()
    assert studio.hashes.known(file) == ""
