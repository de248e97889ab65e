"""Encoded pages on the disk: read for the same pages alone, drawn anew where they are not whole."""

import pytest
import torch
from torch import nn

from extras.training.errors import TrainingFolderError
from extras.training.kept_pages import KeptPages
from extras.training.pages import PageGroup, PagePlan, source_record
from extras.training.window import LatentWindow, WindowPlan

PLAN = PagePlan(group=3, sizes=((64, 64), (96, 64)), weights=(2, 1), captions=2)
SOURCE = source_record(PLAN)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def batches(kept, steps=range(6)):
    """({step: batch}, numbers of pages that were encoded)."""
    encoded = []

    def encode(group: PageGroup) -> dict[str, torch.Tensor]:
        encoded.append(len(group.images))
        images = group.images.permute(0, 3, 1, 2).float()
        return {"latents": torch.nn.functional.avg_pool2d(images, 8) / 7}

    plan = WindowPlan(batch=4, capacity=12, start=6, reuse=2.0)
    window = LatentWindow(PLAN, plan, encode, device=torch.device("cpu"), workers=0, kept=kept)
    found = {}
    for step in steps:
        window.advance(step)
        found[step] = window.batch(step)
    return found, encoded


def assert_same(found, wanted):
    for step, batch in wanted.items():
        assert found[step].keys() == batch.keys()
        assert all(torch.equal(found[step][name], batch[name]) for name in batch)


def test_a_later_run_encodes_only_what_is_new(tmp_path, vae):
    plain, all_of_them = batches(None)
    first, encoded = batches(KeptPages(tmp_path, SOURCE, vae), range(4))
    assert 0 < len(encoded) < len(all_of_them)
    later, rest = batches(KeptPages(tmp_path, SOURCE, vae))
    assert len(encoded) + len(rest) == len(all_of_them)
    assert_same(first, {step: plain[step] for step in first})
    assert_same(later, plain)
    assert batches(KeptPages(tmp_path, SOURCE, vae))[1] == []


@pytest.mark.parametrize("other", ["pages", "weights", "generator"])
def test_what_came_from_something_else_is_not_read(tmp_path, vae, other, monkeypatch):
    kept = KeptPages(tmp_path, SOURCE, vae)
    _, encoded = batches(kept)
    source = {**SOURCE, "book": "primer"} if other == "pages" else SOURCE
    if other == "weights":
        with torch.no_grad():
            vae.bias[0] += 1e-6
    elif other == "generator":
        monkeypatch.setattr("extras.training.kept_pages._BOOK", ("pages.py",))
    different = KeptPages(tmp_path, source, vae)
    assert kept.read(0) is not None
    assert different.read(0) is None
    assert batches(different)[1] == encoded


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_group_that_is_not_whole_is_drawn_again(tmp_path, vae, damage):
    kept = KeptPages(tmp_path, SOURCE, vae)
    plain, _ = batches(kept)
    path = sorted(tmp_path.rglob("*.safetensors"))[1]
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    again, encoded = batches(kept)
    assert encoded == [3]
    assert_same(again, plain)
    assert path.read_bytes() == whole


def test_kept_pages_go_to_the_device_of_the_window(tmp_path, vae):
    kept = KeptPages(tmp_path, SOURCE, vae)
    batches(kept, range(1))
    plan = WindowPlan(batch=4, capacity=12, start=6, reuse=2.0)
    meta = torch.device("meta")
    window = LatentWindow(PLAN, plan, lambda _group: {}, device=meta, workers=0, kept=kept)
    window.advance(0)
    assert window.batch(0)["latents"].device == meta


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, vae):
    (tmp_path / "pages").write_text("in the way")
    with pytest.raises(TrainingFolderError, match="--keep-pages"):
        batches(KeptPages(tmp_path / "pages", SOURCE, vae))
