"""From what a request came to, to what the engine is told about guidance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modules.spec.task_spec import ResolvedSpec

if TYPE_CHECKING:
    from extras.guidance.attach import Guidance
    from ldm_patched.modules.model_base import AdmGuidance

Conditions = Sequence[Sequence[Any]]


def guidance_of(resolved: ResolvedSpec) -> "Guidance":
    """How the two predictions become one."""
    from extras.guidance.attach import Guidance

    mimic = resolved.adaptive_cfg if resolved.adaptive_cfg < resolved.cfg_scale else None
    return Guidance(resolved.sharpness, mimic, resolved.rescale_cfg)


def adm_of(resolved: ResolvedSpec) -> "AdmGuidance | None":
    """Which sizes the network is told; None where it is told the true one all the time."""
    from ldm_patched.modules.model_base import AdmGuidance

    factors = resolved.adm_positive, resolved.adm_negative
    if resolved.adm_end == 0.0 or factors == (1.0, 1.0):
        return None
    return AdmGuidance(*factors, resolved.adm_end)


def guided_conditions(
    resolved: ResolvedSpec, positive: Conditions, negative: Conditions
) -> tuple[Conditions, Conditions]:
    """The conditions with their sizes, the negative ones within the guidance interval."""
    from extras.guidance.adm import with_adm
    from extras.guidance.interval import within

    adm = adm_of(resolved)
    interval = within(negative, resolved.guidance_start, resolved.guidance_end)
    return with_adm(positive, adm), with_adm(interval, adm)
