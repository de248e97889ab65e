"""`launch.py download`: names in, files in their folders out."""

import json

import pytest

from modules.library import download_cli
from modules.settings.config import load_settings
from tests.support.file_server import serve_file


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(
        download_cli, "load_settings", lambda flags: load_settings(flags, {}, root=tmp_path)
    )
    (tmp_path / "presets").mkdir()
    return tmp_path


def write_preset(root, url):
    files = [
        {"file": name, "folder": "loras", "url": url, "size": 7}
        for name in ("a.safetensors", "b.safetensors")
    ]
    text = json.dumps({"title": "P", "downloads": files})
    (root / "presets" / "p.json").write_text(text)


def test_a_named_file_arrives(root, capsys):
    with serve_file(b"weights") as server:
        write_preset(root, server.url)
        assert download_cli.main(["a.safetensors"]) == 0
        assert capsys.readouterr().out == "loras/a.safetensors\n"
        assert (root / "models" / "loras" / "a.safetensors").read_bytes() == b"weights"
        assert download_cli.main(["loras/b.safetensors", "--models-path", str(root / "m")]) == 0
        assert (root / "m" / "loras" / "b.safetensors").is_file()
        both = ["b.safetensors", "a.safetensors"]  # goes on where it was stopped
        capsys.readouterr()
        assert download_cli.main(["a.safetensors", *both]) == 0
        told = capsys.readouterr()
        assert told.err.startswith("loras/a.safetensors is there already.")
        assert told.out == "loras/b.safetensors\n" and len(server.asked) == 3
        (root / "models" / "loras" / "b.safetensors").unlink()
    assert download_cli.main([]) == 0
    listed = capsys.readouterr().out
    assert "   there  loras/a.safetensors\n  0.0 GB  loras/b.safetensors\n" in listed
    assert "clip_vision/clip_vision_vit_h.safetensors" in listed


def test_what_cannot_be_is_one_sentence(root, capsys):
    with serve_file(b"weights", statuses=[404]) as server:
        write_preset(root, server.url)
        assert download_cli.main(["a.safetensors"]) == 1
        assert "is not at its address any more (404)" in capsys.readouterr().err
        for words in (["c"], [server.url], ["--fast"]):
            assert download_cli.main(words) == 1
            told = capsys.readouterr().err
            assert told.count("\n") == 1 and "Traceback" not in told
        assert len(server.asked) == 1
