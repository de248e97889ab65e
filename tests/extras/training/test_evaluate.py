"""The figures of the built-in model come from its files, and from nothing else."""

import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extras.preprocessors import canny_pyramid
from extras.training import contact_sheet as sheets
from extras.training import evaluate, picturebook, trials
from extras.training import painter as painting
from extras.training.base_parts import MODEL_FILE
from extras.training.contact_sheet import BYTES, contact_sheet
from extras.training.detector import DETECTOR_FILE, TOWER_FILE, TOY_TOWER, Detector, FactTower
from extras.training.evaluate import Evaluation, Row, edge_f1, followed, over
from extras.training.facts import Reading
from extras.training.pages import page_sizes
from extras.training.painter import FEWSTEP_FILE, Order, Painter, PaintSettings
from extras.training.scenes import vocabulary as words
from extras.training.scenes.scene import Scene, Thing
from extras.training.stage_control import ControlStage
from extras.training.stage_ip import ImagePromptPlan, ImagePromptStage
from extras.training.stage_lora import LoraPlan, LoraStage
from extras.training.trials import Trial, claims, some_trials, words_for
from extras.training.writing import half
from tests.extras.training.adapter_runs import PAGES, POLICY, WINDOW, place, write_toy_base

FAST = PaintSettings(steps=1, batch=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Every shipped file, of toy networks."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        write_toy_base(folder)
        save_file(half(FactTower(TOY_TOWER).result()), folder / TOWER_FILE)
        save_file(half(Detector((8, 8, 8, 8)).state_dict()), folder / DETECTOR_FILE)
        base, at = folder / MODEL_FILE, place(folder)
        plan = ImagePromptPlan(width=64, depth=1, tokens=3)
        ImagePromptStage(plan, base, PAGES, WINDOW, at).finish()
        control = ControlStage(base, PAGES, WINDOW, at, rank=2)
        lcm = LoraStage(LoraPlan(title="lcm", rank=2), base, PAGES, WINDOW, at)
        with torch.no_grad():
            for stage in (control, lcm):
                for weight in stage.model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.1)
        control.finish()
        lcm.finish()
    return folder


@pytest.fixture(scope="module")
def painter(models) -> Painter:
    return Painter(models, FAST, POLICY)


def scene(**changes) -> Scene:
    things = (Thing(subject="cat", color="blue"), Thing(subject="house", color="red"))
    parts = {"things": things, "relation": "left", "place": "lake", "style": "neon"}
    return Scene(**{**parts, **changes})


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a blue kitten and a crimson cottage by a lake, neon", "subject colour place style"),
        ("a cat and a red house", "subject"),
        ("a cat by a blue lake and a red house", "subject place"),
        ("a blue cat, neon lights", "style"),
        ("Neon sign of a blue cat and a red house.", "subject colour style"),
        ("blue concatenation and red houseboat", ""),
    ],
)
def test_claims_are_what_a_caption_says_of_every_thing(text, told):
    assert claims(text, scene()) == set(told.split())


def test_a_plain_ground_is_claimed_by_its_colour():
    plain = scene(place="plain", place_color="green")
    assert "place" in claims("a cat on a green background", plain)
    assert "place" not in claims("a blue cat", plain)


def test_trials_are_of_pages_that_training_never_draws():
    for groups in (1, 2):
        found = some_trials(5, groups, "subject", "style")
        assert len({trial.prompt for trial in found}) == 5
        for trial in found:
            assert trial.scene.seed < 1_000_000
            assert len(trial.scene.things) == groups
            assert {"subject", "style"} <= trial.claims


def test_trials_are_fitted_to_the_pages_of_the_model():
    wide = Trial("a cat", scene(size=(320, 192)), frozenset({"subject"}))
    assert trials.on_page_of(wide, page_sizes(128 * 128)).scene.size == (160, 96)
    assert trials.on_page_of(wide, ((128, 128),)).scene == scene(size=(128, 128))


def test_every_place_has_words_to_forbid_it():
    for name in words.PLACES:
        place_name = "plain red" if name == "plain" else name
        assert words_for(place_name)
    assert "red background" in words_for("plain red")


