"""What a request would take in each performance mode, for POST /api/forecast."""

from typing import Any

from modules.api.context import ServerContext
from modules.library.known_files import download_of
from modules.library.model_sizes import model_sizes
from modules.settings.performance import load_modes
from modules.settings.presets import public_link
from modules.spec.errors import ModelMissing
from modules.spec.performance import PerformanceMode
from modules.spec.resolving import resolve_spec
from modules.spec.task_spec import TaskSpec
from modules.tasks.forecast import forecast, forecast_memory, prompt_types


def seconds_by_mode(context: ServerContext, spec: TaskSpec) -> dict[str, Any]:
    """What the page tells about `spec` before it is sent.

    picture: seconds of one picture as asked for, None where nothing is known yet; steps: of it;
    modes: seconds by mode, "" being the settings as they are; memory: bytes that one picture as
    asked for takes at most, None where no such picture was painted yet, and memory_modes the same
    by mode; forced: what the mode decides, by
    field; missing: the mode's LoRA if it is not there, as {"file", "folder", "url"}, the folder ""
    where Easel cannot fetch it, the file "" where there is none for the built-in model. Raises
    what `ServerContext.complete` raises.
    """
    spec = context.complete(spec)
    modes = {"": None, **load_modes(context.settings.root)}
    mode = modes.get(spec.performance)
    try:
        file = context.catalog.find_checkpoint(spec.checkpoint)
    except ModelMissing:
        file = None
    answer: dict[str, Any] = {
        "picture": None,
        "steps": mode.applied(spec).steps if mode else spec.overwrite_step or spec.steps,
        "modes": {},
        "memory": None,
        "memory_modes": {},
        "forced": mode.decided(spec) if mode else {},
        "missing": _missing(mode, context, builtin=file is not None and file.is_builtin),
    }
    if file is None:
        return answer
    timings, sizes = context.store.timings(), model_sizes(file)
    steered_by = prompt_types(prompt.model_dump() for prompt in spec.image_prompts)
    for name, each in modes.items():
        resolved = resolve_spec(spec, each, checkpoint=file.name, sizes=sizes)
        seconds = forecast(timings, resolved, steered_by)
        if seconds is not None:
            answer["modes"][name] = seconds
        memory = forecast_memory(timings, resolved, steered_by)
        if memory is not None:
            answer["memory_modes"][name] = memory
        if each is mode:
            answer["picture"], answer["memory"] = seconds, memory
    return answer


def _missing(
    mode: PerformanceMode | None, context: ServerContext, *, builtin: bool
) -> dict[str, str] | None:
    if mode is None or mode.lora is None:
        return None
    if context.catalog.find_lora(mode.lora.names_for(builtin)):
        return None
    if builtin and mode.lora.builtin is not None:
        return {"file": "", "folder": "", "url": ""}
    download = download_of(mode)
    folder = download.folder if download else ""
    return {"file": mode.lora.file, "folder": folder, "url": public_link(mode.lora.url)}
