"""TaskSpec: what the user asked for, frozen and validated; the one schema of a request.

The page's components, the HTTP API, the command line, presets and the metadata in a picture all
take their names, ranges, defaults and help texts from the fields here. A spec is never changed:
what is worked out from it (sizes, the seed of each picture) is a ResolvedSpec.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from modules.spec import limits
from modules.spec.errors import LimitError, SpecError
from modules.spec.flags import OutputFormat, RefinerMethod, Sampler, Scheduler
from modules.spec.image_prompt import ImagePrompt
from modules.spec.quality import BEFORE_QUALITY, QualityFields

SCHEMA_VERSION = 1

Side = Annotated[int, Field(ge=limits.SIDE_MIN, le=limits.SIDE_MAX, multiple_of=limits.SIDE_STEP)]


ClipSkip = Annotated[int, Field(ge=1, le=limits.CLIP_SKIP_MAX)]
LoraWeight = Annotated[
    float, Field(ge=-limits.LORA_LIST_WEIGHT_MAX, le=limits.LORA_LIST_WEIGHT_MAX)
]


def spelt(text: str) -> str:
    """`text` with ? for what UTF-8 cannot spell: halves of characters, which JSON and command lines
    can bring, but no file or database takes."""
    return text.encode("utf-8", "replace").decode()


def _listed_name(name: str) -> str:
    """`name` as it is, if it can be one of a model list: no path, no drive, no way out."""
    parts = name.split("/")
    if (
        "\\" in name
        or "\x00" in name
        or ":" in name
        or (name and any(part in ("", ".", "..") for part in parts))
    ):
        raise ValueError("must be a name from the list; choose one there")
    return name


class LoraSpec(BaseModel):
    """One LoRA of the list: a file of models/loras and how strongly it counts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(
        min_length=1,
        max_length=255,
        title="Name",
        description="The file's name in the list, with or without its ending.",
    )
    weight: LoraWeight = Field(
        1.0, title="Weight", description="How strongly it counts; 1 as it was made, 0 not at all."
    )
    clip_weight: LoraWeight | None = Field(
        None,
        title="Weight for words",
        description="How strongly it changes the reading of the prompt; empty takes the weight.",
    )
    enabled: bool = Field(True, title="On", description="Off keeps it in the list unused.")

    @field_validator("name")
    @classmethod
    def _name_is_no_path_trick(cls, name: str) -> str:
        return _listed_name(name)


