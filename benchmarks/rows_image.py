"""Rows from a checkpoint on the disk to a picture: text to image, memory of loading, the queue."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks import peer
from benchmarks.measure import (
    NotEquivalent,
    Row,
    compare,
    interleave,
    require_bf16_units,
    require_equal,
)
from benchmarks.sizes import GIB, HALF, Options, fitting, name_of
from tests.support.tiny_checkpoint import SDXL, TINY, FamilySizes, checkpoint_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ldm_patched.modules.model_management import DevicePolicy

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PROMPT, NEGATIVE = "a red fox in the snow, early morning light", "blurry, low quality"
FORECAST_FROM = 5  # pictures to learn from


def checkpoint_file(sizes: FamilySizes, dtype: torch.dtype = torch.float16) -> Path:
    """A random checkpoint of these sizes; kept between runs, for writing it takes a while."""
    from safetensors.torch import save_file

    name = {id(SDXL): "sdxl", id(HALF): "half", id(TINY): "tiny"}[id(sizes)]
    folder = RESULTS / "models" / "checkpoints"
    path = folder / f"{name}-{str(dtype)[6:]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        save_file(peer.draw_weights(checkpoint_shapes(sizes), dtype), str(partial))
        partial.replace(path)
    return path


class Engine:
    """A checkpoint in our engine, used without the program around it."""

    def __init__(self, path: Path, policy: "DevicePolicy | None" = None) -> None:
        """policy: None means what the program would choose here."""
        from ldm_patched.modules import sd
        from ldm_patched.modules.model_management import DevicePolicy
        from modules.patch import patch_all

        patch_all()
        self.policy = policy or DevicePolicy.detect()
        loaded = sd.load_checkpoint_guess_config(str(path), policy=self.policy)
        self.unet, self.clip, self.vae = loaded[:3]

    def encode(self, text: str) -> list[Any]:
        cond, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
        return [[cond, {"pooled_output": pooled}]]

    def paint(
        self, noise: torch.Tensor, steps: int, cfg: float, sigmas: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Euler from unit noise (1, 4, h, w) to pixels (1, 8h, 8w, 3) in 0..1."""
        from ldm_patched.modules.sample import sample

        latents = sample(
            self.unet, noise, steps, cfg, "euler", "normal", self.encode(PROMPT),
            self.encode(NEGATIVE), torch.zeros_like(noise), sigmas=sigmas, seed=0,
        )  # fmt: skip
        return self.vae.decode(latents)


def both_sides(
    ours: Engine, pipe: Any, *, side: int, steps: int, cfg: float
) -> "tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]":
    """Calls that paint the same picture, prompt to pixels (1, 8 * side, 8 * side, 3)."""
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(steps)
    sigmas = pipe.scheduler.sigmas.clone()
    start = noise * (sigmas[0] / pipe.scheduler.init_noise_sigma)  # both begin with equal latents
    tokens = [ours.clip.tokenize(text) for text in (PROMPT, NEGATIVE)]

    def their_call() -> torch.Tensor:
        cond, pooled = peer.encode(pipe, tokens[0])
        uncond, negative_pooled = peer.encode(pipe, tokens[1])
        pictures = pipe(
            prompt_embeds=cond,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=uncond,
            negative_pooled_prompt_embeds=negative_pooled,
            height=side * 8,
            width=side * 8,
            num_inference_steps=steps,
            guidance_scale=cfg,
            latents=start.clone(),
            output_type="np",
        ).images
        return torch.from_numpy(np.ascontiguousarray(pictures))

    return lambda: ours.paint(noise, steps, cfg, sigmas), their_call


