"""What can be fetched at all: files of our own lists and of the user's, by name."""

from pathlib import Path

import pytest

from modules.library.catalog import Catalog
from modules.library.known_files import download_of, find_known, known_files
from modules.settings.config import load_settings
from modules.settings.performance import load_modes
from modules.settings.presets import Preset
from modules.spec.errors import NotFound
from modules.spec.performance import make_mode

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def known():
    return known_files(Catalog(load_settings([], {}, root=ROOT)), load_modes(ROOT))


def test_every_list_is_in_it(known):
    base = known["checkpoints/sd_xl_base_1.0.safetensors"]
    assert (base.size, len(base.sha256)) == (6_938_078_334, 64)
    assert known["loras/sdxl_lightning_4step_lora.safetensors"].url.startswith("https://hugg")
    assert known["clip_vision/clip_vision_vit_h.safetensors"].size is None  # to three figures only
    assert known["controlnet/control_v11p_sd15_canny.pth"].folder == "controlnet"
    assert all(key == download.key for key, download in known.items())
    assert all(download.url.startswith("https://") for download in known.values())


def test_a_name_alone_will_do_and_nothing_else(known):
    found = find_known(known, "sd_xl_base_1.0.safetensors")
    assert found is find_known(known, found.key)
    for name in (
        found.url,
        "https://example.org/x",
        "../" + found.key,
        "",
        "/etc/passwd",
        "x" * 999,
    ):
        with pytest.raises(NotFound, match="no file that Easel knows"):
            find_known(known, name)


def test_a_mode_s_lora_can_be_fetched_by_a_plain_name_alone():
    numbers = {"name": "own", "title": "Own", "steps": 4, "steps_upscale": 4}
    lora = {"file": "x.safetensors", "url": "https://e.org/x"}
    assert download_of(make_mode(numbers | {"lora": lora})).key == "loras/x.safetensors"
    assert download_of(make_mode(numbers | {"lora": lora | {"file": "sub/x.safetensors"}})) is None
    assert download_of(make_mode(numbers)) is None


def test_names_of_two_folders_and_odd_ones(tmp_path):
    files = [
        {"file": "a.safetensors", "folder": folder, "url": f"https://e.org/{folder}"}
        for folder in ("loras", "vae")
    ]
    again = [{"file": "a.safetensors", "folder": "vae", "url": "https://e.org/other"}]
    presets = {
        "p": Preset(name="p", title="P", downloads=files),
        "q": Preset(name="q", title="Q", downloads=again),
    }
    lora = {"file": "sub/x.safetensors", "url": "https://e.org/x"}
    numbers = {"steps": 4, "steps_upscale": 4}
    mode = make_mode({"name": "own", "title": "Own", "lora": lora, **numbers})
    known = known_files(Catalog(load_settings([], {}, root=tmp_path), presets), {"own": mode})
    assert known["vae/a.safetensors"].url == "https://e.org/vae"  # what the page shows, too
    assert "loras/sub/x.safetensors" not in known
    with pytest.raises(NotFound):
        find_known(known, "a.safetensors")
