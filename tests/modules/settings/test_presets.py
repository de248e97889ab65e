"""Presets: data only, validated, and none of them can spoil a start."""

import json
from pathlib import Path

import pytest

from modules.prompt.styles import StyleBook
from modules.settings.presets import load_presets, read_preset
from modules.spec.errors import ConfigError, SpecError
from modules.spec.task_spec import TaskSpec

ROOT = Path(__file__).parents[3]
BUILTIN = "builtin/easel-mini.safetensors"
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
        known = {download.file for download in preset.downloads} | {BUILTIN}
        named = {preset.settings.get("checkpoint"), preset.settings.get("vae")} - {None}
        named |= {lora["name"] for lora in preset.settings.get("loras", ())}
        assert named <= known, preset.name


JUGGERNAUT = "juggernautXL_v8Rundiffusion"
OFFSET = "sd_xl_offset_example-lora_1.0"
FILM = "SDXL_FILM_PHOTOGRAPHY_STYLE_V1"
FINE = ("finish-polished", "finish-crisp")
TALL, WIDE, SQUARE = "896:1152", "1152:896", "1:1"
REFINER = ("sd_xl_refiner_1.0_0.9vae.safetensors", 0.75)

# name, model, refiner and switch, LoRAs, guidance, styles, expansion, ratio, mode
TABLE = [
    ("default", JUGGERNAUT, ("", 0.5), [(OFFSET, 0.1)], 4.0, FINE, True, WIDE, "speed"),
    ("realistic", "realisticStockPhoto_v20", ("", 0.5), [(FILM, 0.25)], 3.0,
     ("photo-natural", "finish-clean"), True, TALL, "speed"),
    ("anime", "animaPencilXL_v500", ("", 0.5), [], 6.0,
     ("semi-realistic", "finish-masterly"), True, TALL, "speed"),
    ("lcm", JUGGERNAUT, ("", 0.5), [], 4.0, FINE, True, WIDE, "extreme_speed"),
    ("lightning", JUGGERNAUT, ("", 0.5), [], 4.0, FINE, True, WIDE, "lightning"),
    ("playground_v2.5", "playground-v2.5-1024px-aesthetic.fp16", ("", 0.5), [], 2.0, (), True,
     SQUARE, "speed"),
    ("pony_v6", "ponyDiffusionV6XL", ("", 0.5), [], 7.0, ("pony-scores",), False, TALL, "speed"),
    ("sai", "sd_xl_base_1.0_0.9vae", REFINER, [(OFFSET, 0.5)], 7.0, ("cinema-still",), True, WIDE,
     "speed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "refiner", "loras", "cfg", "styles", "expands", "size", "mode"),
    TABLE,
    ids=[row[0] for row in TABLE],
)
def test_the_table_of_presets(name, model, refiner, loras, cfg, styles, expands, size, mode):
    spec = load_presets(ROOT)[name].apply()
    assert spec.checkpoint == f"{model}.safetensors"
    assert (spec.refiner, spec.refiner_switch) == refiner
    assert [(lora.name, lora.weight) for lora in spec.loras] == [
        (f"{file}.safetensors", weight) for file, weight in loras
    ]
    assert (spec.cfg_scale, spec.aspect_ratio, spec.performance) == (cfg, size, mode)
    assert (spec.styles, spec.expand_prompt) == (styles, expands)
    assert all(style in StyleBook.load([ROOT / "presets" / "styles"]) for style in styles)
    usual = ("dpmpp_2m_sde_gpu", "karras")
    sampling = {"playground_v2.5": ("dpmpp_2m", "edm_playground_v2.5")}.get(name, usual)
    assert (spec.sampler, spec.scheduler) == sampling
    assert (spec.sharpness, spec.adaptive_cfg, spec.clip_skip) == (2.0, 7.0, None)
    assert (spec.adm_positive, spec.adm_negative, spec.adm_end) == (1.5, 0.8, 0.3)
    assert spec.vae == ("ponyDiffusionV6XL_vae.safetensors" if name == "pony_v6" else "")
    assert (len(spec.negative_prompt) > 100) is (name == "realistic")


def test_the_small_models_preset_and_turbos():
    presets = load_presets(ROOT)
    assert (presets["builtin"].settings["sharpness"], presets["builtin"].downloads) == (0.0, ())
    assert presets["builtin"].settings["checkpoint"] == BUILTIN
    assert (ROOT / "models" / BUILTIN).is_file()
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


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://example.org/a b", False),
        ("https://", False),
        ("http://example.org/a", False),
        ("http://127.0.0.1.example.org/a", False),
        ("http://127.0.0.1:80@example.org/a", False),
        ("file:///etc/passwd", False),
        ("http://127.0.0.1:8000/a", True),
        ("http://[::1]/a", True),
    ],
)
def test_a_download_is_https_or_of_this_computer(tmp_path, url, is_taken):
    path = write(tmp_path, "p", {"title": "P", "downloads": [DOWNLOAD | {"url": url}]})
    if is_taken:
        assert read_preset(path).downloads[0].url == url
    else:
        with pytest.raises(ConfigError, match="url"):
            read_preset(path)
