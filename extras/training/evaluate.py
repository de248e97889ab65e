"""`python3 launch.py evaluate-builtin`: what the built-in model's files do, measured.

    evaluate-builtin --models models/builtin --detector extras/training --count 300

Every figure is computed from the files that are there; a row whose file is missing says so. The
judge is the detector, whose own accuracy on pages that nobody trained on is the first row.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from extras.preprocessors import canny_pyramid
from extras.training import picturebook
from extras.training.contact_sheet import contact_sheet
from extras.training.detector import TOWER_FILE, Detector, load_detector
from extras.training.errors import TrainingError
from extras.training.facts import Reading, readings, right, shares
from extras.training.options import number, whole
from extras.training.pages import nearest
from extras.training.painter import FEWSTEP_FILE, Order, Painter, PaintSettings
from extras.training.scenes.scene import Box
from extras.training.stage_control import CONTROL_FILE
from extras.training.stage_facts import HELD_OUT, accuracy
from extras.training.stage_ip import IP_FILE, NEGATIVE_FILE
from extras.training.trials import (
    Trial,
    on_page_of,
    open_prompts,
    other_place,
    other_prompts,
    sheet_prompts,
    some_trials,
    words_for,
)
from extras.training.writing import writing
from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from ldm_patched.modules.samplers import SAMPLERS
from ldm_patched.modules.schedulers import SCHEDULERS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("subject", "colour", "place", "style")
EDGE = 128  # of a map's 256 levels: from it on, something is an edge
EDGE_REACH = 128  # an edge may lie a pixel beside the map's for each so many of the shorter side
THREADS = 2  # of a CPU, with which the time of a picture is taken
SECONDS = 4.0  # that it may take there


@dataclass(frozen=True)
class Row:
    """One line of the table. goal: what the figure is to reach, or with `at_most` not to exceed; 0
    for none."""

    what: str
    figure: float
    goal: float
    of: int
    unit: str = "%"
    missing: str = ""
    at_most: bool = False

    def line(self) -> str:
        """As a row of Markdown."""
        if self.missing:
            return f"| {self.what} | no file {self.missing} | |"
        if not self.of:
            return f"| {self.what} | nothing to judge | 0 |"
        scale, end = (100.0, " %") if self.unit == "%" else (1.0, f" {self.unit}".rstrip())
        places = 2 if self.unit == "×" else 1
        most = "at most " if self.at_most else ""
        goal = f" (goal {most}{self.goal * scale:g}{end})" if self.goal else ""
        return f"| {self.what} | {self.figure * scale:.{places}f}{end}{goal} | {self.of} |"


class Evaluation:
    """The rows of the table. pages: held-out ones that the detector's own accuracy is measured on;
    count: held-out prompts or pages for each of the other rows."""

    def __init__(
        self, painter: Painter, detector: Detector, count: int = 300, pages: int = HELD_OUT
    ) -> None:
        self.painter, self.detector, self.count, self.pages = painter, detector, count, pages
        self._single: list[Trial] = []
        self._right: dict[str, tuple[float, int]] = {}

    @property
    def square(self) -> tuple[int, int]:
        """(width, height) of what has no shape of its own."""
        return nearest(1, 1, self.painter.sizes)

    def _squares(self) -> list[tuple[int, int]]:
        """`square`, and the book's own where that is another."""
        return list(dict.fromkeys((self.square, nearest(1, 1, picturebook.SIZES))))

    def trials(self, count: int, groups: int, *needs: str) -> list[Trial]:
        """See some_trials; on pages of the sizes that the model was trained on."""
        return [
            on_page_of(trial, self.painter.sizes) for trial in some_trials(count, groups, *needs)
        ]

    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        """What the detector takes pictures for."""
        return [reading for image in images for reading in readings(self.detector.tell(image))]

    def judged(self, trials: Sequence[Trial], painter: Painter) -> dict[str, tuple[float, int]]:
        """Shares that are right among what the prompts claim."""
        orders = [Order(prompt=t.prompt, seed=n, size=t.scene.size) for n, t in enumerate(trials)]
        seen = self.read(painter.paint(orders))
        rows = []
        for trial, reading in zip(trials, seen, strict=True):
            found = right(reading, trial.scene)
            rows.append({key: found[key] for key in trial.claims if key in found})
        return shares(rows)

    def rows(self) -> list[Row]:
        """All of them; takes minutes."""
        parts: tuple[Callable[[], list[Row]], ...] = (
            self.judge, self.prompts, self.pairs, self.negatives, self.autoencoder, self.few_steps,
            self.image_prompts, self.control, self.inpainting, self.speed,
        )  # fmt: skip
        return [row for part in parts for row in part()]

    def judge(self) -> list[Row]:
        """The detector on pages of the book."""
        found = accuracy(self.detector, range(self.pages), self.painter.sizes)
        return [_row(found, key, f"detector on held-out pages: {key}", 0.97) for key in PARTS]

    def prompts(self) -> list[Row]:
        """One subject: what of the prompt is in the picture."""
        self._single = self.trials(self.count, 1, "subject")
        self._right = self.judged(self._single, self.painter)
        goals = {"subject": 0.85, "colour": 0.90, "place": 0.90, "style": 0.90}
        return [_row(self._right, key, f"{key} right", goals[key]) for key in PARTS]

    def pairs(self) -> list[Row]:
        """Two subjects in a prompt."""
        found = self.judged(self.trials(self.count, 2, "subject"), self.painter)
        return [Row("two subjects both right", found["subject"][0], 0.60, found["subject"][1])]

    def negatives(self) -> list[Row]:
        """The place that a prompt leaves open, named by the negative prompt: is it gone, and the
        subject still there? Beside it, how often that happens when another place is named.

        Judged are the pictures that show their subject without any negative prompt.
        """
        asked = open_prompts(self.count)
        orders = [Order(prompt=p, seed=n, size=self.square) for n, (p, _) in enumerate(asked)]
        seen = self.read(self.painter.paint(orders))
        shown = [
            (order, subject, reading.place)
            for order, (_, subject), reading in zip(orders, asked, seen, strict=True)
            if reading.subjects[:1] == (subject,)
        ]
        ways: tuple[tuple[str, float, Callable[[str], str]], ...] = (
            ("negative prompt removes the place it names, not the subject", 0.80, str),
            ("the same place gone where the negative prompt names another", 0.0, other_place),
        )
        rows = []
        for what, goal, named in ways:
            against = [replace(o, negative=words_for(named(place))) for o, _, place in shown]
            after = self.read(self.painter.paint(against))
            gone = [
                reading.place != place and reading.subjects[:1] == (subject,)
                for (_, subject, place), reading in zip(shown, after, strict=True)
            ]
            rows.append(Row(what, sum(gone) / max(1, len(gone)), goal, len(gone)))
        return rows

    def autoencoder(self) -> list[Row]:
        """Held-out pages there and back, of the model's size and of the book's own."""
        return [self._round_trips(size) for size in self._squares()]

    def _round_trips(self, size: tuple[int, int]) -> Row:
        values = []
        for seed in range(self.count):
            page = picturebook.draw(seed, size=size).image
            back = self.painter.round_trip(page[None])[0].numpy()
            values.append(psnr(back, page / 255.0))
        what = f"autoencoder round trip at {size[0]} pixels, PSNR"
        return Row(what, float(np.mean(values)), 28.0, len(values), "dB")

    def few_steps(self) -> list[Row]:
        """The same prompts in six steps without guidance."""
        what = f"few-step LoRA: subject right, over that of {self.painter.settings.steps} steps"
        if missing := self.painter.lacks(FEWSTEP_FILE):
            return [Row(what, 0.0, 0.8, 0, missing=missing)]
        if not self._single:
            self.prompts()
        found, count = self.judged(self._single, self.painter.in_few_steps())["subject"]
        usual = self._right["subject"][0]
        return [Row(what, found / usual if usual else 0.0, 0.8, count if usual else 0, "×")]

    def image_prompts(self) -> list[Row]:
        """A picture instead of words: what of it comes back?"""
        if missing := self.painter.lacks(IP_FILE, NEGATIVE_FILE, TOWER_FILE):
            return [Row("image prompt alone", 0.0, 0.7, 0, missing=missing)]
        scenes = [trial.scene for trial in self.trials(self.count, 1)]
        orders = [
            Order(prompt="", seed=n, size=s.size, reference=picturebook.draw_scene(s).image)
            for n, s in enumerate(scenes)
        ]
        seen = self.read(self.painter.paint(orders))
        found = shares(right(reading, s) for reading, s in zip(seen, scenes, strict=True))
        keys = ("subject", "colour", "style")
        return [_row(found, key, f"image prompt alone: {key}", 0.70) for key in keys]

    def control(self) -> list[Row]:
        """Edges of the result against those of the map that it was given, over those without a
        map. The map is what the program itself makes of a page.
        """
        if missing := self.painter.lacks(CONTROL_FILE):
            return [Row("control map followed", 0.0, 2.0, 0, missing=missing)]
        trials = self.trials(self.count, 1, "subject")
        maps = [canny_pyramid(picturebook.draw_scene(trial.scene).image) for trial in trials]
        free = [Order(prompt=t.prompt, seed=n, size=t.scene.size) for n, t in enumerate(trials)]
        led = [replace(order, edges=given) for order, given in zip(free, maps, strict=True)]
        scores = []
        for orders in (free, led):
            made = self.painter.paint(orders)
            scores.append(np.mean([followed(i, m) for i, m in zip(made, maps, strict=True)]))
        free_score, led_score = (float(score) for score in scores)
        ratio = led_score / max(free_score, 1e-6)
        return [
            Row("edge F1 without control", free_score, 0.0, len(trials)),
            Row("edge F1 with control", led_score, 0.0, len(trials)),
            Row("control map followed, over no control", ratio, 2.0, len(trials), "×"),
        ]

    def inpainting(self) -> list[Row]:
        """Plain masked sampling: where a page's things are, another subject is asked for. Is it in
        the picture, and does the rest stay what the autoencoder makes of the page?
        """
        trials = self.trials(self.count, 1, "subject")
        asked = other_prompts(trials)
        orders = []
        for n, (trial, (prompt, _)) in enumerate(zip(trials, asked, strict=True)):
            drawn = picturebook.draw_scene(trial.scene)
            order = Order(prompt=prompt, seed=n, size=drawn.size, page=drawn.image)
            orders.append(replace(order, mask=over(drawn.truth.boxes[0], drawn.size)))
        painted = self.painter.paint(orders)
        seen = self.read(painted)
        found = [r.subjects[:1] == (name,) for r, (_, name) in zip(seen, asked, strict=True)]
        kept = []
        for image, order in zip(painted, orders, strict=True):
            back = self.painter.round_trip(order.page[None])[0].numpy()
            kept.append(psnr(image[~order.mask] / 255.0, back[~order.mask]))
        what = "inpainting: subject asked for in the masked part right"
        rest = "inpainting: outside the mask, PSNR against the page's round trip"
        return [
            Row(what, float(np.mean(found)), 0.0, len(found)),
            Row(rest, float(np.mean(kept)), 0.0, len(kept), "dB"),
        ]

    def speed(self) -> list[Row]:
        """Of a picture of the model's size, and of the book's own."""
        return [self._seconds(size) for size in self._squares()]

    def _seconds(self, size: tuple[int, int]) -> Row:
        """For one picture, once all is warm; on a CPU with two threads."""
        order = [Order(prompt="a red house by a lake", seed=1, size=size)]
        device, threads = self.painter.policy.device.type, torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            self.painter.paint(order)
            started = time.perf_counter()
            self.painter.paint(order)
            seconds = time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)
        goal = SECONDS if device == "cpu" else 0.0
        what = f"one picture of {size[0]}×{size[1]} on {device}, {THREADS} CPU threads"
        return Row(what, seconds, goal, 1, "s", at_most=True)


