"""Groups of pages and the window over them are pure functions of the run's seed and the step."""

import multiprocessing
import os
import signal
from dataclasses import replace
from random import Random

import pytest
import torch
from torch.utils.data import DataLoader

from extras.training import page_workers, picturebook
from extras.training import pages as pages_module
from extras.training.caption_tokens import END_TOKEN, START_TOKEN, caption_ids, strew, used_ids
from extras.training.facts import fact_index
from extras.training.interrupts import ENDINGS
from extras.training.page_workers import draw_groups
from extras.training.pages import PageGroup, PagePlan
from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import SIZES
from extras.training.window import LatentWindow, WindowPlan

SMALL = {"sizes": ((64, 64), (96, 64), (64, 96)), "weights": (2.0, 1.0, 1.0)}
PLAN = PagePlan(seed=1, group=3, captions=2, cropped=0.5, **SMALL)
CPU = torch.device("cpu")


def same(first: PageGroup, second: PageGroup) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_group_depends_on_its_number_alone():
    source = draw_groups(PLAN, 5, workers=0)
    drawn = [next(source), next(source)]
    assert same(drawn[1], PLAN.draw_group(6))
    assert same(drawn[0], PLAN.draw_group(5))
    assert not same(replace(PLAN, seed=2).draw_group(5), drawn[0])


def ask_to_end(worker):
    for number in ENDINGS:
        os.kill(worker.pid, number)


class InterruptedAtOnce(DataLoader):
    """Its workers are asked to end before they have imported anything."""

    def __iter__(self):
        groups = super().__iter__()
        for worker in groups._workers:
            ask_to_end(worker)
        return groups


