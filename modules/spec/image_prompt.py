"""Image prompts: pictures that steer a picture, each in its own way."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modules.spec import limits

ImageHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a stored input, as `POST /api/inputs` gives it."""

Threshold = Annotated[int, Field(ge=1, le=255)]


class ImagePromptType(StrEnum):
    """What of the picture counts. Each member carries its usual stop and weight."""

    stop: float
    weight: float

    IMAGE_PROMPT = "image_prompt", 0.5, 0.6
    CANNY = "canny", 0.5, 1.0
    CPDS = "cpds", 0.5, 1.0
    FACE = "face", 0.9, 0.75
    DEPTH = "depth", 0.5, 1.0
    LINEART = "lineart", 0.5, 1.0

    def __new__(cls, value: str, stop: float, weight: float) -> "ImagePromptType":
        member = str.__new__(cls, value)
        member._value_ = value
        member.stop, member.weight = stop, weight
        return member

    @property
    def is_structure(self) -> bool:
        """Whether the picture's layout counts, through a ControlNet, not what it shows."""
        return self not in (ImagePromptType.IMAGE_PROMPT, ImagePromptType.FACE)


class ImagePromptMode(StrEnum):
    """How the content of a picture meets the words; the names are the engine's."""

    JOINT = "joint"
    DECOUPLED = "decoupled"


class ImagePrompt(BaseModel):
    """One picture that steers the painting."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image: ImageHash = Field(
        title="Picture", description="The SHA-256 of a stored picture, as /api/inputs gives it."
    )
    type: ImagePromptType = Field(
        ImagePromptType.IMAGE_PROMPT,
        title="Type",
        description="What counts: its content and look, its edges (canny), its structure (cpds), "
        "a face, its depth or its lines.",
    )
    start: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        title="Start at",
        description="The part of the painting before it counts; 0 is from the beginning.",
    )
    stop: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        title="Stop at",
        description="The part of the painting in which it counts; empty takes the type's usual.",
    )
    weight: float | None = Field(
        None,
        ge=0.0,
        le=limits.IMAGE_PROMPT_WEIGHT_MAX,
        title="Weight",
        description="How strongly it counts; 0 not at all, empty takes the type's usual.",
    )
    mode: ImagePromptMode = Field(
        ImagePromptMode.JOINT,
        title="Mode",
        description="Of an image prompt or a face: joint weighs it together with the words, "
        "decoupled adds it to what they give, as the IP-Adapter paper does.",
    )
    skip_preprocess: bool = Field(
        False,
        title="Take it as it is",
        description="Finds no edges, structure or face in the picture: it is a map or a face "
        "already.",
    )
    face: int = Field(
        1,
        ge=1,
        le=limits.FACES_MAX,
        title="Which face",
        description="Of several in the picture; 1 is the largest.",
    )
    region: ImageHash | None = Field(
        None,
        title="Region",
        description="Of an image prompt or a face: a stored picture, white where it counts and "
        "black where not; empty is everywhere.",
    )
    canny_low: Threshold = Field(
        64, title="Lower threshold", description="Of canny; lower finds more edges."
    )
    canny_high: Threshold = Field(
        128, title="Upper threshold", description="Of canny; lower finds more edges."
    )

    @model_validator(mode="after")
    def _structure_has_neither_region_nor_mode(self) -> Self:
        if not self.type.is_structure:
            return self
        if self.region is not None:
            raise ValueError(
                "has a region, which is for the types image_prompt and face; leave it empty"
            )
        if self.mode is not ImagePromptMode.JOINT:
            raise ValueError(
                f"has the mode {self.mode}, which is for the types image_prompt and face; leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _starts_before_it_stops(self) -> Self:
        if self.start > self.stops_at:
            raise ValueError(
                f"starts at {self.start:g}, after its stop at {self.stops_at:g}; let it start "
                "earlier or stop later"
            )
        return self

    @property
    def stops_at(self) -> float:
        """The stop in force."""
        return self.type.stop if self.stop is None else self.stop

    @property
    def weighs(self) -> float:
        """The weight in force."""
        return self.type.weight if self.weight is None else self.weight

    @property
    def counts(self) -> bool:
        """Whether it does anything at all."""
        return self.weighs > 0.0 and self.stops_at > self.start
