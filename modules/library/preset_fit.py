"""A preset with what is there: what it names and nobody has is left out, and said."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.library.catalog import Catalog
from modules.settings.presets import ModelFolder, Preset, preset_named
from modules.spec.errors import ModelMissing
from modules.spec.task_spec import TaskSpec

_PAIR = frozenset({"width", "height"})  # one of them says nothing


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings of a preset that can be painted now, and a sentence on each thing left out."""

    settings: dict[str, Any]
    sentences: tuple[str, ...] = ()


def fit_preset(preset: Preset, catalog: Catalog, styles: Container[str]) -> Fitted:
    """`preset` with a checkpoint that is there, and without LoRAs, VAE and styles that are not.

    styles: those that a request may name.
    """
    settings, sentences = dict(preset.settings), []
    wanted = settings.get("checkpoint", "")
    names = {file.name for file in catalog.checkpoints()}
    if wanted and wanted not in names:
        other = next((name for name in preset.instead if name in names), "")
        settings["checkpoint"] = other
        sentences.append(_about_checkpoint(wanted, other, preset, catalog))
    loras = [entry for entry in settings.get("loras", ()) if _is_there(entry["name"], catalog)]
    missing = [entry["name"] for entry in settings.get("loras", ()) if entry not in loras]
    sentences += [_about_file(f"The LoRA {name}", name, preset) for name in missing]
    vaes = {file.name for file in catalog.files(ModelFolder.VAE)}
    if settings.get("vae") and settings["vae"] not in vaes:
        sentences.append(_about_file(f"The VAE {settings['vae']}", settings.pop("vae"), preset))
    if settings.get("refiner") and settings["refiner"] not in names:
        refiner = settings.pop("refiner")
        sentences.append(_about_file(f"The refiner {refiner}", refiner, preset))
    if "loras" in settings:
        settings["loras"] = loras
    if "styles" in settings:
        unknown = [name for name in settings["styles"] if name not in styles]
        settings["styles"] = [name for name in settings["styles"] if name in styles]
        if unknown:
            sentences.append(_about_styles(unknown))
    return Fitted(settings, tuple(sentences))


def with_preset(
    spec: TaskSpec, presets: Mapping[str, Preset], catalog: Catalog, styles: Container[str]
) -> TaskSpec:
    """`spec` with what its preset sets, as far as it is there, where the request says nothing.

    What the request names stands, even where it is as by default; so a second call changes
    nothing. Raises SpecError for a preset that is not there.
    """
    if not spec.preset:
        return spec
    preset = preset_named(presets, spec.preset)
    named = spec.model_fields_set | (_PAIR if spec.model_fields_set & _PAIR else set())
    if preset.settings.keys() <= named:
        return spec
    fitted = fit_preset(preset, catalog, styles).settings
    taken = {name: value for name, value in fitted.items() if name not in named}
    return TaskSpec.from_mapping({**spec.model_dump(exclude_unset=True), **taken})


def _is_there(name: str, catalog: Catalog) -> bool:
    return any(
        file.name == name or file.name.rpartition(".")[0] == name
        for file in catalog.files(ModelFolder.LORAS)
    )


def _about_checkpoint(wanted: str, other: str, preset: Preset, catalog: Catalog) -> str:
    try:
        painter = other or catalog.find_checkpoint().name
    except ModelMissing:
        return _about_file(f"The checkpoint {wanted}", wanted, preset)
    return f"{wanted} is not there yet, so {painter} paints{_source(wanted, preset)}."


def _about_styles(unknown: Sequence[str]) -> str:
    if len(unknown) == 1:
        return f"There is no style {unknown[0]}, so it is left out."
    return f"There are no styles {', '.join(unknown[:-1])} and {unknown[-1]}, so they are left out."


def _about_file(what: str, file: str, preset: Preset) -> str:
    return f"{what} is not there yet, so it is left out{_source(file, preset)}."


def _source(file: str, preset: Preset) -> str:
    for download in preset.downloads:
        if download.file == file:
            size = f" ({download.size / 1e9:.1f} GB)" if download.size else ""
            return f"; save {download.url}{size} into models/{download.folder}"
    return ""
