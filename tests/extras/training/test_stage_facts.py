"""The detector and the image encoder learn what is on pages, and say how well."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from extras.ip_store import clip_preprocess, squash
from extras.training import picturebook
from extras.training.alignment import Lessons, untold
from extras.training.detector import (
    DETECTOR_FILE,
    TOWER_FILE,
    TOY_TOWER,
    Detector,
    FactTower,
    load_detector,
    tower_pixels,
)
from extras.training.errors import CheckpointError, TrainingFolderError
from extras.training.facts import place_of, readings, right, scene_facts, shares
from extras.training.pages import PagePlan
from extras.training.run import Run, RunPlan
from extras.training.scenes.scene import Scene, Thing
from extras.training.stage_diffusion import Workplace
from extras.training.stage_facts import FactsStage, accuracy
from extras.training.window import WindowPlan
from ldm_patched.modules import clip_vision

PAGES = PagePlan(group=2, captions=0, sizes=((64, 64), (96, 64)), weights=(1.0, 1.0))
WINDOW = WindowPlan(batch=4, capacity=8, start=4, reuse=2.0)
PLAN = RunPlan(
    folder=Path(), steps=4, warmup=2, grid_minutes=0, checkpoint_minutes=1e9, log_seconds=0
)


torch.manual_seed(1)
TEACHER = Detector((8, 8, 8, 16)).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network(name: str):
    if name == "taught tower":
        return FactTower(TOY_TOWER, seen=TEACHER.width)
    return Detector((8, 16, 16, 32)) if name == "detector" else FactTower(TOY_TOWER)


def facts_run(folder: Path, name: str, **changes) -> Run:
    torch.manual_seed(0)
    stage = FactsStage(
        name, network(name), PAGES, WINDOW,
        Workplace(folder=folder, device=torch.device("cpu"), bf16=False), held_out=6,
        lessons=Lessons(teacher=TEACHER, emphasis=3.0) if name == "taught tower" else Lessons(),
    )  # fmt: skip
    return Run(stage, replace(PLAN, folder=folder, **changes), StringIO())


def scene(**changes) -> Scene:
    cat, house = Thing(subject="cat", color="blue"), Thing(subject="house", color="red")
    parts = {"things": (cat, house), "relation": "left", "place": "lake", "style": "neon"}
    return Scene(**{**parts, **changes})


def logits_of(truth: Scene) -> torch.Tensor:
    return torch.from_numpy(scene_facts(truth)).float()[None] * 10 - 5


def test_true_facts_read_as_their_scene():
    for truth in (scene(), scene(place="plain", place_color="green"), scene(style="flat")):
        (reading,) = readings(logits_of(truth))
        assert set(reading.subjects[:2]) == {"cat", "house"}
        assert (reading.colors["cat"], reading.colors["house"]) == ("blue", "red")
        assert right(reading, truth) == dict.fromkeys(("subject", "colour", "place", "style"), True)


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (scene(things=(Thing(subject="dog", color="blue"), scene().things[1])), "subject"),
        (scene(things=(Thing(subject="cat", color="red"), scene().things[1])), "colour"),
        (scene(place="sea"), "place"),
        (scene(place="plain", place_color="blue"), "place"),
        (scene(style="chalk"), "style"),
    ],
)
def test_a_reading_is_wrong_about_what_differs(other, wrong):
    found = right(readings(logits_of(scene()))[0], other)
    assert not found.pop(wrong)
    assert all(found.values())
    assert ("colour" in found) == (wrong not in ("subject", "colour"))  # of what is not there: none


def test_the_ground_of_a_plain_place_counts():
    green, purple = (scene(place="plain", place_color=color) for color in ("green", "purple"))
    assert place_of(green) == "plain green"
    assert not right(readings(logits_of(green))[0], purple)["place"]


def test_an_empty_scene_has_no_subject_to_be_right_about():
    empty = Scene(things=(), place="sea")
    assert set(right(readings(logits_of(empty))[0], empty)) == {"place", "style"}


def test_shares_count_only_rows_that_have_a_key():
    rows = [{"place": True, "colour": False}, {"place": False}, {"place": True}]
    assert shares(rows) == {"place": (2 / 3, 3), "colour": (0.0, 1)}


@pytest.mark.parametrize("name", ["detector", "tower", "taught tower"])
def test_resumes_to_the_weights_of_an_uninterrupted_run(name, tmp_path):
    straight = facts_run(tmp_path / "straight", name)
    assert straight.train()
    first = facts_run(tmp_path / "parts", name)
    first.prepare()
    first.stage.begin(0)
    for _ in range(2):
        first.train_step()
    first.save()
    second = facts_run(tmp_path / "parts", name, resume=True)
    assert second.train()
    for key, tensor in straight._tensors().items():
        assert torch.equal(tensor, second._tensors()[key]), key


def test_a_compiled_network_learns_the_same(monkeypatch, tmp_path):
    compiled = []

    def compile_network(network):
        compiled.append(network)
        return lambda images: network(images)

    monkeypatch.setattr(torch, "compile", compile_network)
    torch.manual_seed(0)
    stage = FactsStage(
        "tower", network("taught tower"), PAGES, WINDOW,
        Workplace(folder=tmp_path, device=torch.device("cpu"), bf16=False),
        lessons=Lessons(teacher=TEACHER, emphasis=3.0), compile_network=True,
    )  # fmt: skip
    plain = facts_run(tmp_path, "taught tower").stage
    losses = []
    for each in (stage, plain):
        each.begin(0)
        losses.append(each.compute_loss(0)[0].item())
    assert compiled == [stage.model]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_runs_from_before_the_emphasis_go_on(tmp_path):
    stage = facts_run(tmp_path, "taught tower").stage
    assert stage.identity()["emphasis"] == 3.0
    stage.lessons = replace(stage.lessons, emphasis=1.0)
    assert stage.identity()["taught"] is True
    assert "emphasis" not in stage.identity()
    assert "taught" not in facts_run(tmp_path, "tower").stage.identity()


def test_another_teacher_is_refused_on_resuming(tmp_path):
    first = facts_run(tmp_path, "taught tower")
    first.prepare()
    first.save()
    facts_run(tmp_path, "taught tower", resume=True).prepare()
    again = facts_run(tmp_path, "taught tower", resume=True)
    again.stage.lessons = Lessons(teacher=Detector((8, 8, 8, 16)), emphasis=3.0)
    with pytest.raises(CheckpointError, match="another detector"):
        again.prepare()


def few_pages(run: Run):
    """Let the run see one batch alone; gives it."""
    run.stage.begin(0)
    run.stage.window.advance(0)
    batch = run.stage.window.batch(0)
    run.stage.begin = lambda _step: None
    run.stage.window.advance, run.stage.window.batch = (lambda _step: None, lambda _step: batch)
    return batch


@pytest.mark.parametrize("name", ["detector", "tower"])
def test_learns_the_facts_of_a_few_pages(name, tmp_path):
    run = facts_run(tmp_path, name, steps=70, warmup=1, cooldown=0.01, learning_rate=8e-3)
    batch = few_pages(run)

    def share() -> float:
        with torch.no_grad():
            found = next(iter(run.stage.model(batch["images"]).values())) > 0
        true = batch["facts"].bool()
        return float((found == true)[true].float().mean())

    assert share() < 0.3
    assert run.train()
    assert share() > 0.9


def test_the_tower_learns_what_a_detector_sees(tmp_path):
    run = facts_run(tmp_path, "taught tower", steps=70, warmup=1, learning_rate=8e-3)
    batch = few_pages(run)
    counts = batch["emphasis"].flatten(1)
    assert counts.shape == (4, 4 * 4)  # of the tower's places, whatever the page's ratio
    assert counts.mean(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-2)
    assert float(counts.max() / counts.min()) > 1.5
    whole = F.adaptive_avg_pool2d(TEACHER.features(batch["images"]), 4)
    torch.testing.assert_close(batch["seen"], whole, atol=2e-2, rtol=1e-2)

    @torch.no_grad()
    def unseen() -> float:
        run.stage.model(batch["images"])
        return float(untold(run.stage.model.seen, whole.flatten(2).transpose(1, 2), counts))

    assert unseen() > 0.9  # of the variance
    trained = run.stage.compute_loss(0)[1]["seen"]
    assert trained.item() == pytest.approx(unseen(), rel=1e-2)
    assert run.train()
    assert unseen() < 0.5
    path, _ = run.finish()
    assert path.name == TOWER_FILE
    assert clip_vision.load(path).config == TOY_TOWER


def test_pictures_of_every_ratio_are_taken(tmp_path):
    for width, height in picturebook.SIZES:
        images = torch.zeros(1, height, width, 3, dtype=torch.uint8)
        assert len(Detector((8, 8, 8, 8))(images)["facts"]) == 1


def test_a_finished_detector_comes_back_and_tells_its_accuracy(tmp_path):
    run = facts_run(tmp_path, "detector", steps=1)
    run.stage.output = tmp_path / "shipped"
    assert run.train()
    weights, shipped, report = run.finish()
    assert weights.name == DETECTOR_FILE
    assert shipped.read_bytes() == weights.read_bytes()
    loaded = load_detector(tmp_path, torch.device("cpu"))
    for name, weight in loaded.state_dict().items():
        shadow = run.ema.m_name2s_name.get(name)
        torch.testing.assert_close(weight, dict(run.ema.named_buffers())[shadow], atol=2e-3, rtol=1)
    measured = accuracy(loaded, range(6), PAGES.sizes)
    told = json.loads(report.read_text())
    assert told.keys() == measured.keys()
    assert told["place"]["of"] == 6
    assert all(0.0 <= entry["right"] <= 1.0 for entry in told.values())


def test_a_perfect_network_has_full_accuracy():
    class Knowing(Detector):
        def tell(self, image):  # noqa: ARG002
            return logits_of(picturebook.scene_from_seed(next(seeds)))

    seeds = iter(range(20, 30))
    found = accuracy(Knowing((8, 8, 8, 8)), range(20, 30), PAGES.sizes)
    assert {share for share, _ in found.values()} == {1.0}


def test_a_detector_looks_more_than_once():
    image = picturebook.draw(4, size=(96, 64)).image
    detector = Detector((8, 8, 8, 8))
    with torch.no_grad():
        for weight in detector.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 9)

        def at(rows, columns):
            clipped = image[np.clip(rows, 0, 63)][:, np.clip(columns, 0, 95)]
            return detector(torch.from_numpy(clipped)[None])["facts"]

        rows, columns = np.arange(64), np.arange(96)
        looks = [at(rows - down, columns - right) for down, right in Detector.looks]
    torch.testing.assert_close(detector.tell(image), torch.stack(looks).mean(dim=0))
    assert not torch.allclose(looks[0], looks[1])
    tower = FactTower(TOY_TOWER)
    with torch.no_grad():
        told = tower(torch.from_numpy(image)[None])["embeds"]
    torch.testing.assert_close(tower.tell(image), told)


def test_without_a_detector_it_is_said_what_to_do(tmp_path):
    with pytest.raises(TrainingFolderError, match="run the stage `detector`"):
        load_detector(tmp_path, torch.device("cpu"))


def test_the_engine_loads_the_image_encoder(tmp_path):
    run = facts_run(tmp_path, "tower", steps=1)
    assert run.train()
    path, _ = run.finish()
    assert path.name == TOWER_FILE
    model = clip_vision.load(path)
    assert model.config == TOY_TOWER
    size = TOY_TOWER.image_size
    image = np.asarray(picturebook.draw(3, size=(96, 64)).image)
    mine = tower_pixels(torch.from_numpy(image)[None], size)
    theirs = clip_preprocess(squash(image, size), size)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert model.encode(mine).image_embeds.shape == (1, 64)