@torch.inference_mode()
def text_to_image(options: Options) -> Row:
    """Prompt to pixels with what each side does unless told otherwise."""
    from safetensors.torch import load_file

    require_bf16_units(options.quick)
    sizes = fitting(options, 30 * GIB)
    side, steps, cfg = (16 if options.quick else 64), (2 if options.quick else 8), 5.0
    path = checkpoint_file(sizes)
    ours, pipe = Engine(path), peer.pipeline(sizes, load_file(str(path)), torch.float32)
    our_call, their_call = both_sides(ours, pipe, side=side, steps=steps, cfg=cfg)
    full = ours.policy.unet_dtype is torch.float32
    error = require_equal("text_to_image", our_call(), their_call(), 1e-3 if full else 0.15)
    return compare(
        "text_to_image",
        f"{name_of(sizes)}, {side * 8}x{side * 8}, {steps} Euler steps, cfg {cfg:g}, defaults: "
        f"ours {str(ours.policy.unet_dtype)[6:]}, theirs float32",
        our_call,
        {"eager": their_call},
        rounds=options.few_rounds,
        error=error,
        target=">= 4x",
        note="quick run: no statement about speed" if options.quick else "",
    )


def load_memory(options: Options) -> Row:
    """How far a fresh process's memory rises while it loads a checkpoint, over the model's size."""
    sizes = fitting(options, 20 * GIB)
    path = checkpoint_file(sizes)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child_load", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Loading failed: {done.stderr.strip()[-1500:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Row(
        name="load_memory",
        setup=f"{name_of(sizes)}, {path.stat().st_size / 1e9:.2f} GB file, {found['policy']}",
        ours=found["peak"] / found["model_bytes"],
        target="<= 1.15x",
        unit="x",
        note=f"model {found['model_bytes'] / 1e9:.2f} GB, peak {found['peak'] / 1e9:.2f} GB, of it "
        f"not backed by the file {found['peak_anonymous'] / 1e9:.2f} GB, "
        f"{found['seconds']:.1f} s",
        samples={"bytes": [found["peak"], found["peak_anonymous"], found["model_bytes"]]},
    )


def around_sampler(options: Options) -> Row:
    """A 20-step task through the queue against the same work done by the engine alone.

    The same picture, then: guidance beyond the usual formula is off, for it is the sampler's work
    and has a row of its own.
    """
    from ldm_patched.modules.sample import prepare_noise
    from modules.spec.task_spec import TaskSpec

    sizes = TINY if options.quick else HALF
    side, steps, cfg = (16 if options.quick else 64), 20, 5.0
    path = checkpoint_file(sizes)
    engine = Engine(path)
    noise = prepare_noise(torch.zeros(1, 4, side, side), [0])
    spec = TaskSpec(
        prompt=PROMPT, negative_prompt=NEGATIVE, checkpoint=path.name, image_count=1, seed=0,
        width=side * 8, height=side * 8, steps=steps, cfg_scale=cfg,
        sampler="euler", scheduler="normal", sharpness=0.0, adm_end=0.0,
    )  # fmt: skip
    prompts = engine.encode(PROMPT), engine.encode(NEGATIVE)
    engine.encode = lambda text: prompts[text == NEGATIVE]  # cached, as the program has them
    with running_queue(path) as (pool, store, settings):
        painted = saved_picture(settings.output_path, store.images(finish_task(pool, spec))[0].path)
        error = require_equal(
            "around_sampler", painted, engine.paint(noise, steps, cfg)[0], 1e-2
        )  # the file has 8 bits a number
        seconds = interleave(
            {
                "task": lambda: finish_task(pool, spec),
                "engine": lambda: engine.paint(noise, steps, cfg),
            },
            rounds=options.rounds,
        )
    task, alone = (statistics.median(seconds[name]) for name in ("task", "engine"))
    return Row(
        name="around_sampler",
        setup=f"{name_of(sizes)}, {side * 8}x{side * 8}, {steps} steps, previews and saving on",
        ours=100.0 * (task - alone) / task,
        target="<= 5 %",
        unit="%",
        error=error,
        note=f"task {task:.2f} s, engine alone {alone:.2f} s",
        samples=seconds,
    )


