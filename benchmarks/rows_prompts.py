"""Rows about image prompts: what two of them add to a step, and the maps of structure controls."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks import peer
from benchmarks.measure import Row, Waits, interleave, ratio_with_interval, require_equal
from benchmarks.rows_image import (
    PROMPT,
    RESULTS,
    ROOT,
    checkpoint_file,
    finish_task,
    running_queue,
    saved_picture,
)
from benchmarks.rows_network import _inputs, _our_call, _our_model, _their_call
from benchmarks.sizes import GIB, Options, available_bytes, fitting, name_of
from tests.support.tiny_checkpoint import SDXL, TINY, FamilySizes, unet_shapes
from tests.support.tiny_ip_adapter import (
    SDXL_WIDTHS,
    filled,
    layer_shapes,
    plain_shapes,
    plus_shapes,
    vision_shapes,
    write_negative,
)

TOKENS, FEATURES, WEIGHT, TO_THE_END = 4, 1024, 1.0, 1.1


def _prompt(adapter: dict, pictures: torch.Tensor, text: int) -> tuple:
    """(keys and values of a picture and of none, stop, weight), as `patch_model` takes them."""
    from extras.ip_adapter import IPAdapterModel

    model = IPAdapterModel(
        adapter,
        plus=False,
        cross_attention_dim=text,
        clip_embeddings_dim=FEATURES,
        clip_extra_context_tokens=TOKENS,
    )
    seen = tuple(model.ip_layers(model.image_proj_model(one[None])) for one in pictures)
    return seen, TO_THE_END, WEIGHT


@torch.inference_mode()
def image_prompts(options: Options) -> Row:
    """Two pictures through plain adapters, both halves of guidance: what they add to a step.

    Outputs are compared in the decoupled mode, which is diffusers' own; ours is timed in that one
    and in the default one, which is the row's figure. Neither side encodes a picture here;
    diffusers projects and casts at each step.
    """
    from extras.ip_adapter import patch_model
    from ldm_patched.modules.model_patcher import ModelPatcher

    sizes, dtype = fitting(options, 24 * GIB), torch.float32  # with two adapters of 1.4 GB
    side = 16 if options.quick else 32
    weights = peer.draw_weights(unet_shapes(sizes), dtype)
    model = _our_model(weights, dtype)
    network = model.diffusion_model.eval()
    widths = _widths(network.config)
    adapters = [
        {
            "image_proj": filled(plain_shapes(TOKENS, FEATURES, sizes.context), seed),
            "ip_adapter": filled(layer_shapes(widths, sizes.context), seed + 1),
        }
        for seed in (10, 20)
    ]
    given = _inputs(sizes, side, 2, dtype)
    generator = torch.Generator().manual_seed(1)
    # of each picture what the image encoder saw, and zeros for the half without
    pictures = torch.randn(2, 1, FEATURES, generator=generator)
    pictures = torch.cat([pictures, torch.zeros_like(pictures)], dim=1)
    tasks = [_prompt(a, seen, sizes.context) for a, seen in zip(adapters, pictures, strict=True)]

    def ours(mode: str) -> Callable[[], torch.Tensor]:
        patched = patch_model(ModelPatcher(model), tasks, mode=mode)
        patches = patched.model_options["transformer_options"] | {"cond_or_uncond": [0, 1]}
        return _our_call(network, given, patches)

    prompted = peer.unet(sizes, weights, dtype)
    prompted._load_ip_adapter_weights(adapters)  # what its pipelines call
    theirs = _their_call(prompted, given, {"image_embeds": [seen[:, None] for seen in pictures]})
    limit = 1e-4
    error = require_equal("image_prompts", ours("decoupled")(), theirs(), limit)
    calls = {
        "ours": _our_call(network, given),
        "ours, two pictures": ours("joint"),
        "ours, two pictures decoupled": ours("decoupled"),
        "theirs": _their_call(peer.unet(sizes, weights, dtype), given),
        "theirs, two pictures": theirs,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(calls, rounds=options.rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)

    def added(name: str) -> tuple[float, float, float]:
        without = seconds[name.partition(",")[0]]
        middle, low, high = ratio_with_interval(seconds[name], without)
        return (middle - 1) * 100, (low - 1) * 100, (high - 1) * 100

    own, low, high = added("ours, two pictures")
    apart, apart_low, apart_high = added("ours, two pictures decoupled")
    other, their_low, their_high = added("theirs, two pictures")
    between = (
        f"ours {low:.1f}..{high:.1f} %, decoupled {apart:.1f} ({apart_low:.1f}..{apart_high:.1f}) "
        f"%, theirs {their_low:.1f}..{their_high:.1f} %"
    )
    return Row(
        name="image_prompts",
        setup=f"{name_of(sizes)}, {side}x{side} latents, batch 2, {str(dtype)[6:]}, one thread",
        ours=own,
        theirs=other,
        error=error,
        unit="%",
        target="<= 6 %, half of theirs",
        note=between,
        samples=seconds,
    )


def image_prompt_task(options: Options) -> Row:
    """What an image prompt costs a whole task at 1024², through the queue and the real worker.

    Random weights under the names and in the shapes of the real files: SDXL, ViT-H, a "plus"
    adapter as torch.save wrote it, and the negative tokens. The note has the first use beside it,
    which loads the adapter's files and looks at the picture. Raises Waits without the memory.
    """
    from modules.gallery.inputs import InputStore
    from modules.spec.image_prompt import ImagePrompt
    from modules.spec.task_spec import TaskSpec

    sizes = TINY if options.quick else SDXL
    if sizes is SDXL and available_bytes() < 20 * GIB:
        raise Waits("it needs 20 GiB of free memory")
    side, steps = (64, 2) if options.quick else (1024, 4)
    path = _real_names(sizes)
    spec = TaskSpec(
        prompt=PROMPT, checkpoint=path.name, image_count=1, seed=0, width=side, height=side,
        steps=steps, cfg_scale=4.0, sampler="euler", scheduler="normal",
    )  # fmt: skip
    with running_queue(path) as (pool, store, settings):
        encoded = cv2.imencode(".png", _picture(512))[1].tobytes()
        seen = ImagePrompt(image=InputStore(settings.inputs_path).add(encoded).image)
        specs = {"without": spec, "with": spec.model_copy(update={"image_prompts": (seen,)})}
        painted = {}

        def paint(name: str) -> float:
            start = time.perf_counter()
            task = finish_task(pool, specs[name])
            seconds = time.perf_counter() - start
            painted[name] = saved_picture(settings.output_path, store.images(task)[0].path)
            return seconds

        paint("without")  # loads the checkpoint and encodes the texts
        first = paint("with")
        once = painted["with"]
        seconds = {name: [] for name in specs}
        for _ in range(2):
            for name, taken in seconds.items():
                taken.append(paint(name))
    require_equal("image_prompt_task", painted["with"], once, 0.0)
    if torch.equal(painted["with"], painted["without"]):
        raise RuntimeError("image_prompt_task: the picture did not count.")
    with_it, without = (statistics.median(seconds[name]) for name in ("with", "without"))
    return Row(
        name="image_prompt_task",
        setup=f"{name_of(sizes)}, ViT-H, plus adapter, {side}x{side}, {steps} steps",
        ours=100.0 * (with_it / without - 1.0),
        unit="%",
        note=f"with {with_it:.1f} s, at first {first:.1f} s, without {without:.1f} s",
        samples=seconds,
    )


def _real_names(sizes: FamilySizes) -> Path:
    """A models folder with what an image prompt needs, as users have it; returns the checkpoint."""
    models = RESULTS / f"models-{name_of(sizes)}"
    vision, adapters = models / "clip_vision", models / "ipadapter"
    for folder in (models / "checkpoints", vision, adapters):
        folder.mkdir(parents=True, exist_ok=True)
    path = models / "checkpoints" / "sd_xl_base_1.0.safetensors"
    if not path.exists():
        width, layers, features = (1280, 32, 1024) if sizes is SDXL else (64, 2, 48)
        tower = filled(vision_shapes(width, layers, features), 1, torch.float16)
        save_file(tower, vision / "clip_vision_vit_h.safetensors")
        write_negative(adapters / "fooocus_ip_negative.safetensors", 16, sizes.context)
        widths = SDXL_WIDTHS
        if sizes is not SDXL:
            weights = peer.draw_weights(unet_shapes(sizes), torch.float32)
            widths = _widths(_our_model(weights, torch.float32).diffusion_model.config)
        parts = {
            "image_proj": filled(plus_shapes(width, 4, 16, width, sizes.context), 2, torch.float16),
            "ip_adapter": filled(layer_shapes(widths, sizes.context), 3, torch.float16),
        }
        family = "plus_sdxl_vit-h" if sizes is SDXL else name_of(sizes)
        torch.save(parts, adapters / f"ip-adapter-{family}.bin")
        path.hardlink_to(checkpoint_file(sizes))  # last: it says that all are there
    return path


def _widths(config: Any) -> list[int]:
    """Of the keys and values of each place where texts are attended to, in the files' order."""
    from extras.ip_attention import own_sites, site_width

    return [site_width(config, site) for site in own_sites(config)]


