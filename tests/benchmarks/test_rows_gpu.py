"""The rows for a graphics card: what they do without one, and that both sides agree."""

import pytest

from benchmarks import rows_gpu, run
from benchmarks.sizes import Options


def test_without_a_card_they_wait_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    names = [name for name in run.ROWS if name.startswith("unet_gpu")]
    assert len(names) == 4
    assert run.main(["--quick", *names]) == 0
    assert capsys.readouterr().out.count("-- needs a graphics card") == 4


@pytest.mark.parametrize("batch", [1, 4])
def test_both_sides_compute_the_same(batch):
    row = rows_gpu.on_card("unet_gpu", Options(quick=True, rounds=2), batch=batch, device="cpu")
    assert row.error is not None and row.error < 3e-2
    assert row.ratio is not None and "quick run" in row.note
