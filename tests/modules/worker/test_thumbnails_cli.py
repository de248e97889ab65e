"""`launch.py make-thumbnails` with the real engine and a tiny model."""

import json

import pytest

from modules.library.style_pictures import StylePictures
from modules.prompt.books import Shelf
from modules.settings.config import Settings, load_settings
from modules.worker import thumbnails_cli
from tests.support.tiny_checkpoint import write_tiny_sdxl

QUICK = ["--steps", "1", "--performance", "", "--width", "64", "--height", "64"]


@pytest.fixture
def place(tmp_path):
    """The options that keep everything in this test's folder."""
    return ["--models-path", str(tmp_path / "models"), "--data-path", str(tmp_path / "data")]


def test_styles_are_painted_once_and_again_when_asked(tmp_path, place, capsys):
    checkpoints = tmp_path / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    metadata = {"easel.area": "4096", "easel.ratios": json.dumps(["1:1"])}
    write_tiny_sdxl(checkpoints / "tiny.safetensors", metadata=metadata)
    settings = load_settings(place)
    book = Shelf(settings.root, settings.presets_path).books().styles
    two = list(book)[:2]
    pictures = StylePictures(settings.style_pictures_path)
    line = ["--only", two[0].name, two[1].title, *QUICK, *place]
    assert thumbnails_cli.main(line) == 0
    assert f"2 of 2  {two[1].title}" in capsys.readouterr().err
    assert all(pictures.is_painted(style) for style in two)
    first, second = (pictures.read(style).data for style in two)
    assert first != second  # each is in its own style
    assert not list(settings.temporary_path.iterdir())
    assert thumbnails_cli.main(line) == 0
    assert "Every style has its picture" in capsys.readouterr().err
    assert thumbnails_cli.main([*line, "--again", "--seed", "8"]) == 0
    assert pictures.read(two[0]).data != first


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--only", "nowhere"], "style 'nowhere' is not known"),
        (["--bogus"], "--bogus"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_sentence(line, words, place, capsys):
    assert thumbnails_cli.main([*line, *place]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_without_any_model_that_is_said(tmp_path, place, capsys, monkeypatch):
    nowhere = property(lambda _settings: tmp_path / "no models")
    monkeypatch.setattr(Settings, "builtin_models_path", nowhere)
    assert thumbnails_cli.main(["--only", "origami", *place]) == 1
    assert "no model" in capsys.readouterr().err.splitlines()[-1]


def test_the_log_says_more_of_what_nobody_foresaw(tmp_path, place, capsys, monkeypatch):
    monkeypatch.setattr("modules.async_worker.handler", lambda _task: 1 / 0)
    assert thumbnails_cli.main(["--only", "origami", *place]) == 1
    error = capsys.readouterr().err
    assert "the log says more" in error and "Traceback" not in error
    log = (tmp_path / "data" / "logs" / "make-thumbnails.log").read_text(encoding="utf-8")
    assert "Traceback" in log and "ZeroDivisionError" in log
