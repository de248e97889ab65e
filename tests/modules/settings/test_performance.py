"""Performance modes from files."""

import json

import pytest

from modules.settings.performance import find_mode, load_modes
from modules.spec.errors import SpecError
from modules.spec.performance import MODES


def put(root, name, content):
    path = root / "performance" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def test_without_a_folder_there_are_easels_own(tmp_path):
    modes = load_modes(tmp_path)
    assert list(modes.values()) == list(MODES)
    assert modes.notices == ()


def test_a_mode_of_ones_own(tmp_path):
    put(tmp_path, "draft", {"steps": 12, "lora": {"file": "mine.safetensors", "weight": 0.9}})
    mode = load_modes(tmp_path)["draft"]
    assert (mode.title, mode.steps, mode.steps_upscale) == ("draft", 12, 12)
    assert (mode.lora.file, mode.lora.weight) == ("mine.safetensors", 0.9)


def test_it_may_take_the_place_of_one_of_easels(tmp_path):
    put(tmp_path, "speed", {"title": "My speed", "steps": 25})
    modes = load_modes(tmp_path)
    assert modes["speed"].steps == 25
    assert len(modes) == len(MODES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ({"steps": -1}, "'steps'"),
        ({}, "'steps'"),
        ({"steps": 4, "forced": {"prompt": "x"}}, "'prompt' is nothing that a mode decides"),
        ({"steps": 4, "forced": {"cfg_scale": 99}}, "Guidance must be at most 30"),
        ({"steps": 4, "name": "x"}, "the file's name is its name"),
        ({"steps": 4, "speed": 1}, "the key 'speed' is not known"),
    ],
    ids=str,
)
def test_a_broken_file_is_left_out_and_named(tmp_path, content, words):
    put(tmp_path, "mine", content)
    modes = load_modes(tmp_path)
    assert "mine" not in modes
    (notice,) = modes.notices
    assert notice.startswith("Performance mode 'mine'")
    assert words in notice
    assert notice.endswith(".")
    assert str(tmp_path) not in notice


def test_finding_by_name():
    modes = {mode.name: mode for mode in MODES}
    assert find_mode(modes, "") is None
    assert find_mode(modes, "turbo").steps == 4
    with pytest.raises(SpecError, match="no performance mode 'warp'; choose one of quality"):
        find_mode(modes, "warp")