def _picture(side: int) -> np.ndarray:
    """Soft shapes and some grain, uint8 (side, side, 3)."""
    draw = np.random.default_rng(0)
    shapes = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    smooth = cv2.resize(shapes, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + draw.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def map_seconds(name: str, rounds: int) -> list[float]:
    """Processor seconds of each round of one function of extras.preprocessors at 1024²."""
    from extras import preprocessors

    cv2.setNumThreads(1)
    make, picture, seconds = getattr(preprocessors, name), _picture(1024), []
    for _ in range(2 + rounds):
        start = time.process_time()
        make(picture)
        seconds.append(time.process_time() - start)
    return seconds[2:]


def _map_row(name: str, function: str, target: str, rounds: int) -> Row:
    """In an interpreter of its own, since numpy's threads are counted when it is imported."""
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    code = f"from benchmarks.rows_prompts import map_seconds as m; print(m('{function}', {rounds}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | one, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = json.loads(done.stdout)
    return Row(
        name=name,
        setup="1024x1024, one thread, its processor time",
        ours=statistics.median(seconds),
        target=target,
        samples={"seconds": seconds},
    )


def pyracanny(options: Options) -> Row:
    """The pyramid's edges."""
    return _map_row("pyracanny", "canny_pyramid", "<= 0.4 s", options.rounds)


def cpds(options: Options) -> Row:
    """Contrast-preserving grey and its distance."""
    return _map_row("cpds", "cpds", "<= 0.3 s", options.rounds)
