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
    download = presets["default"].downloads[0]
    assert download.size == 6_938_078_334 and download.sha256
    assert presets["fast"].apply().steps < 30
    for preset in presets.values():  # nothing is named that nobody can get
        known = {download.file for download in preset.downloads}
        named = {preset.settings.get("checkpoint"), preset.settings.get("vae")} - {None}
        named |= {lora["name"] for lora in preset.settings.get("loras", ())}
        assert named <= known, preset.name


JUGGERNAUT = "juggernautXL_v8Rundiffusion"
OFFSET = ("sd_xl_offset_example-lora_1.0", 0.1)
FILM = ("SDXL_FILM_PHOTOGRAPHY_STYLE_V1", 0.25)
USUAL = ("dpmpp_2m_sde_gpu", "karras")
TALL, WIDE = "896:1152", "1152:896"


@pytest.mark.parametrize(
    ("name", "model", "loras", "cfg", "size", "mode", "sampling"),
    [
        ("default", JUGGERNAUT, [OFFSET], 4.0, WIDE, "speed", USUAL),
        ("realistic", "realisticStockPhoto_v20", [FILM], 3.0, TALL, "speed", USUAL),
        ("anime", "animaPencilXL_v500", [], 6.0, TALL, "speed", USUAL),
        ("lcm", JUGGERNAUT, [], 4.0, WIDE, "extreme_speed", USUAL),
        ("lightning", JUGGERNAUT, [], 4.0, WIDE, "lightning", USUAL),
        (
            "playground_v2.5",
            "playground-v2.5-1024px-aesthetic.fp16",
            [],
            2.0,
            "1:1",
            "speed",
            ("dpmpp_2m", "edm_playground_v2.5"),
        ),
        ("pony_v6", "ponyDiffusionV6XL", [], 7.0, TALL, "speed", USUAL),
        ("sai", "sd_xl_base_1.0_0.9vae", [(OFFSET[0], 0.5)], 7.0, WIDE, "speed", USUAL),
    ],
)
def test_the_table_of_presets(name, model, loras, cfg, size, mode, sampling):
    spec = load_presets(ROOT)[name].apply()
    assert spec.checkpoint == f"{model}.safetensors"
    assert [(lora.name, lora.weight) for lora in spec.loras] == [
        (f"{file}.safetensors", weight) for file, weight in loras
    ]
    assert (spec.cfg_scale, spec.aspect_ratio, spec.performance) == (cfg, size, mode)
    assert (spec.sampler, spec.scheduler) == sampling
    assert spec.sharpness == 2.0
    refiner = ("sd_xl_refiner_1.0_0.9vae.safetensors", 0.75) if name == "sai" else ("", 0.8)
    assert (spec.refiner, spec.refiner_switch) == refiner
    assert spec.vae == ("ponyDiffusionV6XL_vae.safetensors" if name == "pony_v6" else "")


def test_the_small_models_preset_and_turbos():
    presets = load_presets(ROOT)
    assert (presets["builtin"].settings["sharpness"], presets["builtin"].downloads) == (0.0, ())
    assert presets["turbo"].apply().performance == "turbo"


def test_presets_of_ones_own_come_last_and_may_take_the_place_of_others(tmp_path):
    write(tmp_path, "default", {"title": "D"})
    write(tmp_path, "a", {"title": "A"})
    (tmp_path / "presets" / "own").mkdir()
    for name in ("a", "mine"):
        (tmp_path / "presets" / "own" / f"{name}.json").write_text('{"title": "Mine"}')
    presets = load_presets(tmp_path)
    assert list(presets) == ["default", "a", "mine"]
    assert presets.own == {"a", "mine"}
    assert presets["a"].title == "Mine"


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
