"""A worker without an engine that paints small landscapes, for tests that look at the page.

It obeys like the real one: loading, steps, previews, pictures saved one by one, Stop and Skip.
The prompt steers it, as words in any order:
    quick         5 ms a step instead of 40
    loads         show the loading of a model for two seconds, with its progress
    holds-loading stay in the middle of that until RunningPage.release()
    waits         do nothing until stopped
    holds         the same in the middle of the first picture
    holds-second  and of the second one
    fails         raise a ModelMissing
    fails-late    raise it after the first picture
    crashes       kill this process at the second step, in the first attempt only
"""

import hashlib
import io
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from modules.library.catalog import Catalog
from modules.settings.config import Settings
from modules.settings.performance import find_mode, load_modes
from modules.spec.errors import Cancelled, ModelMissing, Skipped, StudioError
from modules.spec.flags import TaskState
from modules.spec.resolving import resolve_spec
from modules.spec.sizes import SDXL, Size
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Loading, Preview, Progress
from modules.tasks.worker_session import ClaimedTask, WorkerSession

MISSING = (
    "The checkpoint 'castle.safetensors' is not in models/checkpoints. "
    "Put the file there and press Refresh, or choose another one."
)
PREVIEW_SECONDS = 0.25  # no more often than the real one


def worker_main(connection: Connection, settings: Settings, worker_id: str) -> None:
    """The front door, as a pool calls it."""
    session = WorkerSession(connection, settings.database_path, worker_id, beat_seconds=0.2)
    for task in session.tasks():
        try:
            paint(task, settings)
            task.finish(TaskState.DONE)
        except Cancelled:
            task.finish(TaskState.STOPPED)
        except StudioError as error:
            task.finish(TaskState.FAILED, error.code, str(error))


def paint(task: ClaimedTask, settings: Settings) -> None:
    """Every picture of the task that is not there yet."""
    words = set(task.spec.prompt.split())
    mode = find_mode(load_modes(settings.root), task.spec.performance)
    name = next((file.name for file in Catalog(settings).checkpoints()), "landscape")
    task.set_resolved(resolve_spec(task.spec, mode, checkpoint=name, sizes=SDXL))
    if "loads" in words:
        load(task, settings, holds="holds-loading" in words)
    if "fails" in words:
        raise ModelMissing(MISSING)
    while "waits" in words:
        task.cancel.check()
        time.sleep(0.01)
    for index in range(task.spec.image_count):
        if index in task.done_indices:
            continue
        try:
            picture = steps(task, settings, words, index)
        except Skipped:
            task.commit_skip(index)
        else:
            save(task, settings, picture, index)
            if "fails-late" in words:
                raise ModelMissing(MISSING)
        task.cancel.next_image()


def load(task: ClaimedTask, settings: Settings, *, holds: bool) -> None:
    """Two seconds of loading."""
    for part in range(21):
        task.cancel.check()
        if part == 11 and holds:
            hold(task, settings)
        message = "Loading landscape.safetensors (6.9 GB)"
        task.emit(Loading(message=message, fraction=part / 20))
        time.sleep(0.1)


def release_file(settings: Settings, task_id: str) -> Path:
    """What a task that holds waits for."""
    return settings.temporary_path / f"{task_id}.release"


def hold(task: ClaimedTask, settings: Settings) -> None:
    """Wait until the task is released, once for each hold."""
    file = release_file(settings, task.id)
    while not file.exists():
        task.cancel.check()
        time.sleep(0.01)
    file.unlink()


def steps(task: ClaimedTask, settings: Settings, words: set[str], index: int) -> np.ndarray:
    """Noise that becomes the landscape; pixels (H, W, 3)."""
    spec, pause = task.spec, 0.005 if "quick" in words else 0.04
    holds = ("holds", "holds-second")[index] in words if index < 2 else False
    final = landscape(size_of(spec), spec.seed_of(index))
    small = final[::8, ::8].astype(np.float32)
    noise = np.random.default_rng(spec.seed_of(index)).normal(128, 70, small.shape)
    next_preview = 0.0
    for step in range(1, spec.steps + 1):
        task.cancel.check()
        if step == 2 and "crashes" in words and task.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        if step == spec.steps // 2 and holds:
            hold(task, settings)
        left = (spec.steps - step) + (spec.image_count - index - 1) * spec.steps
        task.emit(
            Progress(
                image=index + 1,
                image_count=spec.image_count,
                step=step,
                steps=spec.steps,
                seconds_left=left * pause,
            )
        )
        if time.monotonic() < next_preview:
            continue
        next_preview = time.monotonic() + PREVIEW_SECONDS
        share = step / spec.steps
        mixed = np.clip(small * share + noise * (1 - share), 0, 255).astype(np.uint8)
        target = io.BytesIO()
        Image.fromarray(mixed).save(target, "JPEG", quality=80)
        height, width = small.shape[:2]
        task.emit(Preview(jpeg=target.getvalue(), width=width, height=height))
    return final


def size_of(spec: TaskSpec) -> Size:
    """The size that the spec asks for."""
    if spec.width and spec.height:
        return Size(spec.width, spec.height)
    return SDXL.choose(spec.aspect_ratio)


def landscape(size: Size, seed: int) -> np.ndarray:
    """Hills before an evening sky, another one for each seed; (H, W, 3) uint8."""
    width, height = size
    random = np.random.default_rng(seed)
    # The sky is smooth: a quarter of its rows and columns is enough, and a tenth of the work.
    y = np.linspace(0, 1, max(height // 4, 1))[:, None]
    x = np.linspace(0, 1, max(width // 4, 1))
    warm = np.array([random.uniform(200, 250), random.uniform(120, 170), random.uniform(70, 140)])
    cold = np.array([random.uniform(20, 60), random.uniform(40, 80), random.uniform(90, 150)])
    sky = cold + (warm - cold) * np.clip(y * 1.6, 0, 1)
    ratio = width / height
    across, down = random.uniform(0.2, 0.8), random.uniform(0.2, 0.42)
    sun = np.hypot((x - across) * ratio, y - down)
    small = np.clip(sky[:, None] + np.exp(-sun * 9)[..., None] * 70, 0, 255).astype(np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    pen, radius = ImageDraw.Draw(picture), 0.045 * height
    pen.circle((across * width, down * height), radius, fill=(255, 236, 200))
    x = np.linspace(0, 1, width)
    for layer in range(5):
        waves = sum(
            np.sin(x * random.uniform(3, 12) * (1 + k) + random.uniform(0, 6)) / (3 + 4 * k)
            for k in range(4)
        )
        edge = 0.46 + layer * 0.1 + 0.09 * waves / (1 + layer * 0.3)
        shade = cold * (0.95 - layer * 0.17) + warm * (0.34 - layer * 0.075)
        outline = [(-1, height), *enumerate((edge * height).tolist()), (width, height)]
        pen.polygon(outline, fill=tuple(np.clip(shade, 0, 255).astype(int).tolist()))
    return np.asarray(picture)


def save(task: ClaimedTask, settings: Settings, pixels: np.ndarray, index: int) -> None:
    """One PNG in the output folder, told to the store."""
    name = f"{task.id}_{index}_{task.attempt}.png"
    settings.output_path.mkdir(parents=True, exist_ok=True)
    path = settings.output_path / name
    Image.fromarray(pixels).save(path, compress_level=1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    height, width = pixels.shape[:2]
    task.commit_image(index, name, digest, width, height, task.spec.seed_of(index))
