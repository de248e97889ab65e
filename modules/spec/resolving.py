"""What a request comes to, once its checkpoint, mode and sizes are known. Pure.

The worker's resolve stage stores the outcome; the server asks here too, to say how long it takes.
"""

from modules.spec.performance import PerformanceMode
from modules.spec.quality import BEFORE_QUALITY, QualityFields
from modules.spec.sizes import SDXL, Size, SizeTable
from modules.spec.task_spec import LoraSpec, ResolvedSpec, TaskSpec

_QUALITY = set(ResolvedSpec.model_fields) & set(QualityFields.model_fields)
_PLAIN_SIZES = ("adm_positive", "adm_negative", "adm_end")
STRONGER = {
    "aspect_ratio": ("width", "height"),
    "steps": ("overwrite_step",),
    "refiner_switch": ("overwrite_switch",),
}
"""Fields that win over one: whoever names that one anew must not keep them from elsewhere."""


def resolve_spec(
    asked: TaskSpec,
    mode: PerformanceMode | None,
    *,
    checkpoint: str,
    sizes: SizeTable,
    lora: str = "",
) -> ResolvedSpec:
    """`asked` in `mode`, painted by `checkpoint`, whose sizes are `sizes`.

    lora: name in the list of the mode's LoRA. A seed that is not fixed gives no seeds.
    """
    spec = asked if mode is None else mode.applied(asked)
    size = sizes.choose(spec.aspect_ratio)
    if spec.width is not None and spec.height is not None:  # these win over the ratio
        size = Size(spec.width, spec.height)
    quality = spec.model_dump(include=_QUALITY)
    if sizes.area < SDXL.area / 2:  # such a model has learned its own sizes alone
        quality |= {name: BEFORE_QUALITY[name] for name in _PLAIN_SIZES}
    seeds = () if spec.seed is None else (spec.seed_of(index) for index in range(spec.image_count))
    steps = (asked.overwrite_step or asked.steps) if mode is None else spec.steps
    refiner_step: int | None = None
    if spec.refiner:
        switch = spec.overwrite_switch or round(steps * spec.refiner_switch)
        refiner_step = switch if switch < steps else None
    if refiner_step is None:
        quality["refiner"] = ""
    weight = mode.lora.weight if mode is not None and mode.lora is not None else 0.0
    return ResolvedSpec(
        checkpoint=checkpoint,
        width=size.width,
        height=size.height,
        seeds=tuple(seeds),
        steps=steps,
        refiner_step=refiner_step,
        cfg_scale=spec.cfg_scale,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
        performance_lora=LoraSpec(name=lora, weight=weight) if lora else None,
        **quality,
    )
