"""A LoRA beside a checkpoint, told from two headers."""

import json
from pathlib import Path

import pytest

from modules.library.catalog import ModelFile
from modules.library.lora_fit import misfit
from modules.settings.presets import ModelFolder
from tests.modules.library.test_lora_info import lora, text_layer

ENCODERS = {
    "sd15": ("cond_stage_model.transformer.text_model.x", 768),
    "sd2": ("cond_stage_model.model.x", 1024),
    "sdxl": ("conditioner.embedders.1.model.x", 2048),
}
TEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def tensor(*shape: int) -> dict:
    return {"dtype": "F16", "shape": list(shape), "data_offsets": [0, 8]}


def checkpoint(path: Path, encoder: str, width: int) -> ModelFile:
    header = json.dumps({encoder: tensor(4), TEXT: tensor(320, width)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"weights!")
    return ModelFile(path.name, path, path.stat().st_size, ModelFolder.CHECKPOINTS)


@pytest.fixture
def sdxl(tmp_path) -> ModelFile:
    return checkpoint(tmp_path / "big.safetensors", *ENCODERS["sdxl"])


def test_one_of_the_same_family_fits(tmp_path, sdxl):
    for family in ENCODERS:
        base = checkpoint(tmp_path / f"{family}.safetensors", *ENCODERS[family])
        same = lora(tmp_path / f"for {family}.safetensors", text_layer(ENCODERS[family][1]))
        assert misfit(same, base) == ""
    assert misfit(lora(tmp_path / "silent.safetensors", {}), sdxl) == ""
    assert misfit(lora(tmp_path / "words.ckpt", b"x"), sdxl) == ""


def test_one_of_another_family_is_told(tmp_path, sdxl):
    other = lora(tmp_path / "ink.safetensors", text_layer(768))
    assert misfit(other, sdxl) == (
        "ink.safetensors is made for SD 1.x, and big.safetensors is SDXL; choose a LoRA made for "
        "SDXL, or another checkpoint."
    )


def test_a_trainer_s_word_counts_where_no_shape_tells(tmp_path, sdxl):
    flux = lora(tmp_path / "f.safetensors", {}, modelspec__architecture="flux-1-dev/lora")
    assert misfit(flux, sdxl).startswith("f.safetensors is made for Flux, and big")
    same = lora(tmp_path / "s.safetensors", {}, modelspec__architecture="stable-diffusion-xl-v1")
    assert misfit(same, sdxl) == ""
    wrong = text_layer(2048)
    said = lora(tmp_path / "w.safetensors", wrong, ss_base_model_version="sd_v1-5")
    assert misfit(said, sdxl) == ""  # its shapes fit, whatever it says


def test_a_small_model_of_the_family_is_no_sdxl(tmp_path):
    small = checkpoint(tmp_path / "small.safetensors", ENCODERS["sdxl"][0], 768)
    made_for_it = lora(tmp_path / "mine.safetensors", text_layer(768))
    assert misfit(made_for_it, small) == ""
    assert misfit(lora(tmp_path / "xl.safetensors", text_layer(2048)), small) == (
        "xl.safetensors is made for SDXL, which small.safetensors is not; choose a LoRA made for "
        "small.safetensors, or another checkpoint."
    )


def test_a_folder_tells_by_its_settings(tmp_path):
    folder = tmp_path / "sets"
    (folder / "unet").mkdir(parents=True)
    config = folder / "unet" / "config.json"
    file = ModelFile("sets", folder, 1, ModelFolder.CHECKPOINTS)
    ink = lora(tmp_path / "ink.safetensors", text_layer(768))
    assert misfit(ink, file) == ""  # there is no such file yet
    config.write_text('{"cross_attention_dim": 2048}')
    assert "ink.safetensors is made for SD 1.x, and sets is SDXL" in misfit(ink, file)
    for odd in ("{", "[]", '{"cross_attention_dim": "x" }', "[" * 100_000):
        config.write_text(odd)
        assert misfit(ink, file) == ""


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"PK\x03\x04" + b"x" * 40])
def test_a_broken_checkpoint_says_nothing(tmp_path, data):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    broken = ModelFile(path.name, path, len(data), ModelFolder.CHECKPOINTS)
    assert misfit(lora(tmp_path / "ink.safetensors", text_layer(768)), broken) == ""


def test_a_replaced_file_is_read_again(tmp_path):
    path = tmp_path / "a.safetensors"
    ink = lora(tmp_path / "ink.safetensors", text_layer(768))
    assert misfit(ink, checkpoint(path, *ENCODERS["sd15"])) == ""
    assert "is SDXL" in misfit(ink, checkpoint(path, *ENCODERS["sdxl"]))