def _row(found: Mapping[str, tuple[float, int]], key: str, what: str, goal: float) -> Row:
    """The line of one of PARTS among shares that were right."""
    figure, count = found.get(key, (0.0, 0))
    where = " where the subject is" if key == "colour" else ""
    return Row(what + where, figure, goal, count)


def psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    """How near pixels in 0..1 are, in dB; at most 100."""
    return float(-10.0 * np.log10(max(np.square(image - wanted).mean(), 1e-10)))


def over(boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) of boxes on a page of size (width, height), in whole latents of 8 pixels."""
    mask = np.zeros((size[1] // 8, size[0] // 8), bool)
    for left, top, end, bottom in boxes:
        mask[top // 8 : -(-bottom // 8), left // 8 : -(-end // 8)] = True
    return mask.repeat(8, axis=0).repeat(8, axis=1)


def followed(image: np.ndarray, given: np.ndarray) -> float:
    """How well uint8 (H, W, 3) keeps to the map (H, W) that it was painted from, 0..1: its own map
    is made in the same way, and of both the edges count."""
    return edge_f1(canny_pyramid(np.ascontiguousarray(image)) >= EDGE, given >= EDGE)


def edge_f1(found: np.ndarray, wanted: np.ndarray) -> float:
    """How well two edge maps (H, W) agree, 0..1, a few pixels aside forgiven."""
    reach = max(1, min(wanted.shape) // EDGE_REACH)
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    found, wanted = found > 0, wanted > 0
    near_found, near_wanted = (cv2.dilate(m.astype(np.uint8), kernel) > 0 for m in (found, wanted))
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision, recall = near_wanted[found].mean(), near_found[wanted].mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    return "\n".join(["| what | figure | of |", "|---|---|---|", *(row.line() for row in rows)])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="launch.py evaluate-builtin", description="Measure the built-in model's files."
    )
    add = parser.add_argument
    builtin = ROOT / "models" / "builtin"
    add("--models", type=Path, default=builtin, help="the folder with the files")
    add("--detector", type=Path, default=HERE, help="the folder with detector.safetensors")
    add(
        "--count",
        type=whole(1),
        default=300,
        help="held-out prompts or pages for each other figure",
    )
    add(
        "--pages",
        type=whole(1),
        default=HELD_OUT,
        help="held-out pages for the detector's own accuracy",
    )
    add("--steps", type=whole(1), default=20)
    add("--cfg", type=number(0), default=4.0)
    add("--sampler", choices=SAMPLERS, default=PaintSettings.sampler)
    add("--scheduler", choices=SCHEDULERS, default=PaintSettings.scheduler)
    add("--batch", type=whole(1), default=PaintSettings.batch, help="pictures at a time")
    add("--cpu", action="store_true", help="use no accelerator")
    add("--json", type=Path, help="also write the figures there")
    add("--sheet", type=Path, help="paint a contact sheet into this PNG, and measure nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or paint the sheet; the exit status. Errors are one sentence."""
    args = build_parser().parse_args(argv)
    policy = DevicePolicy(DeviceFlags(always_cpu=True)) if args.cpu else DevicePolicy.detect()
    settings = PaintSettings(
        steps=args.steps,
        cfg=args.cfg,
        sampler=args.sampler,
        scheduler=args.scheduler,
        batch=args.batch,
    )
    try:
        painter = Painter(args.models, settings, policy)
        if args.sheet:
            prompts = sheet_prompts()
            size = nearest(1, 1, painter.sizes)
            orders = [Order(prompt=p, seed=n, size=size) for n, p in enumerate(prompts)]
            _write(args.sheet, contact_sheet(painter.paint(orders), prompts))
            return 0
        detector = load_detector(args.detector, policy.device)
        rows = Evaluation(painter, detector, args.count, args.pages).rows()
        sys.stdout.write(table(rows) + "\n")
        if args.json:
            _write(args.json, json.dumps([asdict(row) for row in rows], indent=1).encode())
    except (TrainingError, EngineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _write(path: Path, data: bytes) -> None:
    with writing(f"The file {path.name}", "make its folder writable or choose another."):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
