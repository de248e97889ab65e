"""Rows from a checkpoint to a picture: those that no other test runs."""

from benchmarks import rows_image
from benchmarks.sizes import Options


def test_every_preview_is_made_and_counted():
    row = rows_image.previews(Options(quick=True, rounds=1))
    assert len(row.samples["preview"]) == 10
    assert 0 < row.ours < 100