@pytest.mark.usefixtures("interruptible")
def test_worker_processes_draw_the_same_groups_and_leave_endings_to_the_run(monkeypatch):
    monkeypatch.setattr(page_workers, "DataLoader", InterruptedAtOnce)
    source = draw_groups(PLAN, 5, workers=1)
    before = torch.get_rng_state()  # a step is seeded before groups are drawn in it
    others = multiprocessing.active_children()
    assert all(same(next(source), PLAN.draw_group(number)) for number in (5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert {signal.getsignal(number) for number in ENDINGS} == {signal.default_int_handler}
    (worker,) = set(multiprocessing.active_children()).difference(others)
    ask_to_end(worker)  # PyTorch has put its own handlers in place of those that were inherited
    assert all(same(next(source), PLAN.draw_group(number)) for number in range(7, 15))
    page_workers._end_workers()
    assert worker.exitcode == 0


def test_groups_come_in_every_size():
    found = {PagePlan().group_size(number) for number in range(200)}
    assert found == set(SIZES)
    group = PLAN.draw_group(3)
    width, height = PLAN.group_size(3)
    assert group.images.shape == (3, height, width, 3)
    assert group.tokens.shape == (3, 2, 77)


def test_the_primer_shows_one_subject_in_clear_weather():
    scenes = [picturebook.primer_scene(seed, size=(64, 64)) for seed in range(300)]
    assert {len(scene.things) for scene in scenes} == {1}
    assert {(scene.things[0].count, scene.weather) for scene in scenes} == {(1, "clear")}
    assert 0.6 < sum(scene.things[0].scale == "large" for scene in scenes) / 300 < 0.8
    plain = sum(scene.place == "plain" for scene in scenes) / 300
    assert 0.4 < plain < 0.65  # those that _place draws beside
    assert {scene.things[0].subject for scene in scenes} == set(words.SUBJECTS)
    assert {scene.style for scene in scenes} == set(words.STYLES)
    assert picturebook.primer_scene(7, size=(64, 64)) == scenes[7]
    easy = replace(PLAN, book="primer")
    assert same(easy.draw_group(5), easy.draw_group(5))
    assert not torch.equal(easy.draw_group(5).images, PLAN.draw_group(5).images)


def test_pairs_show_two_groups_on_most_pages():
    scenes = [picturebook.pair_scene(seed, size=(64, 64)) for seed in range(300)]
    assert {len(scene.things) for scene in scenes} == {2}
    for place in (0, 1):
        assert {scene.things[place].subject for scene in scenes} == set(words.SUBJECTS)
    assert {scene.style for scene in scenes} == set(words.STYLES)
    assert picturebook.pair_scene(7, size=(64, 64)) == scenes[7]
    facts = replace(PLAN, group=120, captions=0, book="pairs").draw_group(5).facts
    index = fact_index()
    shown = facts[:, [index[(subject,)] for subject in words.SUBJECTS]].sum(dim=1)
    assert 0.5 < float((shown == 2).float().mean()) < 0.75


def test_the_alphabet_shows_one_flat_subject_that_fills_the_middle():
    scenes = [picturebook.alphabet_scene(seed, size=(64, 64)) for seed in range(300)]
    assert {scene.things[0].subject for scene in scenes} == set(words.SUBJECTS)
    assert {(len(s.things), s.style, s.place, s.things[0].scale) for s in scenes} == {
        (1, "flat", "plain", "large")
    }
    for size in ((128, 128), (192, 96)):
        plan = replace(PLAN, group=12, book="alphabet", sizes=(size,), weights=(1.0,))
        group = plan.draw_group(5)
        assert same(group, plan.draw_group(5))
        images = group.images.float()
        assert images.shape[1:3] == (size[1], size[0])
        ground = (images[:, :, :2].mean(2) + images[:, :, -2:].mean(2))[:, :, None] / 2
        shown = ((images - ground).abs().amax(-1) > 40).float()
        for axis, side in ((1, size[1]), (2, size[0])):
            where = torch.linspace(0, 1, side)
            part = shown.amax(3 - axis)
            middle = (part * where).sum(1) / part.sum(1)
            assert float((middle - 0.5).abs().median()) < 0.02  # some have the ground's colour


def test_the_reader_s_pages_are_those_of_all_three_books(monkeypatch):
    drawn = []
    for name, scene in dict(pages_module.BOOKS).items():

        def note(seed, *, size, name=name, scene=scene):
            drawn.append(name)
            return scene(seed, size=size)

        monkeypatch.setitem(pages_module.BOOKS, name, note)
    replace(PLAN, group=120, captions=0, book="reader").draw_group(5)
    shares = {name: drawn.count(name) / 120 for name in drawn}
    assert set(shares) == {"reader", "primer", "alphabet"}
    assert 0.35 < shares["reader"] < 0.65  # scenes of the whole book
    assert 0.1 < shares["alphabet"] < shares["primer"] < 0.45


def test_groups_hold_maps_of_their_edges_where_asked():
    assert PLAN.draw_group(1).maps.numel() == 0
    group = replace(PLAN, edges=True).draw_group(1)
    assert torch.equal(group.images, PLAN.draw_group(1).images)
    assert group.maps.shape == group.images.shape[:3]
    assert 0.01 < float((group.maps > 100).float().mean()) < 0.6


@pytest.mark.parametrize("book", ["alphabet", "whole"])
def test_groups_say_where_things_are_where_asked(book):
    plan = replace(PLAN, group=24, book=book, captions=0)
    assert plan.draw_group(1).things.numel() == 0
    group = replace(plan, things=True).draw_group(1)
    assert torch.equal(group.images, plan.draw_group(1).images)
    assert group.things.shape == group.images.shape[:3]
    there = group.things.bool()
    assert set(group.things.unique().tolist()) == {0, 1}
    inside, outside = 0.0, 0.0
    for image, thing in zip(group.images.float(), there, strict=True):
        if thing.any():  # most of the change within a page is at the edges of its things
            change = image.diff(dim=1).abs().sum(-1) * (thing[:, 1:] != thing[:, :-1])
            still = image.diff(dim=1).abs().sum(-1) * (thing[:, 1:] == thing[:, :-1])
            inside += float(change.sum() / (thing[:, 1:] != thing[:, :-1]).sum())
            outside += float(still.sum() / (thing[:, 1:] == thing[:, :-1]).sum())
    assert inside > 3 * outside


def test_crops_are_told_as_they_are():
    whole, cut = 0, 0
    for number in range(12):
        width, height = PLAN.group_size(number)
        for h, w, top, left, target_h, target_w in PLAN.draw_group(number).numbers.tolist():
            assert (target_h, target_w) == (height, width)
            assert 0 <= top <= h - height
            assert 0 <= left <= w - width
            whole += (h, w) == (height, width)
            cut += (h, w) != (height, width)
    assert whole > 5
    assert cut > 5


def test_pieces_have_the_side_that_was_asked_for():
    assert replace(PLAN, side=64, captions=0).draw_group(0).images.shape == (3, 64, 64, 3)


def test_training_never_sees_the_held_out_seeds(monkeypatch):
    seeds = []
    scene = pages_module.picturebook.scene_from_seed
    monkeypatch.setitem(
        pages_module.BOOKS,
        "whole",
        lambda seed, **options: seeds.append(seed) or scene(seed, **options),
    )
    PagePlan(group=4, **SMALL).draw_group(0)
    assert min(seeds) >= pages_module.FIRST_TRAINING_SEED == 1_000_000


def test_every_word_of_a_caption_has_a_row():
    from extras.training import picturebook

    known = set(used_ids())
    seeds = range(50_000, 50_800)
    assert all(set(caption_ids(picturebook.draw(s, size=(64, 64)).caption)) <= known
               for s in seeds if s % 8 == 0)  # fmt: skip


def test_strange_words_are_strewn_around_the_known_ones():
    ids = caption_ids("a red house by a lake")
    known = set(used_ids())
    for seed in range(50):
        mixed = strew(ids, Random(seed))
        assert [token for token in mixed if token in known] == ids
        assert len(mixed) <= 75
        assert START_TOKEN not in mixed
        assert END_TOKEN not in mixed


def window(step: int, **changes) -> LatentWindow:
    plan = WindowPlan(**{"batch": 4, "capacity": 12, "start": 6, "reuse": 2.0, **changes})

    def encode(group: PageGroup) -> dict[str, torch.Tensor]:
        images = group.images.permute(0, 3, 1, 2)
        pooled = torch.nn.functional.avg_pool2d(images.float(), 8)
        return {"latents": pooled, "corner": images[:, :, 0, 0]}

    return LatentWindow(PLAN, plan, encode, device=CPU, workers=0, first_step=step)


def test_a_resumed_window_gives_the_same_batches():
    straight = window(0)
    batches = {}
    for step in range(9):
        straight.advance(step)
        batches[step] = straight.batch(step)
    later = window(7)
    for step in (7, 8):
        later.advance(step)
        found = later.batch(step)
        assert found.keys() == batches[step].keys()
        assert all(torch.equal(found[key], batches[step][key]) for key in found)


def test_what_is_kept_of_a_picture_stays_with_it():
    sliding = window(0)
    sliding.advance(0)
    batch = sliding.batch(0)
    assert batch["corner"].dtype == torch.uint8
    known = {}
    for number in (0, 1):
        group = PLAN.draw_group(number)
        for image in group.images:
            pooled = torch.nn.functional.avg_pool2d(image.permute(2, 0, 1)[None].float(), 8)
            known[tuple(pooled.half().flatten().tolist())] = image[0, 0].tolist()
    for latents, corner in zip(batch["latents"], batch["corner"], strict=True):
        assert known[tuple(latents.flatten().tolist())] == corner.tolist()


def test_the_window_slides():
    sliding = window(0)
    assert (sliding.low(0), sliding.high(0)) == (0, 2)
    assert sliding.high(30) - sliding.low(30) == 4  # 12 pages in groups of 3
    assert sliding.high(30) - sliding.high(0) == 20  # 30 steps x 4 pictures / reused 2 times / 3
    assert sliding.missing(0) == 2
    sliding.advance(0)
    assert sliding.missing(0) == 0


def test_captions_are_emptied_as_often_as_asked():
    emptied = window(0, batch=400, dropout=0.25)
    emptied.advance(0)
    tokens = emptied.batch(0)["tokens_l"]
    share = float((tokens[:, 1] == END_TOKEN).float().mean())
    assert share == pytest.approx(0.25, abs=0.07)
