"""Presets: data only, validated, and none of them can spoil a start."""

import json
from pathlib import Path

import pytest

from modules.settings.presets import load_presets, read_preset
from modules.spec.errors import ConfigError, SpecError
from modules.spec.task_spec import TaskSpec

ROOT = Path(__file__).parents[3]
DOWNLOAD = {"file": "a.safetensors", "folder": "checkpoints", "url": "https://example.org/a"}


def write(root: Path, name: str, content: object) -> Path:
    path = root / "presets" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_the_presets_that_ship_are_sound():
    presets = load_presets(ROOT)
    assert presets.notices == ()
    assert next(iter(presets)) == "default"
    spec = presets["default"].apply()
    assert (spec.steps, spec.cfg_scale) == (30, 4.0)
    assert (spec.sampler, spec.scheduler) == ("dpmpp_2m_sde", "karras")
    (download,) = presets["default"].downloads
    assert download.size == 6_938_078_334 and download.sha256
    assert presets["fast"].apply().steps < spec.steps


def test_values_of_the_user_lie_on_top(tmp_path):
    write(tmp_path, "p", {"title": "P", "settings": {"steps": 9, "aspect_ratio": "3 x 2"}})
    preset = load_presets(tmp_path)["p"]
    assert preset.settings == {"steps": 9, "aspect_ratio": "3:2"}
    spec = preset.apply({"prompt": "a fox", "steps": 10})
    assert spec == TaskSpec(prompt="a fox", steps=10, aspect_ratio="3:2", preset="p")
    with pytest.raises(SpecError):
        preset.apply({"steps": 0})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00\x00", "is empty"),
        (b'{"title": "T",}', "line 1"),
        (b"[]", "one JSON object"),
        (b"\xff\xff", "not UTF-8"),
        ({}, "'title' is missing"),
        ({"title": ""}, "'title'"),
        ({"title": 3}, "'title'"),
        ({"title": "T", "colour": 1}, "'colour' is not known"),
        ({"title": "T", "name": "x"}, "'name' is not known"),
        ({"title": "T", "settings": [1]}, "'settings' must be an object"),
        ({"title": "T", "settings": {"stepz": 3}}, "'stepz' is not known"),
        ({"title": "T", "settings": {"steps": 0}}, "Steps must be at least 1"),
        ({"title": "T", "settings": {"steps": "many"}}, "Steps must be a whole number"),
        ({"title": "T", "settings": {"sampler": "magic"}}, "Sampler must be one of"),
        ({"title": "T", "settings": {"width": 512}}, "both width and height"),
        ({"title": "T", "settings": {"seed": 1}}, "'seed' cannot be part"),
        ({"title": "T", "settings": {"checkpoint": "../x"}}, "Checkpoint must be a name"),
        ({"title": "T", "downloads": {}}, "'downloads'"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "url": "http://a/b"}]}, "'downloads.0.url'"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "url": "file:///etc"}]}, "downloads.0.url"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "file": "../a"}]}, "plain file name"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "file": ".a"}]}, "plain file name"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "folder": "../x"}]}, "downloads.0.folder"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "sha256": "AB"}]}, "downloads.0.sha256"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "size": 0}]}, "downloads.0.size"),
        ({"title": "T", "downloads": [{**DOWNLOAD, "run": "x"}]}, "'downloads.0.run' is not known"),
    ],
)
def test_a_broken_preset_is_named_and_skipped(tmp_path, content, words):
    path = write(tmp_path, "broken", content)
    write(tmp_path, "sound", {"title": "S"})
    with pytest.raises(ConfigError) as caught:
        read_preset(path)
    presets = load_presets(tmp_path)
    assert list(presets) == ["sound"]
    assert presets.notices == (str(caught.value),)
    assert "'broken'" in str(caught.value) and words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_and_an_odd_name_are_skipped_too(tmp_path):
    (tmp_path / "presets" / "folder.json").mkdir(parents=True)
    write(tmp_path, "a;b", {"title": "T"})
    write(tmp_path, "bom", b'\xef\xbb\xbf{"title": "T"}')
    presets = load_presets(tmp_path)
    assert list(presets) == ["bom"]
    assert len(presets.notices) == 2


def test_no_presets_folder_at_all(tmp_path):
    assert load_presets(tmp_path) == {}
