import hashlib
import os

import pytest

from modules.library.catalog import ModelFile
from modules.library.hashes import HashCache
from modules.settings.presets import ModelFolder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"weights" * 300_000)
    return ModelFile("m.safetensors", path, path.stat().st_size, ModelFolder.CHECKPOINTS)


def test_a_hash_is_computed_and_remembered(tmp_path, model):
    cache = HashCache(tmp_path / "data" / "hashes.json")
    assert cache.known(model) == ""
    cache.compute_soon(model)
    cache.wait()
    expected = hashlib.sha256(b"weights" * 300_000).hexdigest()
    assert cache.known(model) == expected
    assert HashCache(tmp_path / "data" / "hashes.json").known(model) == expected


def test_a_changed_file_has_no_known_hash(tmp_path, model):
    cache = HashCache(tmp_path / "hashes.json")
    cache.compute_soon(model)
    cache.wait()
    os.utime(model.path, ns=(1, 1))
    assert cache.known(model) == ""


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "b": "x"}', "[" * 100_000])
def test_a_broken_memory_is_an_empty_one(tmp_path, model, content):
    (tmp_path / "hashes.json").write_text(content)
    cache = HashCache(tmp_path / "hashes.json")
    assert cache.known(model) == ""
    cache.compute_soon(model)
    cache.wait()
    assert len(cache.known(model)) == 64


def test_a_file_that_is_gone_is_no_error(tmp_path, model):
    model.path.unlink()
    cache = HashCache(tmp_path / "hashes.json")
    cache.compute_soon(model)
    cache.wait()
    assert cache.known(model) == ""