def test_every_place_has_one_that_is_unlike_it():
    alike = ({"beach", "underwater", "sea", "lake"}, {"forest", "hills", "meadow"},
             {"beach", "desert"}, {"snow", "hills"})  # fmt: skip
    names = [name for name in words.PLACES if name != "plain"]
    others = [trials.other_place(name) for name in names]
    assert sorted(others) == sorted(names)
    for pair in zip(names, others, strict=True):
        assert len(set(pair)) == 2
        assert not any(set(pair) <= group for group in alike)
    assert trials.other_place("plain red") in names


def test_the_sheets_prompts_hold_every_subject_and_style():
    prompts = trials.sheet_prompts()
    assert len(set(prompts)) == 48
    text = "\n".join(prompts)
    assert all(name in text for name in words.SUBJECTS)
    assert all(phrases[0] in text for phrases in words.STYLES.values())


def test_the_articles_of_prompts_are_right():
    prompts = [*trials.sheet_prompts(200), *(prompt for prompt, _ in trials.open_prompts(200))]
    assert not [text for text in prompts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
    assert any(text.startswith("an orange ") for text in prompts)


# --- measures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "near"), [(64, 1), (256, 2)])
def test_equal_edges_agree_and_far_ones_do_not(side, near):
    one, shifted, far = (np.zeros((side, side), np.uint8) for _ in range(3))
    one[20, 5:60], shifted[20 + near, 5:60], far[50, 5:60] = 255, 255, 255
    beside = np.roll(shifted, 1, axis=0)
    assert edge_f1(one, beside) == 0.0
    assert edge_f1(one, one) == 1.0
    assert edge_f1(one, shifted) == 1.0
    assert edge_f1(one, far) == 0.0
    assert edge_f1(one, np.maximum(one, far)) == pytest.approx(2 / 3)
    assert edge_f1(one, np.zeros_like(one)) == 0.0


def test_a_map_is_followed_by_the_page_that_it_is_of_and_by_no_empty_one():
    page = picturebook.draw(5, size=(128, 128)).image
    given = canny_pyramid(page)
    assert followed(page, given) == 1.0
    assert followed(np.zeros_like(page), given) == 0.0
    assert 0.0 < followed(picturebook.draw(6, size=(128, 128)).image, given) < 0.8


class Said(Evaluation):
    """An evaluation whose detector says what it is told to."""

    def __init__(self, painter, count: int, answers) -> None:
        super().__init__(painter, Detector((8, 8, 8, 8)), count)
        self.answers = iter(answers)

    def read(self, images):
        return [next(self.answers) for _ in images]


def perfect(trial: Trial) -> Reading:
    name = f"plain {trial.scene.place_color}" if trial.scene.place == "plain" else trial.scene.place
    return Reading(
        subjects=tuple(thing.subject for thing in trial.scene.things),
        colors={thing.subject: thing.color for thing in trial.scene.things},
        place=name,
        style=trial.scene.style,
    )


def test_rows_count_what_the_detector_sees(painter):
    single = some_trials(4, 1, "subject")
    answers = [perfect(trial) for trial in single]
    wrong = Reading(subjects=("nothing",), colors=answers[0].colors, place="?", style="?")
    found = {row.what: row for row in Said(painter, 4, [wrong, *answers[1:]]).prompts()}
    assert found["subject right"].figure == 0.75
    assert found["subject right"].of == 4
    placed = sum("place" in trial.claims for trial in single)
    missed = "place" in single[0].claims
    assert found["place right"].of == placed
    assert found["place right"].figure == pytest.approx((placed - missed) / placed)


def blank_painter(orders: list[Order]) -> SimpleNamespace:
    """Paints nothing, and keeps what it was asked for."""

    def paint(asked):
        orders.extend(asked)
        return [np.zeros((*order.size[::-1], 3), np.uint8) for order in asked]

    device = SimpleNamespace(device=torch.device("cpu"))
    blank = SimpleNamespace(
        paint=paint, sizes=((64, 64),), lacks=lambda *_: "", policy=device, settings=FAST
    )
    blank.in_few_steps = lambda: blank
    return blank


def test_a_forbidden_place_counts_as_gone_where_the_subject_stays():
    subjects = [subject for _, subject in trials.open_prompts(4)]

    def readings(places: list[str], lost: int) -> list[Reading]:
        names = ["nothing" if n == lost else name for n, name in enumerate(subjects)]
        pairs = zip(names, places, strict=False)
        return [Reading(subjects=(s,), colors={}, place=p, style="") for s, p in pairs]

    before = readings(["sea", "lake", "plain red", "sea"], lost=3)
    named = readings(["city", "city", "plain red"], lost=1)
    another = readings(["sea", "city", "plain blue"], lost=-1)
    orders: list[Order] = []
    said = Said(blank_painter(orders), 4, [*before, *named, *another])
    removed, baseline = said.negatives()
    assert (removed.figure, removed.of, removed.goal) == (pytest.approx(1 / 3), 3, 0.8)
    assert (baseline.figure, baseline.of, baseline.goal) == (pytest.approx(2 / 3), 3, 0.0)
    places = ["sea", "lake", "plain red"]
    assert [order.negative for order in orders[4:7]] == [words_for(p) for p in places]
    others = [trials.other_place(p) for p in places]
    assert [order.negative for order in orders[7:]] == [words_for(p) for p in others]
    assert not set(others) & {"sea", "lake", "plain red"}
    assert [order.prompt for order in orders[4:7]] == [order.prompt for order in orders[:3]]


def test_the_colour_of_a_missing_subject_is_not_judged(painter):
    single = [t for t in some_trials(9, 1, "subject") if "colour" in t.claims][:2]
    missing = Reading(subjects=("nothing",), colors=perfect(single[0]).colors, place="", style="")
    found = Said(painter, 2, [missing, perfect(single[1])]).judged(single, painter)
    assert found["subject"] == (0.5, 2)
    assert found["colour"] == (1.0, 1)


def test_control_is_led_by_the_programs_own_maps():
    orders: list[Order] = []
    rows = Evaluation(blank_painter(orders), Detector((8, 8, 8, 8)), 2).control()
    scenes = [trials.on_page_of(t, ((64, 64),)).scene for t in some_trials(2, 1, "subject")]
    assert [order.edges for order in orders[:2]] == [None, None]
    for order, drawn in zip(orders[2:], scenes, strict=True):
        assert np.array_equal(order.edges, canny_pyramid(picturebook.draw_scene(drawn).image))
    assert [row.of for row in rows] == [2, 2, 2]


def test_a_painter_that_returns_the_page_follows_its_map_wholly():
    blank = blank_painter([])
    pages = [
        picturebook.draw_scene(trials.on_page_of(t, ((64, 64),)).scene).image
        for t in some_trials(2, 1, "subject")
    ]
    blank.paint = lambda orders: pages
    rows = Evaluation(blank, Detector((8, 8, 8, 8)), 2).control()
    assert [row.figure for row in rows] == [1.0, 1.0, 1.0]


def test_inpainting_asks_for_another_subject_where_the_things_are():
    orders: list[Order] = []
    blank = blank_painter([])
    blank.paint = lambda asked: orders.extend(asked) or [order.page for order in asked]
    blank.round_trip = lambda images: torch.from_numpy(images / 255.0)
    single = [trials.on_page_of(t, ((64, 64),)) for t in some_trials(2, 1, "subject")]
    (_, first), (_, second) = trials.other_prompts(single)
    answers = [Reading(subjects=(s,), colors={}, place="", style="") for s in (first, "nothing")]
    right, kept = Said(blank, 2, answers).inpainting()
    assert (right.figure, right.of, right.goal) == (0.5, 2, 0.0)
    assert kept.line() == f"| {kept.what} | 100.0 dB | 2 |"
    for order, trial, subject in zip(orders, single, (first, second), strict=True):
        drawn = picturebook.draw_scene(trial.scene)
        assert np.array_equal(order.page, drawn.image)
        assert subject in order.prompt
        assert subject != trial.scene.things[0].subject
        for left, top, right_, bottom in drawn.truth.boxes[0]:
            assert order.mask[top:bottom, left:right_].all()


def test_a_mask_is_of_whole_latents():
    mask = over(((9, 0, 16, 17),), (32, 24))
    assert mask.shape == (24, 32)
    assert mask[:24, 8:16].all()
    assert int(mask.sum()) == 24 * 8


def test_the_time_of_a_picture_is_that_of_two_threads():
    blank, threads = blank_painter([]), []
    paint = blank.paint
    blank.paint = lambda orders: threads.append(torch.get_num_threads()) or paint(orders)
    before = torch.get_num_threads()
    row, book = Evaluation(blank, Detector((8, 8, 8, 8)), 2).speed()
    assert threads == [2, 2, 2, 2]
    assert [row.what.split(" on ")[0] for row in (row, book)] == [
        "one picture of 64×64", "one picture of 256×256",
    ]  # fmt: skip
    assert torch.get_num_threads() == before
    assert "(goal at most 4 s)" in row.line()
    assert asdict(row)["at_most"]


def test_the_few_step_row_is_a_ratio():
    single = [perfect(trial) for trial in some_trials(2, 1, "subject")]
    wrong = Reading(subjects=("nothing",), colors=dict.fromkeys(words.SUBJECTS, ""), place="",
                    style="")  # fmt: skip
    said = Said(blank_painter([]), 2, [*single, single[0], wrong])
    (row,) = said.few_steps()
    assert row.figure == 0.5
    assert f"over that of {FAST.steps} steps" in row.what


def test_few_steps_are_not_judged_by_a_base_that_gets_nothing_right():
    wrong = Reading(subjects=("nothing",), colors={}, place="", style="")
    (row,) = Said(blank_painter([]), 2, [wrong] * 4).few_steps()
    assert "nothing to judge" in row.line()


# --- painting ---------------------------------------------------------------------------------


def test_orders_come_back_in_their_order_and_size(painter):
    orders = [Order(prompt="a cat", seed=n, size=((64, 64), (96, 64))[n % 2]) for n in range(3)]
    images = painter.paint(orders)
    assert [image.shape for image in images] == [(64, 64, 3), (64, 96, 3), (64, 64, 3)]
    (alone,) = painter.paint(orders[2:])
    assert int(np.abs(alone.astype(int) - images[2]).max()) <= 2


def test_each_guide_changes_the_picture(painter):
    plain = Order(prompt="a cat", seed=3, size=(64, 64))
    page = picturebook.draw(2, size=(64, 64)).image
    (before,) = painter.paint([plain])
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    inpainting = {"page": page, "mask": mask}
    for guide in ({"negative": "a dog"}, {"edges": canny_pyramid(page)}, inpainting):
        (after,) = painter.paint([Order(**{**vars(plain), **guide})])
        assert int(np.abs(after.astype(int) - before).max()) > 2, guide.keys()
    (few,) = painter.in_few_steps().paint([plain])
    assert int(np.abs(few.astype(int) - before).max()) > 2


def test_edges_count_for_the_positive_prompt_as_in_the_program(painter, monkeypatch):
    made, load = [], painting.load_controlnet

    def recorded(*given, **how):
        made.append(load(*given, **how))
        return made[-1]

    monkeypatch.setattr(painting, "load_controlnet", recorded)
    painter.paint([Order(prompt="a cat", seed=3, size=(64, 64), edges=np.eye(64, dtype=np.uint8))])
    assert [control.positive_only for control in made] == [True]


def test_every_row_is_there_with_every_file(models, painter):
    detector = evaluate.load_detector(models, torch.device("cpu"))
    rows = Evaluation(painter, detector, count=3, pages=5).rows()
    assert len(rows) == 4 + 4 + 1 + 2 + 2 + 1 + 3 + 3 + 2 + 2
    of = {row.what: row.of for row in rows}
    assert of["two subjects both right"] == 3
    assert [of[f"autoencoder round trip at {side} pixels, PSNR"] for side in (64, 256)] == [3, 3]
    assert of["detector on held-out pages: place"] == 5
    assert not any(row.missing for row in rows)
    assert all(np.isfinite(row.figure) and row.figure >= 0 for row in rows)


def test_rows_without_their_file_say_so(models, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes((models / MODEL_FILE).read_bytes())
    evaluation = Evaluation(Painter(tmp_path, FAST, POLICY), Detector((8, 8, 8, 8)), 1)
    rows = [*evaluation.few_steps(), *evaluation.image_prompts(), *evaluation.control()]
    assert [row.missing for row in rows] == [
        FEWSTEP_FILE, "easel-mini-ip-adapter.safetensors", "easel-mini-canny.safetensors",
    ]  # fmt: skip
    assert all("no file easel-mini" in row.line() for row in rows)


def test_lines_of_the_table():
    assert Row("a", 0.8512, 0.85, 300).line() == "| a | 85.1 % (goal 85 %) | 300 |"
    assert Row("b", 31.27, 28, 9, "dB").line() == "| b | 31.3 dB (goal 28 dB) | 9 |"
    assert Row("e", 1.517, 2, 9, "×").line() == "| e | 1.52 × (goal 2 ×) | 9 |"
    assert Row("c", 0.0, 0.9, 0).line() == "| c | nothing to judge | 0 |"


@pytest.mark.parametrize("words", ["--count 0", "--pages 0", "--batch 0", "--steps 0"])
def test_numbers_below_one_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(words.split())
    assert "a whole number of 1 or more, not '0'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--sampler eulr", "--scheduler karas"])
