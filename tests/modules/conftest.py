"""A small real checkpoint and a studio that paints with it in float32.

One thread: the networks are so small that a second one only costs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.settings.config import Settings, load_settings
from modules.worker.studio import Studio


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the SDXL family that says its own size: 64 × 64 pixels."""
    import torch  # only for tests that paint

    from tests.support.tiny_checkpoint import write_tiny_sdxl

    metadata = {"easel.area": 64 * 64, "easel.ratios": ["1:1", "3:2", "2:3"]}
    return write_tiny_sdxl(
        tmp_path_factory.mktemp("tiny") / "tiny.safetensors", dtype=torch.float32, metadata=metadata
    )


def put_checkpoint(settings: Settings, source: Path, name: str = "tiny.safetensors") -> Path:
    """Make `source` a checkpoint of this start; a hard link where that is possible."""
    target = settings.models_path / "checkpoints" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path) -> Settings:
    """Settings of a checkout of its own, with the tiny checkpoint in place."""
    settings = load_settings(["--all-in-fp32", "--always-cpu", "1"], {}, root=tmp_path)
    put_checkpoint(settings, tiny_checkpoint)
    return settings


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    studio = Studio(settings)
    yield studio
    studio.close()
