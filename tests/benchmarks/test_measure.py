"""The benchmarks' arithmetic: a ratio must be right, and refused where nothing is comparable."""

import pytest
import torch

from benchmarks import run
from benchmarks.measure import (
    NotEquivalent,
    compare,
    interleave,
    ratio_with_interval,
    require_equal,
)


def test_the_ratio_is_of_medians_and_lies_in_its_interval():
    ratio, low, high = ratio_with_interval([2.0, 4.0, 3.0, 9.0, 3.0], [1.0, 1.0, 2.0, 1.0, 1.0])
    assert ratio == 3.0
    assert low <= ratio <= high
    assert 1.0 < low < high < 9.1


def test_a_steady_ratio_has_a_narrow_interval():
    assert ratio_with_interval([2.0] * 5, [1.0] * 5) == (2.0, 2.0, 2.0)


def test_outputs_that_differ_or_are_not_finite_are_refused():
    one = torch.ones(4)
    assert require_equal("x", one * 1.01, one, 0.02) == pytest.approx(0.01, rel=1e-3)
    for other in (one * 1.1, one * float("nan"), torch.ones(5)):
        with pytest.raises(NotEquivalent):
            require_equal("x", other, one, 0.02)


def test_both_sides_run_in_every_round_and_warm_ups_do_not_count():
    calls = []
    seconds = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_ups=2
    )
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}
    rounds = [set(calls[i : i + 2]) for i in range(0, 10, 2)]
    assert rounds == [{"a", "b"}] * 5


def test_the_ratio_is_against_the_fastest_peer():
    def work(count: int):
        return lambda: sum(range(count))

    row = compare("r", "", work(40_000), {"slow": work(400_000), "fast": work(80_000)},
                  rounds=5, error=0.0)  # fmt: skip
    assert row.note.startswith("peer: fast; vs slow: ")
    assert row.ratio == pytest.approx(row.theirs / row.ours)


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["no_such_row"])
    assert "no row is named no_such_row; choose from" in capsys.readouterr().err


def test_a_row_whose_sides_differ_gets_no_ratio(monkeypatch, tmp_path, capsys):
    def differs(_options):
        raise NotEquivalent("unet: relative error 1.0e+00 is above 1e-04.")

    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setitem(run.ROWS, "unet_fp32", differs)
    assert run.main(["--quick", "unet_fp32"]) == 1
    assert "not equivalent, so no ratio" in capsys.readouterr().out
    assert list((tmp_path / "benchmarks" / "results").glob("*.json"))
