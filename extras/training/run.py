"""One run of a training stage: steps, checkpoints, a log, a progress line, pictures on the way.

A stage says what a step is; the run decides when to save, to draw a grid, and to stop. Everything
random in a step is seeded by (run seed, step), so a run that is interrupted and resumed ends with
the very weights of one that was not.
"""

import json
import math
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from extras.training import checkpoints
from extras.training.errors import TrainingDiverged, TrainingFolderError
from extras.training.interrupts import on_interrupt
from extras.training.optimizers import Optimizer
from extras.training.writing import writing
from ldm_patched.ldm.modules.ema import LitEma


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How long, how fast and where. steps: in all. minutes: pause after so many (0: no limit).

    within: be done after so many minutes (0: when all steps are done), however many steps that
    are: the learning rate then falls by the clock, so that no two such runs end alike.
    """

    folder: Path
    steps: int = 20_000
    minutes: float = 0.0
    within: float = 0.0
    seed: int = 0
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    """One of OPTIMIZERS."""
    warmup: int = 200
    cooldown: float = 0.25
    """The last part of a run in which the learning rate falls to nothing."""
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.9995
    checkpoint_minutes: float = 4.0
    grid_minutes: float = 5.0
    log_seconds: float = 10.0
    resume: bool = False


class Stage:
    """What is trained. Subclasses fill in the four methods below; `model` holds all weights."""

    name = "stage"
    model: nn.Module

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar loss with its graph, numbers to log) of a step."""
        raise NotImplementedError

    def grid(self) -> np.ndarray | None:
        """A uint8 (H, W, 3) picture that shows what the model can do now, if it can be seen."""
        return None

    def finish(self) -> list[Path]:
        """Write what the stage is for, from the weights now in `model`; the files' paths."""
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Called once before the first step of this session."""

    @property
    def pictures_per_step(self) -> int:
        """Training samples of a step, for the log."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be resumed by it."""
        return {"stage": self.name}

    def frozen(self) -> dict[str, Tensor]:
        """Weights from elsewhere that stay as they are, which it must share as well."""
        return {}


