"""A small real checkpoint and a studio that paints with it in float32.

One thread: the networks are so small that a second one only costs."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from modules.settings.config import Settings, load_settings
from modules.worker.model_files import stamp_of
from modules.worker.studio import Studio

TINY_FILE = "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the SDXL family that says its own size: 64 × 64 pixels."""
    import torch  # only for tests that paint

    from tests.support.tiny_checkpoint import write_tiny_sdxl

    metadata = {"easel.area": 64 * 64, "easel.ratios": ["1:1", "3:2", "2:3"]}
    return write_tiny_sdxl(
        tmp_path_factory.mktemp("tiny") / "tiny.safetensors", dtype=torch.float32, metadata=metadata
    )


def put_checkpoint(settings: Settings, source: Path, name: str = TINY_FILE) -> Path:
    """Make `source` a checkpoint of this start; a hard link where that is possible."""
    target = settings.models_path / "checkpoints" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


@cache
def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remember_hash(settings: Settings, path: Path, digest: str) -> None:
    """Spare this start the reading of a whole checkpoint for a hash that is known."""
    status = path.stat()
    settings.data_path.mkdir(parents=True, exist_ok=True)
    entry = {f"{status.st_size} {status.st_mtime_ns} {path}": digest}
    (settings.data_path / "hashes.json").write_text(json.dumps(entry))


def settings_at(root: Path, checkpoint: Path, *dtypes: str) -> Settings:
    """Settings of a checkout of its own, with `checkpoint` in place; float32 without `dtypes`."""
    flags = [*(dtypes or ["--all-in-fp32"]), "--always-cpu", "1"]
    settings = load_settings(flags, {}, root=root)
    remember_hash(settings, put_checkpoint(settings, checkpoint), sha256(checkpoint))
    return settings


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path) -> Settings:
    return settings_at(tmp_path, tiny_checkpoint)


@pytest.fixture
def fresh_studio(settings: Settings) -> Iterator[Studio]:
    """One that has loaded nothing yet."""
    studio = Studio(settings)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def loaded_model(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Any]:
    """The small checkpoint as a pipeline keeps it; whatever is painted leaves it as it was."""
    import torch

    studio = Studio(settings_at(tmp_path_factory.mktemp("loaded"), tiny_checkpoint))
    model = studio.pipeline.refresh(studio.catalog.find_checkpoint(TINY_FILE))
    studio.close()
    parts = model.unet.model, model.clip.cond_stage_model, model.vae.first_stage_model
    weights = [weight for part in parts for weight in part.state_dict().values()]
    before = [weight.clone() for weight in weights]
    yield model
    assert all(map(torch.equal, weights, before))


@pytest.fixture
def studio(fresh_studio: Studio, loaded_model: Any) -> Studio:
    """One with folders of its own, and with the small checkpoint loaded: that is what took most of
    a test's time, and few look at it. The model keeps to the budget of the studio that loaded it:
    what is about memory needs `fresh_studio`.
    """
    stamp = stamp_of(fresh_studio.catalog.find_checkpoint(TINY_FILE))
    fresh_studio.pipeline._models[stamp] = replace(loaded_model, stamp=stamp)
    return fresh_studio


@pytest.fixture(scope="module")
def lasting_studio(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[Studio]:
    """One whose model stays loaded, for tests that only look at what they painted themselves."""
    studio = Studio(settings_at(tmp_path_factory.mktemp("lasting"), tiny_checkpoint))
    yield studio
    studio.close()
