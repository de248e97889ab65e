"""Performance modes: a step count and all that a way to few steps needs, under one name.

Nothing here is applied; the resolve stage does that, and the page shows what it will do.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from modules.spec import limits
from modules.spec.flags import Sampler, Scheduler
from modules.spec.task_spec import LoraWeight, TaskSpec

# What distilled models are run with: they know guidance by heart, and any more of it harms.
FEW_STEPS: Mapping[str, Any] = {
    "sharpness": 0.0,
    "cfg_scale": 1.0,
    "adaptive_cfg": 1.0,
    "adm_positive": 1.0,
    "adm_negative": 1.0,
    "adm_end": 0.0,
    "refiner": "",
    "refiner_switch": 1.0,
}
_DECIDED = frozenset({*FEW_STEPS, "sampler", "scheduler", "rescale_cfg"})


class ModeLora(BaseModel):
    """The LoRA that a mode works with: its file in models/loras and where it may be fetched."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str = Field(min_length=1, max_length=255)
    weight: LoraWeight = 1.0
    url: str = Field("", pattern=r"^(https://[^\s]+)?$", max_length=2_000)
    also: tuple[str, ...] = ()  # other names of the same file
    builtin: str | None = None
    """The file in its place on the built-in model, which a LoRA of SDXL does not fit; "" for none.
    None: this one is for any checkpoint."""

    def names_for(self, builtin: bool) -> tuple[str, ...]:
        """What the file may be called, in any folder. builtin: whether the built-in model paints;
        no names where there is none for it."""
        if not builtin or self.builtin is None:
            return (self.file, *self.also)
        return (self.builtin,) if self.builtin else ()


class PerformanceMode(BaseModel):
    """One mode. `forced` holds values of TaskSpec fields that it decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[\w.+-]{1,64}$")
    title: str = Field(min_length=1, max_length=64)
    description: str = Field("", max_length=500)
    steps: int = Field(ge=1, le=limits.STEPS_MAX)
    steps_upscale: int = Field(ge=1, le=limits.STEPS_MAX)
    lora: ModeLora | None = None
    forced: dict[str, Any] = Field(default_factory=dict)

    def decided(self, spec: TaskSpec) -> dict[str, Any]:
        """The fields of `spec` that this mode sets, with their values."""
        return {**self.forced, "steps": spec.overwrite_step or self.steps}

    def applied(self, spec: TaskSpec) -> TaskSpec:
        """`spec` as it is painted in this mode."""
        return spec.model_copy(update=self.decided(spec))


def make_mode(values: Mapping[str, Any]) -> PerformanceMode:
    """A mode from outside data, `forced` brought to TaskSpec's own types.

    Raises pydantic's ValidationError, ValueError for a field that a mode may not decide, and
    SpecError for a value that TaskSpec does not take.
    """
    forced = values.get("forced", {})
    if not isinstance(forced, Mapping):
        raise ValueError("'forced' must be an object in braces { }")
    for key in forced:
        if key not in _DECIDED:
            raise ValueError(f"{str(key)[:80]!r} is nothing that a mode decides; remove it")
    spec = TaskSpec.from_mapping(forced)
    typed = {name: getattr(spec, name) for name in forced}
    return PerformanceMode.model_validate({**values, "forced": typed})


def _few(sampler: Sampler, scheduler: Scheduler) -> dict[str, Any]:
    return {**FEW_STEPS, "sampler": sampler, "scheduler": scheduler}


_HUB = "https://huggingface.co"

MODES: tuple[PerformanceMode, ...] = (
    PerformanceMode(
        name="quality",
        title="Quality",
        description="Twice the usual steps, for a last bit of detail.",
        steps=60,
        steps_upscale=36,
    ),
    PerformanceMode(
        name="speed",
        title="Speed",
        description="The usual number of steps; right for most pictures.",
        steps=30,
        steps_upscale=18,
    ),
    PerformanceMode(
        name="extreme_speed",
        title="Extreme Speed",
        description="Eight steps with the LCM LoRA; softer pictures, without a negative prompt.",
        steps=8,
        steps_upscale=8,
        lora=ModeLora(
            file="sdxl_lcm_lora.safetensors",
            url=f"{_HUB}/latent-consistency/lcm-lora-sdxl/resolve/main/pytorch_lora_weights.safetensors",
            also=("lcm-lora-sdxl.safetensors", "lcm_lora_sdxl.safetensors"),
            builtin="easel-mini-lcm.safetensors",
        ),
        forced=_few(Sampler.LCM, Scheduler.LCM),
    ),
    PerformanceMode(
        name="lightning",
        title="Lightning",
        description="Four steps with the SDXL-Lightning LoRA, without a negative prompt.",
        steps=4,
        steps_upscale=4,
        lora=ModeLora(
            file="sdxl_lightning_4step_lora.safetensors",
            url=f"{_HUB}/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors",
            builtin="",
        ),
        forced=_few(Sampler.EULER, Scheduler.SGM_UNIFORM),
    ),
    PerformanceMode(
        name="hyper_sd",
        title="Hyper-SD",
        description="Four steps with the Hyper-SD LoRA, without a negative prompt.",
        steps=4,
        steps_upscale=4,
        lora=ModeLora(
            file="sdxl_hyper_sd_4step_lora.safetensors",
            weight=0.8,
            url=f"{_HUB}/ByteDance/Hyper-SD/resolve/main/Hyper-SDXL-4steps-lora.safetensors",
            also=("Hyper-SDXL-4steps-lora.safetensors",),
            builtin="",
        ),
        forced=_few(Sampler.DPMPP_SDE_GPU, Scheduler.KARRAS),
    ),
    PerformanceMode(
        name="turbo",
        title="Turbo",
        description="For checkpoints that are distilled themselves, such as SDXL Turbo: four "
        "steps, no LoRA, without a negative prompt.",
        steps=4,
        steps_upscale=4,
        forced=_few(Sampler.EULER_ANCESTRAL, Scheduler.TURBO),
    ),
)
