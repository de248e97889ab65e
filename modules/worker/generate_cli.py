"""Pictures without the page: `launch.py generate "two words" -n 1 --seed 7 -o folder`.

The options are TaskSpec's fields and the device flags; `--from picture.png` takes the fields that
are not given from the recipe of a picture. The work is done in this process by the
same handler and stages that serve the queue. Paths of the pictures go to standard output, the
progress bar and errors to standard error.
"""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TextIO

from modules.gallery.inputs import InputStore
from modules.gallery.recipe import Recipe, read_full_recipe
from modules.library.catalog import Catalog
from modules.library.preset_fit import beside, fit_preset
from modules.prompt.books import Shelf
from modules.settings.args import FLAGS
from modules.settings.config import Settings, expanded, load_settings
from modules.settings.logs import start_logging
from modules.settings.performance import load_modes
from modules.settings.presets import load_presets, preset_named
from modules.spec.errors import ConfigError, StudioError
from modules.spec.flags import TaskState
from modules.spec.image_prompt import ImagePromptType
from modules.spec.limits import REQUEST_BYTES
from modules.spec.performance import PerformanceMode
from modules.spec.resolving import STRONGER
from modules.spec.task_spec import LoraSpec, ResolvedSpec, TaskSpec
from modules.tasks.cancel import CancelToken
from modules.tasks.ending import leave
from modules.tasks.events import Event, Loading, Progress
from modules.tasks.ids import IdMaker

_SHORT = {"image_count": ("-n",), "output_format": ("--format",)}
_SETTINGS = ("models-path", "data-path", "disable-metadata")
_SOURCE = "from"
_BAR_CHARACTERS = 24
_IMAGE_PROMPT = re.compile(
    r"(?P<file>.+?)"
    rf"(?::(?P<type>{'|'.join(ImagePromptType)})(?::(?P<weight>[\d.]+)(?::(?P<stop>[\d.]+))?)?)?"
)
EXIT_STOPPED = 130


class TerminalTask:
    """One task of the command line: a TaskPort that prints instead of storing."""

    def __init__(self, spec: TaskSpec, output_path: Path, out: TextIO, err: TextIO) -> None:
        self.id = IdMaker().make()
        self.spec = spec
        self.attempt = 1
        self.done_indices: frozenset[int] = frozenset()
        self.cancel = CancelToken()
        self.failure = ""
        self._output_path, self._out, self._err = output_path, out, err
        self._line = 0

    def emit(self, event: Event) -> None:
        if isinstance(event, Loading):
            self._show(event.message)
        elif isinstance(event, Progress):
            filled = round(event.fraction * _BAR_CHARACTERS)
            bar = "█" * filled + "░" * (_BAR_CHARACTERS - filled)
            left = "" if event.seconds_left is None else f" · {event.seconds_left:.0f} s left"
            self._show(
                f"{bar} picture {event.image} of {event.image_count} · "
                f"step {event.step}/{event.steps}{left}"
            )

    def set_resolved(self, resolved: ResolvedSpec) -> None:
        """Nothing to keep: the recipe in each picture says it."""

    def commit_image(self, index: int, relative_path: str, *_facts: object) -> None:  # noqa: ARG002
        self._show("")
        line = f"{self._output_path / relative_path}\n"
        try:
            self._out.write(line)
        except UnicodeEncodeError:  # the pictures to come matter more than how it looks
            encoding = self._out.encoding
            self._out.write(line.encode(encoding, "backslashreplace").decode(encoding))
        self._out.flush()

    def commit_skip(self, index: int) -> None:
        """Nobody can press Skip here."""

    def finish(self, state: TaskState, _code: str = "", message: str = "") -> None:
        self._show("")
        if state is TaskState.FAILED:
            self.failure = message

    def _show(self, text: str) -> None:
        """Replace the progress line; only where somebody looks at it."""
        if self._err.isatty():
            self._err.write("\r" + text.ljust(self._line) + ("" if text else "\r"))
            self._err.flush()
            self._line = len(text)


