"""The recipe in a picture: everything needed to paint it again, as JSON with a schema number.

Written from an allow-list of fields (the request, what it came to, the picture's index and seed,
the model's name), so that no path, login or other setting can slip in. Read as plain JSON into
validated models; nothing in a picture is ever executed.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modules.gallery.metadata import a1111, carriers
from modules.prompt.plan import PicturePrompt
from modules.spec.errors import SpecError
from modules.spec.flags import OutputFormat
from modules.spec.limits import METADATA_BYTES
from modules.spec.quality import with_quality
from modules.spec.task_spec import SCHEMA_VERSION, ResolvedSpec, TaskSpec
from modules.spec.version import VERSION


class NoRecipe(SpecError):
    """The picture is sound but holds no recipe of Easel."""


class ImagePart(BaseModel):
    """Which picture of the task this is."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(ge=0)
    seed: int = Field(ge=0)


class ModelPart(BaseModel):
    """The model that painted: its name in the list, and the start of its SHA-256 if known."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str = ""


class LoraPart(BaseModel):
    """A LoRA that was in force: its name in the list, and the start of its SHA-256 if known."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str = ""


class Recipe(BaseModel):
    """What one picture was made from. `spec` is the request as the user gave it, seed fixed;
    `prompt` is what its words came to for this picture, once lists and styles were filled in."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: int = Field(SCHEMA_VERSION, alias="schema")
    spec: TaskSpec
    resolved: ResolvedSpec
    image: ImagePart
    model: ModelPart
    prompt: PicturePrompt | None = None
    loras: tuple[LoraPart, ...] = ()
    version: str = VERSION

    @classmethod
    def of(
        cls,
        spec: TaskSpec,
        resolved: ResolvedSpec,
        index: int,
        *,
        prompt: PicturePrompt | None = None,
        model_sha256: str = "",
        lora_sha256: Mapping[str, str] | None = None,
    ) -> "Recipe":
        """The recipe of picture `index` (from 0) of a task. lora_sha256: by name, where known."""
        hashes = lora_sha256 or {}
        uses = [] if prompt is None else [use.file for use in prompt.loras]
        if resolved.performance_lora is not None:
            uses.append(resolved.performance_lora.name)
        return cls(
            schema=SCHEMA_VERSION,
            spec=spec,
            resolved=resolved,
            image=ImagePart(index=index, seed=resolved.seeds[index]),
            model=ModelPart(name=resolved.checkpoint, sha256=model_sha256[:10]),
            prompt=prompt,
            loras=tuple(
                LoraPart(name=name, sha256=hashes.get(name, "")[:10])
                for name in dict.fromkeys(uses)
            ),
        )

    def alone(self) -> TaskSpec:
        """The request that paints this one picture of the task again, by the same model."""
        spec = self.spec.of_picture(self.image.index)
        return spec.model_copy(update={"checkpoint": spec.checkpoint or self.model.name})

    def to_json(self) -> str:
        """The JSON text that goes into the picture; `recipe_of_json` reads it back."""
        return self.model_dump_json(by_alias=True)

    def parameters(self) -> str:
        """The A1111-style text of the same picture."""
        words = self.prompt
        return a1111.parameters_text(
            self.spec.prompt if words is None else words.positive_text,
            self.spec.negative_prompt if words is None else words.negative_text,
            self.resolved,
            seed=self.image.seed,
            version=self.version,
            model_sha256=self.model.sha256,
            lora_sha256={lora.name: lora.sha256 for lora in self.loras if lora.sha256},
        )

    def save_options(self, output_format: OutputFormat) -> dict[str, Any]:
        """Keyword arguments for Pillow's `Image.save` that carry this recipe; without its `prompt`,
        which follows from `spec`, where all of it is more than the format holds."""
        return carriers.save_options(
            output_format,
            recipe=self.to_json(),
            parameters=self.parameters(),
            shorter=self.model_copy(update={"prompt": None}).to_json(),
        )


def read_full_recipe(source: str | os.PathLike[str] | BinaryIO) -> Recipe:
    """The recipe of a picture, equal to the one it was saved with.

    Raises NoRecipe when the picture holds none, SpecError when the file is no picture or its
    recipe is damaged or of a newer Easel.
    """
    opened = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    try:
        text = carriers.read_recipe_text(opened)
    except carriers.BROKEN_FILE:
        raise SpecError(
            "The file cannot be read as a PNG, JPEG or WebP picture; choose another one."
        ) from None
    if text is None:
        raise NoRecipe(
            "The picture holds no Easel recipe; choose one that was saved with its settings."
        )
    return recipe_of_json(text)


def recipe_of_json(text: str) -> Recipe:
    """Validate the JSON text of a recipe. Raises SpecError with one sentence."""
    if len(text.encode(errors="replace")) > METADATA_BYTES:
        raise SpecError(
            f"The picture's recipe is longer than the {METADATA_BYTES // 1024} KiB that are read; "
            "choose a picture that Easel saved."
        )
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(values, dict) or not isinstance(values.get("spec"), dict):
        raise _damaged()
    if not isinstance(values.get("schema"), int):
        raise _damaged()
    if values["schema"] > SCHEMA_VERSION:
        raise SpecError("The picture was saved by a newer Easel; update Easel to read its recipe.")
    values["spec"] = TaskSpec.from_mapping(with_quality(_known(values["spec"], TaskSpec)))
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        raise _damaged() from None


def _known(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The entries that `model` has a field for: an older Easel may have had more."""
    return {name: value for name, value in values.items() if name in model.model_fields}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _damaged() -> SpecError:
    return SpecError("The recipe in the picture is damaged; choose a picture that Easel saved.")
