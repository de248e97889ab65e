"""The fields of a request about picture quality and speed; TaskSpec has them beside the words."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modules.spec import limits
from modules.spec.flags import RefinerMethod

FREEU_SENTENCE = "takes b1 and b2 from 0 to 2, then s1 and s2 from 0 to 4, or nothing at all"

StepCount = Annotated[int, Field(ge=1, le=limits.STEPS_MAX)]


class QualityFields(BaseModel):
    """How the network's predictions become a picture, and what a performance mode decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    performance: str = Field(
        "",
        max_length=64,
        title="Performance",
        description="A mode that sets the steps and what belongs to them, such as speed or "
        "lightning; empty uses the settings as they are.",
    )
    overwrite_step: StepCount | None = Field(
        None,
        title="Steps in place of the mode's",
        description="So many steps whatever the performance mode says; empty leaves it to the "
        "mode.",
    )
    sharpness: float = Field(
        2.0,
        ge=0.0,
        le=30.0,
        title="Sharpness",
        description="How crisp edges and textures become; 2 is usual, 0 is off, above 10 looks "
        "rough.",
    )
    adaptive_cfg: float = Field(
        7.0,
        ge=1.0,
        le=limits.CFG_MAX,
        title="Mild start of guidance",
        description="Guidance above this begins at it and grows from step to step, so that "
        "colours do not burn out; 7 is usual.",
    )
    adm_positive: float = Field(
        1.5,
        ge=0.1,
        le=3.0,
        title="Size told to the prompt",
        description="The network is told of an original so many times larger, for finer detail; "
        "1.5 is usual, 1 is the truth.",
    )
    adm_negative: float = Field(
        0.8,
        ge=0.1,
        le=3.0,
        title="Size told to the negative prompt",
        description="The same for the negative prompt; 0.8 leads away from the look of small "
        "pictures, 1 is the truth.",
    )
    adm_end: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        title="Sizes are told until",
        description="The share of the sampling after which both prompts are told the true size; "
        "0.3 is usual, 0 is off.",
    )
    freeu: tuple[float, ...] = Field(
        (),
        title="FreeU",
        description="Four numbers b1, b2, s1, s2 for more contrast of forms, such as 1.01, 1.02, "
        "0.99, 0.95; empty is off.",
    )
    guidance_start: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Guidance from",
        description="The share of the sampling after which the negative prompt counts; above 0 "
        "pictures vary more.",
    )
    guidance_end: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        title="Guidance until",
        description="The share of the sampling up to which the negative prompt counts; below 1 "
        "is faster, and colours stay milder.",
    )
    rescale_cfg: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Rescaled guidance",
        description="How much of the contrast that guidance adds is taken back; 0 is none, 0.7 "
        "suits v-prediction models.",
    )

    @field_validator("freeu", mode="before")
    @classmethod
    def _numbers_may_be_in_words(cls, numbers: Any) -> Any:
        if isinstance(numbers, str):  # of a command line
            try:
                return tuple(float(part) for part in numbers.split(",") if part.strip())
            except ValueError:
                raise ValueError(FREEU_SENTENCE) from None
        return tuple(numbers) if isinstance(numbers, list) else numbers

    @field_validator("freeu")
    @classmethod
    def _four_numbers_or_none(cls, numbers: tuple[float, ...]) -> tuple[float, ...]:
        bounds = (2.0, 2.0, 4.0, 4.0)
        if numbers and (
            len(numbers) != 4
            or not all(0.0 <= n <= most for n, most in zip(numbers, bounds, strict=True))
        ):
            raise ValueError(FREEU_SENTENCE)
        return numbers

    refiner: str = Field(
        "",
        max_length=255,
        title="Refiner",
        description="A checkpoint that paints the last steps, such as the SDXL refiner; empty is "
        "none.",
    )
    refiner_switch: float = Field(
        0.8,
        ge=0.1,
        le=1.0,
        title="Refiner from",
        description="The share of the steps after which the refiner takes over; 0.8 suits the "
        "SDXL refiner, 1 leaves it out.",
    )
    refiner_method: RefinerMethod = Field(
        RefinerMethod.JOINT,
        title="Refiner takes over",
        description="joint goes on in the same run, separate begins a new one, vae paints over "
        "the finished picture.",
    )
    overwrite_switch: StepCount | None = Field(
        None,
        title="Refiner from step",
        description="The number of steps before the refiner takes over; empty takes the share.",
    )

    @model_validator(mode="after")
    def _guidance_has_a_while(self) -> Self:
        if self.guidance_start >= self.guidance_end:
            raise ValueError("guidance must begin before it ends; lower its start or raise its end")
        return self


# What a request of a program without these fields meant: none of it was there.
BEFORE_QUALITY = {
    "sharpness": 0.0,
    "adaptive_cfg": limits.CFG_MAX,
    "adm_positive": 1.0,
    "adm_negative": 1.0,
    "adm_end": 0.0,
}


def with_quality(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a stored request; where they are older than these fields, nothing is added."""
    return dict(values) if "sharpness" in values else {**BEFORE_QUALITY, **values}
