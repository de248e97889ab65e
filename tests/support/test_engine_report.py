"""The record that docs/ENGINE.md is made from."""

import json

import pytest

from tests.support.engine_report import VARIABLE, record

LINE = ("sampler", "euler", "tests/x.py::test_euler (call)", "diffusers Euler", 1e-6, 1e-4)


def test_each_measurement_is_a_line_of_its_own(tmp_path, monkeypatch):
    report = tmp_path / "report.jsonl"
    monkeypatch.setenv(VARIABLE, str(report))
    record(*LINE)
    record(*LINE)
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    expected = {
        "kind": "sampler",
        "name": "euler",
        "test": "tests/x.py::test_euler",
        "reference": "diffusers Euler",
        "difference": 1e-6,
        "tolerance": 1e-4,
    }
    assert lines == [expected, expected]


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    record(*LINE)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none_is_refused(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match="sampler euler"):
        record(*LINE[:4], float("nan"), 1e-4)
