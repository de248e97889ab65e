"""Which language model of the user's is to add words, and what is said of it."""

import importlib.util
import json

import pytest

from modules.prompt.books import Shelf
from modules.prompt.language_model import find_language_model
from modules.prompt.plan import make_plan
from modules.spec.task_spec import TaskSpec
from tests.modules.prompt.test_books import PRESETS

SPEC = TaskSpec(prompt="a house", seed=1, expand_prompt=True, image_count=1)


def put(root, name, config):
    folder = root / "prompt_expansion" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


@pytest.fixture
def installed(monkeypatch):
    """Whether transformers is there, as a test says."""
    real, there = importlib.util.find_spec, [True]

    def find_spec(name):
        return (object() if there[0] else None) if name == "transformers" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return there


def test_the_first_folder_that_holds_a_gpt2_counts(tmp_path, installed):
    assert find_language_model(tmp_path) is None
    for name, config in (("a", "{"), ("b", "[]"), ("c", {"model_type": "bert"}), ("e", {})):
        put(tmp_path, name, config)
    assert find_language_model(tmp_path) is None
    put(tmp_path, "d", {"model_type": "gpt2"})
    found = find_language_model(tmp_path)
    assert (found.name, found.is_usable) == ("d", True)


def test_where_it_can_be_run_the_worker_adds_the_words_and_that_is_said(tmp_path, installed):
    put(tmp_path, "mine", {"model_type": "gpt2"})
    books = Shelf(tmp_path, PRESETS, tmp_path).books()
    plan = make_plan(SPEC, books)
    assert plan.pictures[0].expansion == ""
    assert plan.notices == (
        "The language model mine adds its words when a picture is painted; they stand in the "
        "picture's recipe.",
    )
    assert make_plan(SPEC.model_copy(update={"expand_prompt": False}), books).notices == ()


def test_without_the_package_easels_phrases_are_added_and_that_is_said(tmp_path, installed):
    installed[0] = False
    put(tmp_path, "mine", {"model_type": "gpt2"})
    plan = make_plan(SPEC, Shelf(tmp_path, PRESETS, tmp_path).books())
    own = make_plan(SPEC, Shelf(tmp_path, PRESETS).books())
    assert plan.pictures == own.pictures and own.pictures[0].expansion
    (said,) = plan.notices
    assert "needs the Python package transformers, which is not installed" in said


def test_the_words_of_the_phrases_are_at_hand(tmp_path):
    words = Shelf(tmp_path, PRESETS).phrase_words()
    assert {"golden", "light"} <= words and not any(" " in word for word in words)
