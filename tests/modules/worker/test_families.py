"""A file of each family, painted from the command line."""

import pytest
from PIL import Image

from modules.worker import generate_cli
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