def previews(options: Options) -> Row:
    """What a live preview of 1024x1024 pixels takes, made and packed, of the time to the next.

    No more of it can be missing from the sampling, whoever does the work.
    """
    from ldm_patched.modules.latent_formats import SDXL as FORMAT
    from ldm_patched.modules.latent_preview import LatentPreviewer
    from modules.worker.progress import PREVIEW_SECONDS, LivePreview, PreviewPace

    previewer, latents = LatentPreviewer(FORMAT()), torch.randn(1, 4, 128, 128)
    sent: list[Any] = []
    seconds = []
    with ThreadPoolExecutor(1) as threads:
        for _ in range(2 + 10 * options.rounds):
            preview = LivePreview(threads, sent.append, PreviewPace())
            began = time.perf_counter()
            preview.offer(previewer, latents)
            preview.finish()
            seconds.append(time.perf_counter() - began)
    if len(sent) != len(seconds):
        raise NotEquivalent("a preview was not sent.")
    made = statistics.median(seconds[2:])
    return Row(
        name="previews",
        setup=f"1024x1024, one every {PREVIEW_SECONDS:g} s",
        ours=100.0 * made / PREVIEW_SECONDS,
        target="<= 3 %",
        unit="%",
        note=f"{1000 * made:.1f} ms each",
        samples={"preview": seconds[2:]},
    )


def forecast_error(options: Options) -> Row:
    """How far off the forecast of a picture's seconds is, once five pictures were painted.

    Steps and sizes differ from picture to picture; each is forecast from those before it.
    """
    from modules.spec.task_spec import TaskSpec
    from modules.tasks.forecast import forecast

    draw, path = random.Random(0), checkpoint_file(TINY)
    seconds: dict[str, list[float]] = {"forecast": [], "painted": []}
    with running_queue(path) as (pool, store, _):
        for number in range(7 if options.quick else 25):
            width, height = draw.choice((256, 384, 512)), draw.choice((256, 384, 512))
            spec = TaskSpec(
                prompt=PROMPT, checkpoint=path.name, image_count=1, seed=number, cfg_scale=5.0,
                width=width, height=height, steps=draw.randint(8, 40), sampler="euler",
            )  # fmt: skip
            before = store.timings()
            finish_task(pool, spec)
            painted = store.timings()[0]
            if number >= FORECAST_FROM:
                seconds["forecast"].append(forecast(before, painted.resolved))
                seconds["painted"].append(painted.seconds)
    errors = [
        100.0 * abs(told / took - 1.0)
        for told, took in zip(seconds["forecast"], seconds["painted"], strict=True)
    ]
    return Row(
        name="forecast_error",
        setup=f"{name_of(TINY)}, 8 to 40 steps, 256 to 512 pixels a side, {len(errors)} pictures",
        ours=statistics.median(errors),
        target="<= 15 %",
        unit="%",
        note=f"the largest {max(errors):.0f} %",
        samples=seconds,
    )


@contextmanager
def running_queue(checkpoint: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A pool with the real worker, its store and its settings, in a folder that ends with it."""
    from modules.settings.config import load_settings
    from modules.tasks.store import TaskStore
    from modules.tasks.worker_pool import LocalWorkerPool

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--models-path", str(checkpoint.parent.parent)]
        for name in ("output-path", "data-path"):
            arguments += [f"--{name}", os.path.join(folder, name)]
        settings = load_settings(arguments)
        settings.database_path.parent.mkdir(parents=True, exist_ok=True)
        store = TaskStore(settings.database_path)
        pool = LocalWorkerPool(settings, store)
        pool.start()
        try:
            yield pool, store, settings
        finally:
            pool.close()
            store.close()


def saved_picture(folder: Path, name: str) -> torch.Tensor:
    """(H, W, 3) in 0..1."""
    with Image.open(folder / name) as image:
        return torch.from_numpy(np.asarray(image) / 255.0)


def finish_task(pool: Any, spec: Any) -> str:
    """Queue a task and wait for its end, as a page does. Returns its id."""
    task_id, seq = pool.submit(spec), 0
    while True:
        view = pool.wait(task_id, seq, 5.0)
        if view is None:
            continue
        seq = view.seq
        if view.state.is_final:
            if view.error is not None:
                raise RuntimeError(f"The task failed: {view.error.message}")
            return task_id
