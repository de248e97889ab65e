import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.expansion import build_expander, content_words, load_expander
from modules.spec.errors import ConfigError

ROOT = Path(__file__).parents[3]
FILE = ROOT / "presets" / "expansion" / "phrases.json"
EXPANDER = load_expander(FILE)
PROMPTS = st.text(max_size=60) | st.sampled_from(
    ["cat in garden", "portrait of a woman", "night city", "watercolor fox", "a rocket in space"]
)


@given(PROMPTS, st.integers(0, 2**63 - 1))
def test_nothing_is_said_twice(prompt, seed):
    said = set(content_words(prompt))
    for phrase in EXPANDER.expand(prompt, seed):
        words = content_words(phrase)
        assert not words & said
        said |= words


@given(PROMPTS, st.integers(0, 2**63 - 1), st.integers(0, 8))
def test_more_phrases_only_add(prompt, seed, most):
    longer = EXPANDER.expand(prompt, seed, most + 3)
    assert EXPANDER.expand(prompt, seed, most) == longer[:most]


@pytest.mark.parametrize(
    ("prompt", "beside", "never"),
    [
        ("a city at night", "", {"golden", "morning", "daylight", "sun", "dappled"}),
        ("a cat, watercolor", "", {"bokeh", "film", "depth", "blurred"}),
        ("a cat", "pixel art of {prompt}", {"bokeh", "film", "depth", "blurred"}),
        ("a minimal poster of a house", "", {"intricate", "story", "rich"}),
    ],
)
def test_nothing_speaks_against_the_prompt(prompt, beside, never):
    for seed in range(200):
        for phrase in EXPANDER.expand(prompt, seed, beside=beside):
            assert not content_words(phrase) & never, phrase


def test_the_kind_of_subject_decides():
    animal = {p for seed in range(60) for p in EXPANDER.expand("a fox", seed)}
    food = {p for seed in range(60) for p in EXPANDER.expand("apple pie", seed)}
    assert "alert bright eyes" in animal - food
    assert "steam rising" in food - animal


def test_seeds_differ_and_repeat():
    found = [EXPANDER.expand("a fox", seed) for seed in range(50)]
    assert len(set(found)) >= 45
    assert found == [EXPANDER.expand("a fox", seed) for seed in range(50)]


def test_no_words_no_phrases():
    assert EXPANDER.expand("", 1) == ()
    assert EXPANDER.expand(" , the of", 1) == ()


def test_the_same_in_another_process():
    """Sets have another order in each process; phrases must not."""
    code = (
        "from pathlib import Path; from modules.prompt.expansion import load_expander;"
        f"print([load_expander(Path({str(FILE)!r})).expand('a fox in a forest', s)"
        " for s in range(5)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_pairs_that_were_seen_follow_each_other():
    content = {"kinds": {"any": {"words": [], "lists": [["one", "two"]] * 50 + [["three"]]}},
               "rivals": []}  # fmt: skip
    model = build_expander(content)
    second = [model.expand("x", seed, 2)[1] for seed in range(300) if
              model.expand("x", seed, 1) == ("one",)]  # fmt: skip
    assert second.count("two") > 0.9 * len(second)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kinds": 5, "rivals": []}', "[" * 100_000])
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "phrases.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^phrases\.json holds no phrases"):
        load_expander(path)


def test_the_phrases_that_ship_are_many_and_plain():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    phrases = {p for kind in content["kinds"].values() for line in kind["lists"] for p in line}
    assert len(phrases) >= 150
    assert all(content_words(phrase) and "," not in phrase for phrase in phrases)