def test_a_mistyped_name_is_refused_with_those_that_there_are(words, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(words.split())
    option, name = words.split()
    assert f"argument {option}: invalid choice: {name!r} (choose from" in capsys.readouterr().err


def test_the_sheet_is_a_small_png_with_all_pictures(monkeypatch):
    flat = [np.full((64, 96, 3), (200, 30, 30), np.uint8)] * 9
    data = contact_sheet(flat, ["x"] * 9)
    assert len(data) < BYTES == 1_000_000
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    red = (np.asarray(image.convert("RGB")) == (200, 30, 30)).all(axis=2)
    assert int(red.sum()) == 9 * 64 * 96
    monkeypatch.setattr(sheets, "BYTES", 30_000)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (144, 144, 3), dtype=np.uint8) for _ in range(3)]
    assert len(contact_sheet(noise, ["x"] * 3)) <= 30_000


def test_the_command_line_writes_the_sheet_or_names_what_is_missing(models, tmp_path, capsys):
    line = ["--cpu", "--steps", "1", "--models", str(models)]
    few = trials.sheet_prompts(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "sheet_prompts", lambda: few)
        assert evaluate.main([*line, "--sheet", str(tmp_path / "docs" / "sheet.png")]) == 0
    assert Image.open(tmp_path / "docs" / "sheet.png").width > 1000
    assert evaluate.main(["--cpu", "--models", str(tmp_path)]) == 1
    assert "There is no easel-mini.safetensors" in capsys.readouterr().err
    assert evaluate.main([*line, "--detector", str(tmp_path)]) == 1
    assert "run the stage `detector`" in capsys.readouterr().err


def test_the_command_line_prints_the_table(models, tmp_path, capsys):
    report, asked = tmp_path / "figures.json", []

    def rows(evaluation):
        asked.append((evaluation.count, evaluation.pages))
        return [Row("a", 0.5, 0.0, 2)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "rows", rows)
        line = ["--cpu", "--models", str(models), "--detector", str(models)]
        line += ["--count", "4", "--pages", "7"]
        assert evaluate.main([*line, "--json", str(report)]) == 0
    assert asked == [(4, 7)]
    assert "| a | 50.0 % | 2 |" in capsys.readouterr().out
    assert json.loads(report.read_text())[0]["figure"] == 0.5