class Run:
    """Trains a stage according to a plan."""

    def __init__(self, stage: Stage, plan: RunPlan, out: TextIO | None = None) -> None:
        """out: where progress is written; None is the standard error stream."""
        self.stage, self.plan = stage, plan
        self.out = sys.stderr if out is None else out
        self.folder = plan.folder / stage.name
        self.named = {n: p for n, p in stage.model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(
            self.named,
            kind=plan.optimizer,
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
        )
        self.ema = LitEma(stage.model, plan.ema_decay)
        self.ema.to(next(iter(self.named.values())).device)
        self.step = 0
        self._stopping = False
        self._line_is_open = False  # the progress line, on a terminal
        self._started = time.monotonic()
        self._first_bad = torch.full((), math.inf, device=next(iter(self.named.values())).device)
        self._sums: dict[str, Tensor] = {}
        self._summed = 0

    # --- Saving and loading ---------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model/{name}": parameter for name, parameter in self.named.items()}
        found |= {f"ema/{name}": buffer for name, buffer in self.ema.named_buffers()}
        state = self.optimizer.tensors()
        return found | {f"optimizer/{name}": value for name, value in state.items()}

    def save(self) -> Path:
        """Write a checkpoint of this step. Raises TrainingFolderError, TrainingDiverged."""
        self._check_finite()
        return checkpoints.save_checkpoint(self.folder, self.step, self._tensors(), self._record())

    def _record(self) -> dict[str, Any]:
        frozen = {"frozen": self._frozen} if self._frozen else {}
        kind = self.plan.optimizer
        other = {} if kind == "adamw" else {"optimizer": kind}  # once there was no choice
        return {"identity": self.stage.identity(), "seed": self.plan.seed, **other, **frozen}

    @cached_property
    def _frozen(self) -> str:
        weights = self.stage.frozen()
        return checkpoints.digest_of(weights) if weights else ""

    def prepare(self) -> None:
        """Make the folder and, to resume, load its last checkpoint.

        Raises TrainingFolderError, CheckpointError.
        """
        checkpoints.prepare_folder(self.folder)
        found = checkpoints.list_checkpoints(self.folder)
        if self.plan.resume and found:
            self._load(found[-1])
        elif found:
            raise TrainingFolderError(
                f"The folder {self.plan.folder.name!r} already holds a run of the stage "
                f"{self.stage.name!r}: add --resume to go on with it, or give another --folder."
            )
        checkpoints.drop_unfinished(self.folder)

    def _load(self, place: Path) -> None:
        step, tensors, record = checkpoints.load_checkpoint(place)
        wanted = json.loads(json.dumps(self._record()))
        shapes = {n: t.shape for n, t in tensors.items() if n.startswith("model/")}
        own = {f"model/{name}": parameter.shape for name, parameter in self.named.items()}
        checkpoints.check_record(place, record, wanted)
        if shapes != own:
            raise checkpoints.other_settings(place, record)
        by_part: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            by_part[part][rest] = tensor
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(by_part["model"][name])
        self.ema.load_state_dict(by_part["ema"])
        self.optimizer.restore(by_part["optimizer"])
        self.step = step
        self._say(f"Resumed at step {step}.")

    # --- Steps ----------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        """Rises over the warm-up, stays, and falls in a straight line over the cool-down."""
        plan = self.plan
        left = (plan.steps - step) / max(1.0, plan.cooldown * plan.steps)
        if plan.within:
            left = min(left, (1.0 - self._elapsed() / plan.within) / max(1e-9, plan.cooldown))
        return plan.learning_rate * min(1.0, (step + 1) / max(1, plan.warmup), max(left, 0.0))

    def _elapsed(self) -> float:
        """Minutes since training began."""
        return (time.monotonic() - self._started) / 60

    def train_step(self) -> None:
        """One step of the optimiser and the moving average."""
        torch.manual_seed(step_seed(self.plan.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        loss, numbers = self.stage.compute_loss(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.plan.clip)
        # Reading it is put off, since it waits for the device.
        finite = torch.isfinite(loss.detach() + norm)
        self._first_bad = self._first_bad.where(finite, self._first_bad.clamp(max=self.step))
        self.optimizer.step()
        self.ema(self.stage.model)
        for name, value in {"loss": loss, "grad_norm": norm, **numbers}.items():
            value = value.detach().float()
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._summed += 1
        self.step += 1

    def _check_finite(self) -> None:
        first_bad = float(self._first_bad)
        if math.isinf(first_bad):
            return
        found = checkpoints.list_checkpoints(self.folder)
        remedy = "There is no checkpoint yet: begin again with a smaller --learning-rate."
        if found:
            last = f"{self.plan.folder.name}/{self.stage.name}/{found[-1].name}"
            remedy = (
                f"The last good checkpoint is {last}: go on from it with --resume and a smaller "
                "--learning-rate."
            )
        raise TrainingDiverged(
            f"The loss became not-a-number at step {first_bad:.0f}, so training stopped. {remedy}"
        )

    def _interrupted(self, first: int) -> None:
        """What the first of ENDINGS does; before step `first` there may be much to wait for, and
        there is nothing to save."""
        if self.step == first:
            raise KeyboardInterrupt
        self._stopping = True
        with suppress(RuntimeError):  # a line that is being written cannot be interrupted
            self._end_line()
            self._say("Ending the step at hand; Ctrl+C again stops at once.")

    def train(self) -> bool:
        """Train until the steps, the minutes or the user's patience end; True if all is done.
        A checkpoint of where it stopped is written. Ctrl+C, a shutdown or a terminal that is
        closed ends the step at hand first.

        Raises TrainingFolderError, CheckpointError, TrainingDiverged, and KeyboardInterrupt.
        """
        self.prepare()
        self.stage.begin(self.step)
        started = saved = drawn = logged = self._started = time.monotonic()
        first = mark = self.step
        done = self.step >= self.plan.steps
        with on_interrupt(lambda: self._interrupted(first)), ExitStack() as ends:
            ends.callback(self._end_line)
            while not done and not self._stopping:
                self.train_step()
                now = time.monotonic()
                done = self.step >= self.plan.steps or 0 < self.plan.within <= self._elapsed()
                if now - logged >= self.plan.log_seconds or done:
                    self._check_finite()
                    speed = (self.step - mark) / max(1e-9, now - logged)
                    left = (self.plan.steps - self.step) * (now - started) / (self.step - first)
                    for limit in filter(None, (self.plan.minutes, self.plan.within)):
                        left = min(left, max(0.0, started + limit * 60 - now))
                    self._log(speed, left)
                    logged, mark = now, self.step
                if now - saved >= self.plan.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
                if self.plan.grid_minutes and now - drawn >= self.plan.grid_minutes * 60:
                    self.write_grid()
                    drawn = time.monotonic()
                if self.plan.minutes and now - started >= self.plan.minutes * 60:
                    break
        if self._stopping:
            self._say("Interrupted; saving where it stopped.")
        self._check_finite()
        if self.step > first:
            self.save()
        return done

    def finish(self) -> list[Path]:
        """Write a last grid and the stage's result from the averaged weights."""
        self.write_grid()
        parameters = list(self.named.values())
        self.ema.store(parameters)
        try:
            self.ema.copy_to(self.stage.model)
            return self.stage.finish()
        finally:
            self.ema.restore(parameters)

    # --- Telling --------------------------------------------------------------------------

    def write_grid(self) -> None:
        """Save a picture of the averaged model's work as `grid-<step>.png`.

        Raises TrainingFolderError.
        """
        parameters = list(self.named.values())
        self.ema.store(parameters)
        try:
            self.ema.copy_to(self.stage.model)
            image = self.stage.grid()
        finally:
            self.ema.restore(parameters)
        if image is not None:
            path = self.folder / f"grid-{self.step:08d}.png"
            with writing(f"The picture {path.name}"):
                Image.fromarray(image).save(path)

    def _log(self, speed: float, left: float) -> None:
        means = {name: float(value) / self._summed for name, value in self._sums.items()}
        self._sums, self._summed = {}, 0
        pictures = speed * self.stage.pictures_per_step
        entry = {
            "step": self.step,
            **{name: round(value, 6) for name, value in means.items()},
            "learning_rate": self.learning_rate(self.step - 1),
            "pictures_per_second": round(pictures, 1),
            "time": round(time.time(), 1),
        }
        path = self.folder / "log.jsonl"
        with writing(f"The log {path.name}"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        done = self.step / self.plan.steps
        if self.plan.within:
            done = min(1.0, max(done, self._elapsed() / self.plan.within))
        bar = "█" * round(20 * done) + "·" * (20 - round(20 * done))
        text = (
            f"{self.stage.name} {bar} {self.step}/{self.plan.steps}  loss {means['loss']:.4f}  "
            f"{pictures:.0f} pictures/s  {duration(left)} left"
        )
        self._line_is_open = self.out.isatty()
        if self._line_is_open:
            self._say("\r" + text.ljust(96), "")
        else:
            self._say(text)

    def _end_line(self) -> None:
        """What is said next begins on a line of its own."""
        if self._line_is_open:
            self._line_is_open = False
            self._say("")

    def _say(self, text: str, end: str = "\n") -> None:
        with suppress(OSError):  # a terminal that was closed must not keep a run from saving
            self.out.write(text + end)
            self.out.flush()


def step_seed(seed: int, step: int) -> int:
    """What PyTorch is seeded with at a step of a run: 63 mixed bits, of which its generator for
    the CPU takes the low 32."""
    return Random(f"step {seed} {step}").getrandbits(63)


def duration(seconds: float) -> str:
    """Such as 1:05:09 or 12:34."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
