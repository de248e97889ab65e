"""The `parameters` text that A1111, Civitai and most viewers read: prompt, negative, one line.

    a red house
    Negative prompt: people
    Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 4, Seed: 7, Size: 64x64, …

A value that holds a comma, a colon or a line break is quoted as JSON text.
"""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from modules.spec.flags import Sampler, Scheduler
from modules.spec.task_spec import ResolvedSpec

SAMPLER_NAMES: Mapping[Sampler, str] = {
    Sampler.EULER: "Euler",
    Sampler.EULER_ANCESTRAL: "Euler a",
    Sampler.DPMPP_2M: "DPM++ 2M",
    Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.DPMPP_SDE: "DPM++ SDE",
    Sampler.LCM: "LCM",
}
SCHEDULER_NAMES: Mapping[Scheduler, str] = {
    Scheduler.NORMAL: "Normal",
    Scheduler.KARRAS: "Karras",
    Scheduler.SIMPLE: "Simple",
    Scheduler.SGM_UNIFORM: "SGM Uniform",
    Scheduler.EXPONENTIAL: "Exponential",
}


def parameters_text(
    prompt: str,
    negative_prompt: str,
    resolved: ResolvedSpec,
    *,
    seed: int,
    version: str,
    model_sha256: str = "",
    lora_sha256: Mapping[str, str] | None = None,
) -> str:
    """The whole text for one picture.

    seed: the picture's own. model_sha256: hex digest or its beginning; '' leaves the hash out.
    lora_sha256: the same of the LoRAs in the prompt, by their names in the list.
    """
    fields: dict[str, str] = {
        "Steps": str(resolved.steps),
        "Sampler": SAMPLER_NAMES.get(resolved.sampler, resolved.sampler.value),
        "Schedule type": SCHEDULER_NAMES.get(resolved.scheduler, resolved.scheduler.value),
        "CFG scale": f"{resolved.cfg_scale:g}",
        "Seed": str(seed),
        "Size": f"{resolved.width}x{resolved.height}",
    }
    if model_sha256:
        fields["Model hash"] = model_sha256[:10]
    fields["Model"] = PurePosixPath(resolved.checkpoint).stem
    if lora_sha256:
        pairs = (f"{PurePosixPath(name).stem}: {sha[:10]}" for name, sha in lora_sha256.items())
        fields["Lora hashes"] = ", ".join(pairs)
    fields["Version"] = f"Easel {version}"
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{name}: {quoted(value)}" for name, value in fields.items()))
    return "\n".join(lines)


def quoted(value: str) -> str:
    """`value` as it may stand in the last line."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n\r]", value) else value