class _Parser(argparse.ArgumentParser):
    """Raises a sentence instead of ending the process with the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"The command line is not right: {message}. See generate --help.")


def build_parser() -> argparse.ArgumentParser:
    """The options, from TaskSpec's fields and the flags that matter without a page."""
    parser = _Parser(
        prog="launch.py generate",
        description="Make pictures without the page.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in TaskSpec.model_fields.items():
        if name == "prompt":
            # Asked for by read_request: a picture's recipe has one.
            parser.add_argument("prompt", nargs="?", help=field.description)
            continue
        if name == "loras":
            parser.add_argument(
                "--lora",
                dest=name,
                action="append",
                metavar="NAME[:WEIGHT[:WORDS]]",
                help="a LoRA of models/loras, such as ink:0.8; may be given several times. WORDS "
                "is its weight for the reading of the prompt, WEIGHT if it is left out",
            )
            continue
        if name == "image_prompts":
            parser.add_argument(
                "--image-prompt",
                dest=name,
                action="append",
                metavar="FILE[:TYPE[:WEIGHT[:STOP]]]",
                help="a picture that steers the painting, such as house.png:canny:0.8; TYPE is "
                f"{', '.join(ImagePromptType)}; may be given several times",
            )
            continue
        names = (*_SHORT.get(name, ()), "--" + name.replace("_", "-"))
        help_text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            switch = argparse.BooleanOptionalAction
            parser.add_argument(*names, dest=name, action=switch, help=help_text)
            continue
        choices = getattr(field.annotation, "__members__", None)
        metavar = "|".join(choice.value for choice in choices.values()) if choices else "X"
        parser.add_argument(*names, dest=name, metavar=metavar, help=help_text)
    parser.add_argument(
        "--from",
        dest=_SOURCE,
        metavar="PICTURE",
        help="paint this picture of Easel again, with the settings of its recipe in place of the "
        "defaults; what else the line says overrides them",
    )
    parser.add_argument(
        "-o",
        "--output-path",
        metavar="FOLDER",
        help="folder for the pictures; without it, a folder of the day below outputs",
    )
    for flag in FLAGS:
        if flag.device or flag.name in _SETTINGS:
            options: dict[str, Any] = {"dest": flag.field, "help": flag.help}
            if flag.convert is None:
                options |= {"action": "store_true"}
            elif flag.bare is not None:
                options |= {"nargs": "?", "const": flag.bare, "metavar": flag.metavar}
            else:
                options |= {"metavar": flag.metavar}
            parser.add_argument(*(f"--{name}" for name in (flag.name, *flag.aliases)), **options)
    return parser


def read_lora_option(text: str) -> dict[str, str]:
    """The entry of TaskSpec.loras that `--lora name:weight:words` means; checked by TaskSpec."""
    name, *weights = text.split(":")
    if len(weights) > 2 or not all(weights):
        raise ConfigError(
            f"--lora {text[:80]} cannot be read; write --lora name:weight, such as --lora ink:0.8."
        )
    return {"name": name} | dict(zip(("weight", "clip_weight"), weights, strict=False))


def read_image_prompt_option(text: str, store: InputStore) -> dict[str, str]:
    """The entry of TaskSpec.image_prompts that `--image-prompt file:type:weight:stop` means.

    The picture goes into `store`. Raises ConfigError or what is wrong with the picture.
    """
    match = _IMAGE_PROMPT.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--image-prompt {text[:80]} cannot be read; write --image-prompt "
            "file:type:weight:stop, such as --image-prompt house.png:canny:0.8."
        )
    path = expanded(match["file"])
    try:
        with path.open("rb") as file:
            data = file.read(REQUEST_BYTES + 1)
    except OSError:
        raise ConfigError(
            f"The picture {path.name[:80]} of --image-prompt cannot be read; check its name."
        ) from None
    if len(data) > REQUEST_BYTES:
        raise ConfigError(f"The picture {path.name[:80]} is larger than 25 MB; make it smaller.")
    given = {name: match[name] for name in ("type", "weight", "stop") if match[name]}
    return {"image": store.add(data).image, **given}