class TaskSpec(QualityFields):
    """One request: so many pictures of one prompt with one group of settings."""

    prompt: str = Field("", title="Prompt", description="What the picture shows, in your words.")
    negative_prompt: str = Field(
        "", title="Negative prompt", description="What the picture should not show."
    )
    styles: tuple[str, ...] = Field(
        (),
        max_length=limits.STYLES_PER_TASK,
        title="Styles",
        description="Named looks that the prompt is set into, in this order; random draws one.",
    )
    expand_prompt: bool = Field(
        False,
        title="Prompt expansion",
        description="Adds fitting words on light, detail and composition to the prompt; the seed "
        "decides which.",
    )
    wildcards_in_order: bool = Field(
        False,
        title="Word lists in order",
        description="Takes the lines of __lists__ and {choices} one by one, picture by picture, "
        "instead of by chance.",
    )
    preset: str = Field(
        "",
        max_length=64,
        title="Preset",
        description="The named group of settings that this request started from.",
    )
    checkpoint: str = Field(
        "",
        max_length=255,
        title="Checkpoint",
        description="The model file that paints; empty takes the first one there is.",
    )
    vae: str = Field(
        "",
        max_length=255,
        title="VAE",
        description="A file of models/vae that turns latents into the picture; empty takes the "
        "checkpoint's own.",
    )
    clip_skip: ClipSkip | None = Field(
        None,
        title="CLIP skip",
        description="Which layer of the text encoder is read, counted from its end; empty takes "
        "the one that the checkpoint was trained with, 2 suits many drawn styles.",
    )
    loras: tuple[LoraSpec, ...] = Field(
        (),
        max_length=limits.LORAS_PER_IMAGE,
        title="LoRAs",
        description="Small files that teach the checkpoint a style or a subject, with weights; "
        "those named in the prompt come after them.",
    )
    image_prompts: tuple[ImagePrompt, ...] = Field(
        (),
        max_length=limits.IMAGE_PROMPTS_PER_TASK,
        title="Image prompts",
        description="Pictures that steer the painting: by what they show, their edges, structure "
        "or a face.",
    )
    control_softness: float = Field(
        0.25,
        ge=0.0,
        le=1.0,
        title="Softness of controls",
        description="How much freer the fine details are of edge and structure pictures than the "
        "layout.",
    )
    image_count: int = Field(
        2,
        ge=1,
        le=limits.IMAGES_PER_TASK,
        title="Pictures",
        description="How many pictures to paint, each with the next seed.",
    )
    first_index: int = Field(
        0,
        ge=0,
        le=limits.FIRST_INDEX_MAX,
        title="First picture",
        description="Where the arrays [[…]] and the word lists in order begin, counted from 0; it "
        "paints a later picture of a batch again by itself.",
    )
    aspect_ratio: str = Field(
        "",
        max_length=11,
        title="Aspect ratio",
        description="Width to height, such as 3:2; the model's own area gives the size. "
        "Empty takes the model's default.",
    )
    width: Side | None = Field(
        None, title="Width", description="Width in pixels, a multiple of 8; overrides the ratio."
    )
    height: Side | None = Field(
        None, title="Height", description="Height in pixels, a multiple of 8; overrides the ratio."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=limits.SEED_MAX,
        title="Seed",
        description="The same seed and settings give the same picture; empty draws a new one.",
    )
    steps: int = Field(
        30,
        ge=1,
        le=limits.STEPS_MAX,
        title="Steps",
        description="How many times the picture is refined; 20 to 40 is usual.",
    )
    cfg_scale: float = Field(
        4.0,
        ge=1.0,
        le=limits.CFG_MAX,
        title="Guidance",
        description="How strictly the picture follows the prompt; 3 to 8 is usual, 1 is fastest.",
    )
    sampler: Sampler = Field(
        Sampler.DPMPP_2M_SDE, title="Sampler", description="The method that removes the noise."
    )
    scheduler: Scheduler = Field(
        Scheduler.KARRAS, title="Scheduler", description="How the noise falls from step to step."
    )
    output_format: OutputFormat = Field(
        OutputFormat.PNG,
        title="Format",
        description="File format; PNG is lossless, JPEG and WebP are smaller.",
    )

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text_has_a_bound(cls, text: str) -> str:
        if len(text) > limits.PROMPT_CHARACTERS:
            raise ValueError(
                f"holds {len(text):,} characters, more than the {limits.PROMPT_CHARACTERS:,} "
                "that are read; shorten it"
            )
        return spelt(text.replace("\x00", ""))

    @field_validator("styles", mode="before")
    @classmethod
    def _styles_may_be_a_list_in_words(cls, styles: Any) -> Any:
        if isinstance(styles, str):  # of a command line, or of another program's metadata
            return tuple(name for part in styles.split(",") if (name := part.strip()))
        # Behind this validator even JSON's only kind of list must be a tuple to pass as strict.
        return tuple(styles) if isinstance(styles, list) else styles

    @field_validator("styles")
    @classmethod
    def _style_names_are_short(cls, styles: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 0 < len(name) <= limits.STYLE_NAME_CHARACTERS for name in styles):
            raise ValueError("must be names from the list; choose them there")
        return tuple(dict.fromkeys(spelt(name.replace("\x00", "")) for name in styles))

    @field_validator("checkpoint", "vae", "preset", "performance", "refiner")
    @classmethod
    def _name_is_no_path_trick(cls, name: str) -> str:
        return _listed_name(name)

    @field_validator("aspect_ratio")
    @classmethod
    def _ratio_reads_as_numbers(cls, ratio: str) -> str:
        if not ratio:
            return ratio
        match = re.fullmatch(r"([1-9]\d{0,3})\s*[:x×*]\s*([1-9]\d{0,3})", ratio, re.ASCII)
        if not match:
            raise ValueError("must be width:height, such as 3:2")
        width, height = int(match[1]), int(match[2])
        if not 1 / 4 <= width / height <= 4:
            raise ValueError("must lie between 1:4 and 4:1")
        return f"{width}:{height}"

    @model_validator(mode="after")
    def _size_is_whole(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both width and height, or neither")
        if self.width and self.height and self.width * self.height > limits.PIXELS_MAX:
            raise ValueError(
                f"{self.width} × {self.height} is more than the "
                f"{limits.PIXELS_MAX // 1024**2} megapixels that fit; choose a smaller size"
            )
        return self

    @model_validator(mode="after")
    def _every_picture_has_an_index(self) -> Self:
        most = limits.FIRST_INDEX_MAX + 1 - self.image_count
        if self.first_index > most:
            raise ValueError(
                f"First picture must be at most {most} for {self.image_count} pictures"
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Validate outside data.

        Raises SpecError (or LimitError for a text over its cap) with one sentence that names the
        field by its title and says what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _as_sentence(cls, error) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Validate JSON from another program, which must say what it means: "8" is no number.

        Raises like from_mapping.
        """
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise _as_sentence(cls, error) from None

    def with_fixed_seed(self) -> Self:
        """The same spec, with a seed drawn now if it had none: a retry gives the same pixels."""
        if self.seed is not None:
            return self
        return self.model_copy(update={"seed": secrets.randbelow(2**32)})

    def seed_of(self, index: int) -> int:
        """Seed of picture `index` (from 0): consecutive, wrapping at SEED_MAX."""
        if self.seed is None:
            raise SpecError("The seed is not fixed yet; call with_fixed_seed first.", "seed")
        return (self.seed + index) % (limits.SEED_MAX + 1)

    def of_picture(self, index: int) -> Self:
        """The request that paints picture `index` (from 0) of this one alone, words and all."""
        own = {"seed": self.seed_of(index), "first_index": self.first_index + index}
        return self.model_copy(update=own | {"image_count": 1})

    def to_json(self) -> str:
        """JSON text of every field; `from_mapping(json.loads(text))` gives the equal spec."""
        return self.model_dump_json()


def _as_sentence(model: type[BaseModel], error: ValidationError) -> SpecError | LimitError:
    """The first complaint of pydantic as one sentence in the page's words."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    info = model.model_fields.get(name)
    title = (info.title if info else None) or (f"Field {name!r}" if name else "The request")
    context = first.get("ctx", {})
    kind = first["type"]
    if kind == "json_invalid":
        return SpecError("The request is not valid JSON; correct it and send it again.")
    if not first["loc"] and kind.endswith("_type"):
        return SpecError("The request must be one JSON object of settings.")
    if name and info is None:
        return SpecError(f"{title[:80]} is not known; remove it.", name[:80])
    if name in _LISTS and len(first["loc"]) > 1:
        title = _of_entry(name, first["loc"][1:])
        if kind == "extra_forbidden":
            return SpecError(f"{title} is not known; remove it.", name)
    if kind == "value_error":
        reason = str(context["error"])
        sentence = reason if not name else f"{title} {reason}"
        sentence = sentence[:1].upper() + sentence[1:] + "."
        error_type = LimitError if "characters" in reason else SpecError
        return error_type(sentence, name)
    allowed = {
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
        "multiple_of": "must be a multiple of {multiple_of}",
        "enum": "must be one of {expected}",
        "string_too_long": "must be at most {max_length} characters long",
        "string_too_short": "must not be empty",
        "missing": "must not be empty",
        "too_long": "must be at most {max_length} in number",
        "finite_number": "must be a finite number",
        "string_pattern_mismatch": "must be the SHA-256 of a stored picture",
    }.get(kind)
    if allowed is None:
        wanted = {
            "int": "a whole number",
            "float": "a number",
            "string": "text",
            "bool": "true or false",
            "tuple": "a list",
        }
        allowed = f"must be {wanted.get(kind.split('_')[0], 'of the right type')}"
    return SpecError(f"{title} {allowed.format(**context)}.", name)


_LISTS: dict[str, tuple[str, type[BaseModel]]] = {
    "loras": ("LoRA", LoraSpec),
    "image_prompts": ("image prompt", ImagePrompt),
}


def _of_entry(name: str, place: tuple[int | str, ...]) -> str:
    """What a complaint about an entry of a list is about, as the beginning of a sentence."""
    words, model = _LISTS[name]
    number = f"{words} {int(place[0]) + 1}"
    if len(place) < 2:
        return number[:1].upper() + number[1:]
    info = model.model_fields.get(str(place[1]))
    return f"{(info.title if info else None) or f'Field {str(place[1])[:80]!r}'} of {number}"


class ResolvedSpec(BaseModel):
    """What a TaskSpec came to once the model was known. Stored beside the spec, never instead."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str
    width: int
    height: int
    seeds: tuple[int, ...]
    steps: int
    cfg_scale: float
    sampler: Sampler
    scheduler: Scheduler
    performance: str = ""
    performance_lora: LoraSpec | None = None  # that of the mode, by its name in the list
    sharpness: float = BEFORE_QUALITY["sharpness"]
    adaptive_cfg: float = BEFORE_QUALITY["adaptive_cfg"]
    adm_positive: float = BEFORE_QUALITY["adm_positive"]
    adm_negative: float = BEFORE_QUALITY["adm_negative"]
    adm_end: float = BEFORE_QUALITY["adm_end"]
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    rescale_cfg: float = 0.0
    refiner: str = ""
    refiner_step: int | None = None  # its first one, counted from 0; None without a refiner
    refiner_method: RefinerMethod = RefinerMethod.JOINT
