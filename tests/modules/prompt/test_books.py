import os
from pathlib import Path

from modules.prompt.books import Shelf
from modules.prompt.plan import make_plan
from modules.spec.task_spec import TaskSpec

PRESETS = Path(__file__).parents[3] / "presets"


def test_what_ships_is_found(tmp_path):
    books = Shelf(tmp_path, PRESETS).books()
    spec = TaskSpec(prompt="a __color__ cat", styles=("oil-classic",), expand_prompt=True, seed=3)
    plan = make_plan(spec, books)
    assert plan.notices == ()
    assert plan.pictures[0].positive[0].startswith("classical oil painting of a ")
    assert plan.pictures[0].expansion


def test_own_files_come_first_and_changes_are_seen(tmp_path):
    shelf = Shelf(tmp_path, PRESETS)
    assert shelf.books().styles.find("oil-classic").group == "painting"
    (tmp_path / "styles").mkdir()
    own = tmp_path / "styles" / "mine.json"
    own.write_text('[{"name": "oil-classic", "prompt": "mine {prompt}"}]')
    assert shelf.books().styles.find("oil-classic").prompt == "mine {prompt}"
    own.write_text('[{"name": "oil-classic", "prompt": "yours {prompt}"}]')
    os.utime(own, (1, 1))
    assert shelf.books().styles.find("oil-classic").prompt == "yours {prompt}"
    own.unlink()
    assert shelf.books().styles.find("oil-classic").group == "painting"


def test_nothing_changed_is_nothing_read_again(tmp_path):
    shelf = Shelf(tmp_path, PRESETS)
    assert shelf.books().styles is shelf.books().styles


def test_without_phrases_the_plan_says_so(tmp_path):
    spec = TaskSpec(prompt="a cat", expand_prompt=True, seed=3)
    plan = make_plan(spec, Shelf(tmp_path, tmp_path).books())
    assert "expansion" in plan.notices[0]
