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
    Sampler.HEUN: "Heun",
    Sampler.HEUNPP2: "HeunPP2",
    Sampler.DPM_2: "DPM2",
    Sampler.DPM_2_ANCESTRAL: "DPM2 a",
    Sampler.LMS: "LMS",
    Sampler.DPM_FAST: "DPM fast",
    Sampler.DPM_ADAPTIVE: "DPM adaptive",
    Sampler.DPMPP_2S_ANCESTRAL: "DPM++ 2S a",
    Sampler.DPMPP_SDE: "DPM++ SDE",
    Sampler.DPMPP_SDE_GPU: "DPM++ SDE",
    Sampler.DPMPP_2M: "DPM++ 2M",
    Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.DPMPP_2M_SDE_GPU: "DPM++ 2M SDE",
    Sampler.DPMPP_3M_SDE: "DPM++ 3M SDE",
    Sampler.DPMPP_3M_SDE_GPU: "DPM++ 3M SDE",
    Sampler.DDPM: "DDPM",
    Sampler.LCM: "LCM",
    Sampler.TCD: "TCD",
    Sampler.RESTART: "Restart",
    Sampler.DDIM: "DDIM",
    Sampler.UNI_PC: "UniPC",
    Sampler.UNI_PC_BH2: "UniPC bh2",
    Sampler.DEIS: "DEIS",
    Sampler.IPNDM: "IPNDM",
    Sampler.RES_MULTISTEP: "Res Multistep",
}
SCHEDULER_NAMES: Mapping[Scheduler, str] = {
    Scheduler.NORMAL: "Normal",
    Scheduler.KARRAS: "Karras",
    Scheduler.EXPONENTIAL: "Exponential",
    Scheduler.SGM_UNIFORM: "SGM Uniform",
    Scheduler.SIMPLE: "Simple",
    Scheduler.DDIM_UNIFORM: "DDIM",
    Scheduler.LCM: "LCM",
    Scheduler.TURBO: "Turbo",
    Scheduler.ALIGN_YOUR_STEPS: "Align Your Steps",
    Scheduler.TCD: "TCD",
    Scheduler.EDM_PLAYGROUND_V2_5: "EDM Playground v2.5",
    Scheduler.BETA: "Beta",
    Scheduler.KL_OPTIMAL: "KL Optimal",
    Scheduler.LINEAR_QUADRATIC: "Linear Quadratic",
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