def with_line(
    recipe: Recipe, line: Mapping[str, Any], modes: Mapping[str, PerformanceMode]
) -> dict[str, Any]:
    """The fields of the picture of `recipe`, and over them those of `line`, to be checked yet.

    A performance mode that decides a field of `line` gives way to all that it had set.
    """
    spec = recipe.alone()
    values: dict[str, Any] = dict(spec)
    lora: LoraSpec | None = None
    mode = modes.get(spec.performance)
    if mode is not None and "performance" not in line and line.keys() & mode.decided(spec).keys():
        values |= mode.decided(spec) | {"performance": ""}
        lora = recipe.resolved.performance_lora
    for name in line.keys() & STRONGER.keys():
        values |= dict.fromkeys(STRONGER[name])
    values |= line
    if lora is not None:
        others = [each for each in values["loras"] if dict(each)["name"] != lora.name]
        values["loras"] = [*others, lora]
    return values


def read_request(argv: Sequence[str]) -> tuple[TaskSpec, Settings, bool]:
    """(spec with a fixed seed, settings, whether a folder was given). Raises StudioError."""
    parser = build_parser()
    given = vars(parser.parse_args(list(argv)))
    values = {name: given.pop(name) for name in list(given) if name in TaskSpec.model_fields}
    source = given.pop(_SOURCE, None)
    if source is None and "prompt" not in values:
        parser.error("the following arguments are required: prompt")
    recipe = None if source is None else read_full_recipe(expanded(source))
    if "loras" in values:
        values["loras"] = [read_lora_option(text) for text in values["loras"]]
    folder = given.pop("output_path", None)
    settings_argv: list[str] = []
    for field, value in given.items():
        settings_argv.append("--" + field.replace("_", "-"))
        if value is not True:
            settings_argv.append(str(value))
    settings = load_settings(settings_argv)
    if "image_prompts" in values:
        store = InputStore(settings.inputs_path)
        texts = values["image_prompts"]
        values["image_prompts"] = [read_image_prompt_option(text, store) for text in texts]
    if folder is not None:
        settings = replace(settings, output_path=Path(os.path.abspath(expanded(folder))))
    preset = values.pop("preset", "")
    if preset:
        fields = _preset_fields(preset, settings, given.get("models_path"))
        values = beside(values, fields, load_modes(settings.root))
    if recipe is not None:
        values = with_line(recipe, values, load_modes(settings.root))
    return TaskSpec.from_mapping(values).with_fixed_seed(), settings, folder is not None


def _preset_fields(preset: str, settings: Settings, models_path: str | None) -> dict[str, Any]:
    """The fields that a preset sets; what it lacks is told, with the line that fetches it.

    models_path: as it was given.
    """
    presets = load_presets(settings.root)
    styles = Shelf(settings.root, settings.presets_path).styles()
    fitted = fit_preset(preset_named(presets, preset), Catalog(settings, presets), styles)
    for sentence in fitted.sentences:
        sys.stderr.write(f"{sentence}\n")
    models = ["--models-path", models_path] if models_path else []
    for download in fitted.missing:
        words = shlex.join(["launch.py", "download", download.key, *models])
        sys.stderr.write(f"This fetches it: python3 {words}\n")
    return {**fitted.settings, "preset": preset}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every picture was saved, 1 after an error, 130 after Ctrl+C."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while it was still starting
        return EXIT_STOPPED


def _run(argv: Sequence[str]) -> int:
    try:
        spec, settings, has_folder = read_request(argv)
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    start_logging(settings.log_path, "generate", logging.ERROR)
    task = TerminalTask(spec, settings.output_path, sys.stdout, sys.stderr)

    # Only now: --help and a wrong option are answered without loading the engine.
    from modules.async_worker import run_task
    from modules.worker.studio import Studio

    studio = Studio(settings, by_day=not has_folder)
    try:
        run_task(task, studio)
    except KeyboardInterrupt:
        task.finish(TaskState.STOPPED)
        sys.stderr.write("Stopped; the pictures finished so far are kept.\n")
        return EXIT_STOPPED
    finally:
        studio.close()
    if task.failure:
        sys.stderr.write(f"{task.failure}\n")
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
