"""The stages `detector` and `tower`: networks learn to tell the facts of pages."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from extras.training import picturebook
from extras.training.alignment import Lessons, untold
from extras.training.detector import FactNetwork
from extras.training.facts import fact_loss, readings, right, shares
from extras.training.pages import PageGroup, PagePlan, source_record
from extras.training.run import Stage
from extras.training.stage_diffusion import Workplace
from extras.training.window import LatentWindow, WindowPlan
from extras.training.writing import half, write_weights, writing

HELD_OUT = 1000
"""Pages, by seeds from 0 on, on which a finished network's accuracy is measured."""


def accuracy(
    network: FactNetwork, seeds: range, sizes: Sequence[tuple[int, int]]
) -> dict[str, tuple[float, int]]:
    """(share right, pages looked at) of subject, colour, place and style on pages of `seeds`;
    see facts.right.

    sizes: (width, height), taken in turn.
    """
    rows = []
    for seed in seeds:
        sample = picturebook.draw(seed, size=sizes[seed % len(sizes)])
        rows.append(right(readings(network.tell(sample.image))[0], sample.truth.scene))
    return shares(rows)


SIGHT_WEIGHT = 30.0
"""Brings the error of what is seen, which is about 1 at first, to the size of the facts'."""


class FactsStage(Stage):
    """See the module's docstring."""

    def __init__(
        self,
        name: str,
        network: FactNetwork,
        pages: PagePlan,
        window: WindowPlan,
        place: Workplace,
        *,
        held_out: int = HELD_OUT,
        lessons: Lessons = Lessons(),
        compile_network: bool = False,
        output: Path | None = None,
    ) -> None:
        """output: another folder for the network. held_out: pages to measure its accuracy on.
        lessons: for a network that can tell what the teacher sees."""
        self.name, self.pages, self.place = name, lessons.pages(pages), place
        self.device = place.device
        self.held_out = held_out
        self.model = network.to(self.device, memory_format=torch.channels_last)
        self._trained = torch.compile(self.model) if compile_network else self.model
        self.lessons, self.output = lessons, output
        self.window_plan = window
        self.window: LatentWindow | None = None

    @property
    def pictures_per_step(self) -> int:
        return self.window_plan.batch

    def identity(self) -> dict[str, Any]:
        taught: dict[str, Any] = {"taught": True} if self.lessons.teacher else {}
        if self.lessons.emphasis != 1.0:  # each as before there was a choice
            taught["emphasis"] = self.lessons.emphasis
        return {"stage": self.name, "pages": source_record(self.pages),
                "window": asdict(self.window_plan), **taught}  # fmt: skip

    def frozen(self) -> dict[str, Tensor]:
        return self.lessons.frozen()

    def begin(self, step: int) -> None:
        self.window = LatentWindow(
            self.pages,
            self.window_plan,
            self.rows,
            device=self.device,
            workers=self.place.workers,
            first_step=step,
        )

    def rows(self, group: PageGroup) -> dict[str, Tensor]:
        """What the window keeps: the pages themselves, their facts, and, at each place that the
        network tells of, what the teacher sees, (G, C, n, n), and how much it counts, (G, n, n)."""
        images = group.images.to(self.device)
        rows = {"images": images, "facts": group.facts.to(self.device)}
        if self.lessons.teacher is not None:
            with self.place.autocast():
                found = self.lessons.seen(images)
            found |= self.lessons.counts(group.things.to(self.device))
            side = self.model.places_aside
            rows |= {name: F.adaptive_avg_pool2d(t.float(), side) for name, t in found.items()}
        return rows

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The facts' cross-entropy, mean over the readouts, and the error of what is seen."""
        self.window.advance(step)
        batch = self.window.batch(step)
        with self.place.autocast():
            logits = self._trained(batch["images"])
        losses = {name: fact_loss(values, batch["facts"]) for name, values in logits.items()}
        loss = torch.stack(list(losses.values())).mean()
        if self.lessons.teacher is not None:
            counts = batch["emphasis"].flatten(1) if "emphasis" in batch else None
            features = batch["seen"].flatten(2).transpose(1, 2)
            losses["seen"] = untold(self.model.seen, features, counts)
            loss = loss + SIGHT_WEIGHT * losses["seen"]
        return loss, losses

    def finish(self) -> list[Path]:
        """Write the network in half precision, and its accuracy on held-out pages as JSON.

        Raises TrainingFolderError.
        """
        paths = [folder / self.model.file for folder in (self.place.folder, self.output) if folder]
        for path in paths:
            write_weights(half(self.model.result()), path)
        found = accuracy(self.model, range(self.held_out), self.pages.sizes)
        report = self.place.folder / f"{self.name}-accuracy.json"
        rounded = {name: {"right": round(s, 4), "of": n} for name, (s, n) in found.items()}
        with writing(f"The file {report.name}"):
            report.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
        return [*paths, report]
