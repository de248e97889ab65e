"""Saving, renaming and deleting presets of one's own."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from modules.settings.preset_files import delete_preset, differences, rename_preset, save_preset
from modules.settings.presets import load_presets
from modules.spec.errors import OutputFolder, SpecError
from modules.spec.image_prompt import ImagePrompt
from modules.spec.task_spec import TaskSpec

SPEC = TaskSpec(prompt="a cat", negative_prompt="blur", seed=5, image_count=4, cfg_scale=6.5)


@pytest.fixture
def presets(tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "default.json").write_text('{"title": "Default"}')
    return load_presets(tmp_path)


def test_a_preset_keeps_the_way_of_painting_and_not_the_words(tmp_path, presets):
    spec = SPEC.model_copy(update={"image_prompts": (ImagePrompt(image="a" * 64),)})
    name = save_preset(tmp_path, presets, "  My   look ", spec)
    assert differences(presets[name].settings, spec) == {}
    assert name == "My look"
    assert presets[name].title == "My look"
    assert presets[name].settings == {"negative_prompt": "blur", "cfg_scale": 6.5}
    assert load_presets(tmp_path)[name] == presets[name]


def test_saving_again_replaces_it(tmp_path, presets):
    save_preset(tmp_path, presets, "mine", SPEC)
    save_preset(tmp_path, presets, "mine", TaskSpec(steps=9))
    assert presets["mine"].settings == {"steps": 9}


def test_renaming_and_deleting(tmp_path, presets):
    save_preset(tmp_path, presets, "mine", SPEC)
    assert rename_preset(tmp_path, presets, "mine", "Ours: all/any") == "Ours_ all_any"
    assert list(presets) == ["default", "Ours_ all_any"]
    assert presets["Ours_ all_any"].title == "Ours: all/any"
    delete_preset(tmp_path, presets, "Ours_ all_any")
    assert list(presets) == ["default"]
    assert list((tmp_path / "presets" / "own").iterdir()) == []


@pytest.mark.parametrize("title", ["", "   ", "x" * 65, "default", "..", "///"])
def test_names_that_cannot_be(tmp_path, presets, title):
    if title == "///":
        assert save_preset(tmp_path, presets, title, SPEC) == "___"
        return
    with pytest.raises(SpecError):
        save_preset(tmp_path, presets, title, SPEC)
    assert not (tmp_path / "presets" / "own").exists()


def test_easels_own_stay(tmp_path, presets):
    save_preset(tmp_path, presets, "mine", SPEC)
    for act in (delete_preset, lambda *given: rename_preset(*given, "other")):
        with pytest.raises(SpecError, match="Only presets of your own"):
            act(tmp_path, presets, "default")
    with pytest.raises(SpecError, match="one of Easel's"):
        rename_preset(tmp_path, presets, "mine", "default")


def test_a_folder_that_cannot_be_written(tmp_path, presets):
    (tmp_path / "presets" / "own").write_text("a file")
    with pytest.raises(OutputFolder, match="may write into its folder"):
        save_preset(tmp_path, presets, "mine", SPEC)


def test_differences_name_what_is_not_as_the_preset_has_it():
    found = differences({"cfg_scale": 4.0, "steps": 20}, SPEC.model_copy(update={"steps": 20}))
    assert found == {"cfg_scale": (4.0, 6.5)}
    assert json.dumps(found)


def test_another_title_with_the_same_file_name_replaces_nothing(tmp_path, presets):
    save_preset(tmp_path, presets, "50/50", SPEC)
    with pytest.raises(SpecError, match="a preset '50/50' already"):
        save_preset(tmp_path, presets, "50:50", TaskSpec(steps=9))
    assert presets["50_50"].settings["cfg_scale"] == 6.5


def test_a_preset_of_fooocus_can_be_renamed(tmp_path, presets):
    file = tmp_path / "presets" / "own" / "mine.json"
    file.parent.mkdir()
    file.write_text('{"default_cfg_scale": 5.0}')
    presets.update(load_presets(tmp_path))
    presets.own = frozenset({"mine"})
    assert rename_preset(tmp_path, presets, "mine", "mine") == "mine"
    assert rename_preset(tmp_path, presets, "mine", "ours") == "ours"
    assert presets["ours"].settings == {"cfg_scale": 5.0}
    assert not file.exists()


def test_a_preset_that_cannot_be_written_leaves_the_old_one(tmp_path, presets):
    save_preset(tmp_path, presets, "a_b", SPEC)
    before = (tmp_path / "presets" / "own" / "a_b.json").read_text()
    with pytest.raises(SpecError, match="whole characters"):
        rename_preset(tmp_path, presets, "a_b", "a\ud800b")
    files = list((tmp_path / "presets" / "own").iterdir())
    assert [path.name for path in files] == ["a_b.json"]
    assert files[0].read_text() == before


def test_two_pages_may_save_at_once(tmp_path, presets):
    titles = [f"p{number % 4}" for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda title: save_preset(tmp_path, presets, title, SPEC), titles))
    assert set(presets) == {"default", "p0", "p1", "p2", "p3"}


def test_names_that_differ_in_capitals_alone_are_one(tmp_path, presets):
    save_preset(tmp_path, presets, "My look", SPEC)
    save_preset(tmp_path, presets, "other", SPEC)
    with pytest.raises(SpecError, match="a preset 'My look' already"):
        save_preset(tmp_path, presets, "my LOOK", TaskSpec(steps=9))
    with pytest.raises(SpecError, match="a preset 'My look' already"):
        rename_preset(tmp_path, presets, "other", "MY LOOK")
    with pytest.raises(SpecError, match="'Default' is one of Easel's"):
        save_preset(tmp_path, presets, "DEFAULT", SPEC)
    assert presets["My look"].settings["cfg_scale"] == 6.5


def test_a_preset_may_change_its_own_capitals(tmp_path, presets):
    save_preset(tmp_path, presets, "my look", SPEC)
    assert rename_preset(tmp_path, presets, "my look", "My Look") == "my look"
    assert presets["my look"].title == "My Look"
    assert save_preset(tmp_path, presets, "My Look", TaskSpec(steps=9)) == "my look"
    assert presets["my look"].settings == {"steps": 9}
    assert len(list((tmp_path / "presets" / "own").iterdir())) == 1


@pytest.mark.parametrize("title", ["CON", "nul", "Com1", "lpt9.json", "aux. ", "PRN"])
def test_names_that_windows_keeps_for_itself(tmp_path, presets, title):
    with pytest.raises(SpecError, match="cannot be the name of a file on Windows; choose another"):
        save_preset(tmp_path, presets, title, SPEC)
    save_preset(tmp_path, presets, "console", SPEC)
    with pytest.raises(SpecError, match="on Windows"):
        rename_preset(tmp_path, presets, "console", title)


@pytest.mark.parametrize("title", ["mine.", "mine. ", " .mine", "mine. ."])
def test_dots_at_the_ends_make_no_second_name(tmp_path, presets, title):
    save_preset(tmp_path, presets, "mine", SPEC)
    with pytest.raises(SpecError, match="a preset 'mine' already"):
        save_preset(tmp_path, presets, title, TaskSpec(steps=9))
