"""A preset with what is there: what it names and nobody has is left out, and said."""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.library.catalog import Catalog
from modules.settings.presets import Download, ModelFolder, Preset, preset_named
from modules.spec.errors import ModelMissing, SpecError
from modules.spec.performance import PerformanceMode
from modules.spec.resolving import STRONGER
from modules.spec.task_spec import TaskSpec

_OF_FILES = ("checkpoint", "loras", "vae", "refiner")
CHOSEN = "*"
"""In place of the checkpoint that a preset left: the user chose one."""
_PAIR = frozenset({"width", "height"})  # one of them says nothing


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings of a preset that can be painted now, and a sentence on each thing left out.

    missing: files of what was left out that the preset knows how to fetch.
    """

    settings: dict[str, Any]
    sentences: tuple[str, ...] = ()
    missing: tuple[Download, ...] = ()


def fit_preset(
    preset: Preset, catalog: Catalog, styles: Container[str], held: str | None = ""
) -> Fitted:
    """`preset` with a checkpoint that is there, and without LoRAs, VAE and styles that are not.

    styles: those that a request may name. held: the checkpoint that paints if there is neither the
    preset's nor one that does as well; '' for the first, None where nobody can say.
    """
    settings, sentences, gone = dict(preset.settings), [], []
    wanted = settings.get("checkpoint", "")
    names = {file.name for file in catalog.checkpoints()}
    if wanted and wanted not in names:
        other = next((name for name in preset.instead if name in names), "")
        settings["checkpoint"] = other
        painter = None if held is None else other or (held if held in names else "")
        sentences.append(_about_checkpoint(wanted, painter, catalog))
        gone.append(wanted)
    loras = [entry for entry in settings.get("loras", ()) if _is_there(entry["name"], catalog)]
    missing = [entry["name"] for entry in settings.get("loras", ()) if entry not in loras]
    sentences += [_left_out(f"The LoRA {name}") for name in missing]
    gone += missing
    vaes = {file.name for file in catalog.files(ModelFolder.VAE)}
    if settings.get("vae") and settings["vae"] not in vaes:
        gone.append(settings.pop("vae"))
        sentences.append(_left_out(f"The VAE {gone[-1]}"))
    if settings.get("refiner") and settings["refiner"] not in names:
        gone.append(settings.pop("refiner"))
        sentences.append(_left_out(f"The refiner {gone[-1]}"))
    if "loras" in settings:
        settings["loras"] = loras
    if "styles" in settings:
        unknown = [name for name in settings["styles"] if name not in styles]
        settings["styles"] = [name for name in settings["styles"] if name in styles]
        if unknown:
            sentences.append(_about_styles(unknown))
    known = tuple(each for each in preset.downloads if _is_named(each.file, gone))
    return Fitted(settings, tuple(sentences), known)


def refit_preset(
    preset: Preset,
    arrived: Collection[str],
    held: Mapping[str, Any],
    catalog: Catalog,
    styles: Container[str],
    left: str = "",
) -> Fitted:
    """What `preset` sets now that files have arrived which it lacked: only what they change.

    arrived: keys of the files. held: today's settings; what is not as the preset left it for want
    of those files is the user's own choice, and stays. left: the checkpoint that went on painting
    when the preset was chosen, CHOSEN if the user chose one since, '' where nobody knows: then it
    was the first one.
    """
    earlier = catalog.without(arrived)
    before = fit_preset(preset, earlier, styles).settings
    now = fit_preset(preset, catalog, styles, held.get("checkpoint") or "")
    first = next((file.name for file in earlier.checkpoints()), "")
    changed = {}
    for name in _OF_FILES:
        then, value = before.get(name) or None, now.settings.get(name)
        untouched = [then]
        if name == "checkpoint":
            untouched = [None, left or then or first]
        if (value or None) != then and (held.get(name) or None) in untouched:
            changed[name] = value
    return Fitted(changed, now.sentences, now.missing)


def with_preset(
    spec: TaskSpec,
    presets: Mapping[str, Preset],
    catalog: Catalog,
    styles: Container[str],
    modes: Mapping[str, PerformanceMode],
) -> TaskSpec:
    """`spec` with what its preset sets, as far as it is there, where the request says nothing.

    What the request names stands, even where it is as by default; so a second call changes
    nothing. Raises SpecError for a preset that is not there, and as `beside` does.
    """
    if not spec.preset:
        return spec
    preset = preset_named(presets, spec.preset)
    named = spec.model_dump(exclude_unset=True)
    if named.keys() & _PAIR:
        named |= {side: getattr(spec, side) for side in _PAIR}
    if preset.settings.keys() <= named.keys():
        return spec
    fitted = fit_preset(preset, catalog, styles).settings
    return TaskSpec.from_mapping(beside(named, fitted, modes))


def beside(
    named: Mapping[str, Any], settings: Mapping[str, Any], modes: Mapping[str, PerformanceMode]
) -> dict[str, Any]:
    """`named` fields of a request, and of a preset's `settings` what takes nothing from them.

    Steps that are named take the place of those of the preset's mode. Raises SpecError where that
    mode would decide another field that is named.
    """
    weaker = {field for name in named.keys() & STRONGER.keys() for field in STRONGER[name]}
    taken = {k: v for k, v in settings.items() if k not in named and k not in weaker}
    both = {**taken, **named}
    mode = modes.get(taken.get("performance", ""))
    if mode is None:
        return both
    if "steps" in named:
        both["overwrite_step"] = both.get("overwrite_step") or named["steps"]
    decided = mode.decided(TaskSpec())
    claimed = named.keys() & decided.keys() - {"steps"}
    lost = sorted(name for name in claimed if named[name] != decided[name])
    if lost:
        raise SpecError(
            f"The preset paints in the mode {mode.title}, which decides {', '.join(lost)}: leave "
            "that out, or give performance as '' to decide all of it yourself.",
            lost[0],
        )
    return both


def _is_there(name: str, catalog: Catalog) -> bool:
    return any(_is_named(file.name, (name,)) for file in catalog.files(ModelFolder.LORAS))


def _is_named(file: str, names: Container[str]) -> bool:
    """With or without its ending."""
    return file in names or file.rpartition(".")[0] in names


def _about_checkpoint(wanted: str, painter: str | None, catalog: Catalog) -> str:
    if painter is None:
        return f"{wanted} is not there yet."
    try:
        painter = painter or catalog.find_checkpoint().name
    except ModelMissing:
        return _left_out(f"The checkpoint {wanted}")
    return f"{wanted} is not there yet, so {painter} paints."


def _about_styles(unknown: Sequence[str]) -> str:
    if len(unknown) == 1:
        return f"There is no style {unknown[0]}, so it is left out."
    return f"There are no styles {', '.join(unknown[:-1])} and {unknown[-1]}, so they are left out."


def _left_out(what: str) -> str:
    return f"{what} is not there yet, so it is left out."
