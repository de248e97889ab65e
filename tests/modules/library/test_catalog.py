"""The catalog: what is there, under which name, and never a path from a request."""

import json
import os
import sys
from pathlib import Path

import pytest

from modules.library.catalog import Catalog
from modules.settings.config import load_settings
from modules.spec.errors import ModelMissing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "models" / "checkpoints").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def catalog(root: Path) -> Catalog:
    return Catalog(load_settings([], {}, root=root))


def put(root: Path, name: str, size: int = 3) -> Path:
    path = root / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def names(catalog: Catalog) -> list[str]:
    return [file.name for file in catalog.checkpoints()]


def test_names_order_and_kinds(root, catalog):
    for name in ("b.safetensors", "A.CKPT", "sub/deep/c.pt", "read me.txt", ".hid.safetensors"):
        put(root, f"checkpoints/{name}")
    put(root, "checkpoints/.cache/d.safetensors")
    put(root, "checkpoints/half.safetensors.part")
    put(root, "loras/e.safetensors")
    put(root, "builtin/easel-mini.safetensors", 7)
    put(root, "builtin/notes.pt")
    assert names(catalog) == [
        "A.CKPT",
        "b.safetensors",
        "sub/deep/c.pt",
        "builtin/easel-mini.safetensors",
    ]
    last = catalog.checkpoints()[-1]
    assert last.is_builtin and last.size == 7 and last.kind == "checkpoints"


def test_every_folder_is_there_to_put_files_into(root, catalog):
    catalog.make_folders()
    catalog.make_folders()
    made = {path.name for path in (root / "models").iterdir()}
    assert made >= {"checkpoints", "loras", "embeddings", "vae", "controlnet"}


def test_folders_that_cannot_be_made_are_no_error(tmp_path):
    (tmp_path / "models").write_text("a file")
    Catalog(load_settings([], {}, root=tmp_path)).make_folders()


def test_each_call_looks_again(root, catalog):
    assert names(catalog) == []
    path = put(root, "checkpoints/new.safetensors")
    assert catalog.find_checkpoint("new.safetensors").path == path
    path.unlink()
    with pytest.raises(ModelMissing):
        catalog.find_checkpoint("new.safetensors")


def test_no_name_takes_the_first_and_the_users_own_before_the_built_in(root, catalog):
    put(root, "builtin/mini.safetensors")
    assert catalog.find_checkpoint().name == "builtin/mini.safetensors"
    put(root, "checkpoints/z.safetensors")
    assert catalog.find_checkpoint("").name == "z.safetensors"


def put_tensors(root: Path, name: str, *tensors: str) -> None:
    """A sound safetensors file of empty tensors with these names."""
    entries = {key: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for key in tensors}
    header = json.dumps(entries).encode()
    put(root, name).write_bytes(len(header).to_bytes(8, "little") + header)


def test_no_name_passes_over_files_that_cannot_paint(root, catalog):
    put_tensors(root, "checkpoints/a-lora.safetensors", "lora_unet_x.lora_up.weight")
    put(root, "checkpoints/b-garbage.safetensors")
    assert catalog.find_checkpoint("").name == "a-lora.safetensors"  # its error says why
    put_tensors(root, "checkpoints/c.safetensors", "model.diffusion_model.out.0.weight")
    assert catalog.find_checkpoint("").name == "c.safetensors"
    assert catalog.find_checkpoint("a-lora.safetensors").name == "a-lora.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "sub/../../secret.safetensors",
        "./a.safetensors",
        "a.safetensors/",
        "/etc/passwd",
        "C:\\a.safetensors",
        "sub\\b.safetensors",
        "a.safetensors\x00",
        "A.safetensors",
        "builtin/a.safetensors",
        "checkpoints/a.safetensors",
    ],
)
def test_only_names_of_the_listing_are_found(root, catalog, name):
    put(root, "secret.safetensors")
    put(root, "checkpoints/a.safetensors")
    put(root, "checkpoints/sub/b.safetensors")
    with pytest.raises(ModelMissing) as caught:
        catalog.find_checkpoint(name)
    assert "models/checkpoints" in str(caught.value)
    assert str(root) not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_of_the_user_are_followed_but_not_in_circles(root, catalog, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "big.safetensors").write_bytes(b"12345")
    folder = root / "models" / "checkpoints"
    (folder / "linked.safetensors").symlink_to(elsewhere / "big.safetensors")
    (folder / "folder").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    (folder / "broken.safetensors").symlink_to(tmp_path / "nowhere")
    assert names(catalog) == ["folder/big.safetensors", "linked.safetensors"]
    assert catalog.find_checkpoint("linked.safetensors").size == 5


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be made there")
def test_names_that_no_request_can_hold_are_left_out(root, catalog):
    for name in ("a\\b.safetensors", "a:b.safetensors", "a\nb.safetensors", "é 🦊.safetensors"):
        put(root, f"checkpoints/{name}")
    assert names(catalog) == ["é 🦊.safetensors"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_an_unreadable_folder_is_empty(root, catalog):
    put(root, "checkpoints/locked/a.safetensors").parent.chmod(0)
    put(root, "checkpoints/b.safetensors")
    assert names(catalog) == ["b.safetensors"]


def test_without_any_model_it_says_what_to_put_where(root, tmp_path):
    presets = root / "presets"
    presets.mkdir()
    (presets / "default.json").write_text(
        '{"title": "T", "downloads": [{"file": "base.safetensors", "folder": "checkpoints",'
        ' "url": "https://example.org/base", "size": 6900000000}]}',
        encoding="utf-8",
    )
    (presets / "more.json").write_text((presets / "default.json").read_text(), encoding="utf-8")
    settings = load_settings(["--models-path", str(tmp_path / "weights")], {}, root=root)
    catalog = Catalog(settings)
    (download,) = catalog.known_downloads()  # named by two presets, listed once
    with pytest.raises(ModelMissing) as caught:
        catalog.find_checkpoint()
    message = str(caught.value)
    assert "weights/checkpoints" in message and "6.9 GB" in message and download.url in message
    (tmp_path / "weights" / "checkpoints").mkdir(parents=True)
    (tmp_path / "weights" / "checkpoints" / "base.safetensors").write_bytes(b"x")
    assert catalog.known_downloads() == []
    assert catalog.find_checkpoint().name == "base.safetensors"
