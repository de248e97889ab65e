"""ADM guidance: the sizes that SDXL is told differ between the prompts for a while.

The positive prompt is told of a larger original picture, the negative one of a smaller one, so
that guidance leads away from what small pictures look like.
"""

from collections.abc import Sequence
from typing import Any

from ldm_patched.modules.model_base import AdmGuidance


def with_adm(conditions: Sequence[Sequence[Any]], guidance: AdmGuidance | None) -> list[list[Any]]:
    """Conditions `[[context, options], …]` whose size conditioning follows `guidance`."""
    if guidance is None:
        return [list(condition) for condition in conditions]
    return [[context, {**options, "adm_guidance": guidance}] for context, options in conditions]
