"""How long a request would take in each performance mode, for POST /api/forecast."""

from typing import Any

from modules.api.context import ServerContext
from modules.library.model_sizes import model_sizes
from modules.settings.performance import load_modes
from modules.spec.errors import ModelMissing
from modules.spec.resolving import resolve_spec
from modules.spec.task_spec import TaskSpec
from modules.tasks.forecast import forecast


def seconds_by_mode(context: ServerContext, spec: TaskSpec) -> dict[str, Any]:
    """{"picture": seconds of one picture as asked for, "steps": its steps, "modes": {name: …}}.

    None where nothing is known yet; "" among the modes is the settings as they are.
    """
    try:
        file = context.catalog.find_checkpoint(spec.checkpoint)
    except ModelMissing:
        return {"picture": None, "steps": spec.steps, "modes": {}}
    timings, sizes = context.store.timings(), model_sizes(file)
    modes = {"": None, **load_modes(context.settings.root)}
    resolved = {
        name: resolve_spec(spec, mode, checkpoint=file.name, sizes=sizes)
        for name, mode in modes.items()
    }
    seconds = {name: forecast(timings, outcome) for name, outcome in resolved.items()}
    chosen = spec.performance if spec.performance in modes else ""
    return {
        "picture": seconds[chosen],
        "steps": resolved[chosen].steps,
        "modes": {name: found for name, found in seconds.items() if found is not None},
    }
