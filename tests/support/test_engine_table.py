"""The page that lists what the engine is held against."""

import re

import pytest

from modules.spec.flags import Sampler, Scheduler
from tests.support.engine_table import TARGET, page

ROOT = TARGET.parents[1]


def line(**changes):
    return {
        "kind": "sampler",
        "name": "euler",
        "test": "tests/a.py::test_euler[1]",
        "reference": "diffusers",
        "difference": 2e-6,
        "tolerance": 1e-4,
    } | changes


def test_the_largest_difference_of_a_test_s_cases_is_shown():
    text = page([line(), line(difference=3.14e-5, test="tests/a.py::test_euler[2]"), line()])
    row = "| euler | diffusers | [test_euler](../tests/a.py) | 3.1e-05 | 1e-04 |"
    assert [found for found in text.splitlines() if "euler" in found] == [row]


def test_what_a_test_does_not_allow_is_no_row():
    with pytest.raises(ValueError, match="test_euler.*more than it allows"):
        page([line(difference=1.0)])


def test_kinds_have_sections_in_a_fixed_order():
    text = page([line(), line(kind="vae", name="a|b"), line(kind="family", name="SDXL")])
    assert re.findall("## (.*)", text) == ["Model families", "Samplers", "Vae"]
    assert "a\\|b" in text


def test_the_page_lists_every_sampler_and_scheduler_and_real_tests():
    text = TARGET.read_text(encoding="utf-8")
    for name in [*Sampler, *Scheduler]:
        assert f"| {name.value.removesuffix('_gpu')} |" in text, name
    found = re.findall(r"\[(\w+)\]\(\.\./(tests/[\w/]+\.py)\)", text)
    assert len(found) > 60
    for function, path in set(found):
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), (path, function)


def test_the_guide_to_samplers_names_every_one():
    text = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    for name in [*Sampler, *Scheduler]:
        assert f"`{name.value}`" in text, name
