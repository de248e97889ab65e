"""Sizes out of a checkpoint's header."""

import json
import math
from pathlib import Path

import pytest

from modules.library.catalog import ModelFile
from modules.library.model_sizes import model_sizes
from modules.settings.presets import ModelFolder
from modules.spec.sizes import SD1, SD2, SDXL, Size


def checkpoint(path: Path, header: bytes, length: int | None = None) -> ModelFile:
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + b"tensors")
    return ModelFile(path.name, path, path.stat().st_size, ModelFolder.CHECKPOINTS)


def with_metadata(path: Path, **metadata: object) -> ModelFile:
    entries = {f"easel.{key}": value for key, value in metadata.items()}
    return checkpoint(path, json.dumps({"__metadata__": entries}).encode())


def test_a_file_that_says_its_area_and_ratios_gets_its_own_table(tmp_path):
    file = with_metadata(tmp_path / "a.safetensors", area="65536", ratios='["3:2", "1:1"]')
    table = model_sizes(file)
    assert table.default.width > table.default.height
    assert Size(256, 256) in table.sizes
    assert len(table.sizes) == 2


def test_an_area_alone_offers_common_ratios(tmp_path):
    table = model_sizes(with_metadata(tmp_path / "a.safetensors", area="65536"))
    assert table.default == Size(256, 256)
    assert len(table.sizes) > 4


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"area": "no"},
        {"area": "-4"},
        {"area": "99999999999"},
        {"area": "65536", "ratios": "{"},
        {"area": "65536", "ratios": "3"},
        {"area": ["65536"]},
        {"area": math.inf},
        {"area": "65536", "ratios": "[" * 100_000},
        {"area": "65536", "ratios": '{"a": 1}'},
        {"area": "65536", "ratios": json.dumps(["9" * 4000 + ":1"])},
    ],
)
def test_anything_odd_is_sdxl(tmp_path, metadata):
    assert model_sizes(with_metadata(tmp_path / "a.safetensors", **metadata)) == SDXL


def test_ratios_that_are_none_are_left_out(tmp_path):
    ratios = json.dumps(["1:1", "wide", "100:1", None, "3:2"])
    table = model_sizes(with_metadata(tmp_path / "a.safetensors", area="65536", ratios=ratios))
    assert len(table.sizes) == 2


@pytest.mark.parametrize(
    ("header", "length"),
    [(b"", None), (b"[]", None), (b"{nonsense", None), (b"{}", 2**62), (b"[" * 9999, None)],
)
def test_a_file_that_is_no_checkpoint_is_sdxl(tmp_path, header, length):
    assert model_sizes(checkpoint(tmp_path / "a.safetensors", header, length)) == SDXL


FAMILIES = {
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": SD1,
    "cond_stage_model.model.ln_final.weight": SD2,
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": SDXL,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_gives_the_sizes_where_the_file_does_not(tmp_path, name):
    header = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    assert model_sizes(checkpoint(tmp_path / "a.safetensors", header)) == FAMILIES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_names_in_a_pickle_tell_its_family(tmp_path, name):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {name: torch.zeros(2)}}, path)
    file = ModelFile(path.name, path, path.stat().st_size, ModelFolder.CHECKPOINTS)
    assert model_sizes(file) == FAMILIES[name]


def test_a_broken_archive_is_sdxl(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"PK\x03\x04 and nothing more")
    file = ModelFile(path.name, path, path.stat().st_size, ModelFolder.CHECKPOINTS)
    assert model_sizes(file) == SDXL


def test_a_files_own_resolution_counts(tmp_path):
    entries = {"modelspec.resolution": "512x512"}
    header = json.dumps({"__metadata__": entries, "cond_stage_model.model.x": {}}).encode()
    assert model_sizes(checkpoint(tmp_path / "a.safetensors", header)) == SD1
    entries["modelspec.resolution"] = "1024x1024"
    header = json.dumps({"__metadata__": entries}).encode()
    assert model_sizes(checkpoint(tmp_path / "a.safetensors", header)) == SDXL


def test_no_file_is_sdxl(tmp_path):
    assert model_sizes(None) == SDXL
    missing = ModelFile("x", tmp_path / "x", 10, ModelFolder.CHECKPOINTS)
    assert model_sizes(missing) == SDXL
