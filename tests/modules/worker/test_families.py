"""A file of each family, painted from the command line."""

import pytest
from PIL import Image

from modules.worker import generate_cli
from tests.modules.worker.test_prompts import paint
from tests.support.tiny_checkpoint import (
    TINY_SD1,
    TINY_SD2,
    write_tiny_sdxl,
)

FAMILIES = {
    "sd1.safetensors": (TINY_SD1, {}, 512),
    "sd2.safetensors": (TINY_SD2, {"modelspec.prediction_type": "v"}, 128),
    "sd2-base.safetensors": (TINY_SD2, {"modelspec.resolution": "128x128"}, 128),
}


LOOKS = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": (1, 1)}
DEPTHS = {"transformer_depth": (0, 1), "transformer_depth_output": (1, 1, 0, 0)}
OTHERS = {
    "makes videos": {"video": True, "in_channels": 8, "adm_in_channels": 768},
    "enlarges pictures": {"num_classes": 9, "in_channels": 7, "num_heads": 8},
}


@pytest.mark.parametrize("purpose", OTHERS)
def test_a_model_with_another_purpose_says_so(studio, tiny_checkpoint, monkeypatch, purpose):
    from safetensors.torch import load_file, save_file

    from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
    from ldm_patched.modules.weight_file import SafetensorsFile
    from tests.support.unet_oracle import make_unet

    config = UNetConfig(
        **LOOKS,
        **DEPTHS,
        transformer_depth_middle=1,
        context_dim=48,
        time_embed_dim=256,
        **OTHERS[purpose],
    )
    weights = {f"model.diffusion_model.{k}": v for k, v in make_unet(config).state_dict().items()}
    tiny = load_file(str(tiny_checkpoint))
    weights |= {key: weight for key, weight in tiny.items() if key.startswith("first_stage")}
    save_file(weights, str(studio.settings.models_path / "checkpoints" / "other.safetensors"))
    read = []
    monkeypatch.setattr(SafetensorsFile, "load", lambda _, key, *__: read.append(key))
    task = paint(studio, checkpoint="other.safetensors")
    assert read == []  # the header tells
    assert task.code == "E_MODEL_UNSUPPORTED"
    assert f"other.safetensors {purpose} instead of painting" in task.message


@pytest.mark.parametrize("name", FAMILIES)
def test_the_command_line_paints_each_family(name, tmp_path, monkeypatch, capsys):
    import torch

    sizes, metadata, side = FAMILIES[name]
    folder = tmp_path / "models" / "checkpoints"
    write_tiny_sdxl(folder / name, dtype=torch.float32, metadata=metadata, sizes=sizes)
    argv = ["a boat", "-n", "1", "--seed", "3", "--steps", "1", "-o", str(tmp_path / "out")]
    argv += ["--all-in-fp32", "--always-cpu", "1", "--models-path", str(tmp_path / "models")]
    argv += ["--data-path", str(tmp_path / "data"), "--checkpoint", name]
    if name == "sd2.safetensors":  # its own 768 × 768 would take long
        argv += ["--width", str(side), "--height", str(side)]
    assert generate_cli.main(argv) == 0, capsys.readouterr().err
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.size == (side, side)
        extrema = picture.convert("L").getextrema()
    assert extrema[0] < extrema[1]
