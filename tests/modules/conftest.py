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


def settings_at(root: Path, checkpoint: Path, *dtypes: str) -> Settings:
    """Settings of a checkout of its own, with `checkpoint` in place; float32 without `dtypes`."""
    flags = [*(dtypes or ["--all-in-fp32"]), "--always-cpu", "1"]
    settings = load_settings(flags, {}, root=root)
    put_checkpoint(settings, checkpoint)
    return settings


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path) -> Settings:
    return settings_at(tmp_path, tiny_checkpoint)


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    studio = Studio(settings)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def lasting_studio(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[Studio]:
    """One whose model stays loaded, for tests that only look at what they painted themselves."""
    studio = Studio(settings_at(tmp_path_factory.mktemp("lasting"), tiny_checkpoint))
    yield studio
    studio.close()
