"""Objects made from configuration dictionaries: `{"target": "package.Class", "params": {...}}`."""

import importlib
from collections.abc import Mapping
from typing import Any


def get_obj_from_str(path: str) -> Any:
    """The object that a dotted path names, as "torch.nn.Identity".

    Raises ValueError for a path without a dot, ImportError or AttributeError if nothing is there.
    """
    module, dot, name = path.rpartition(".")
    if not dot:
        raise ValueError(f"{path!r} is no dotted path; write it as package.module.Name.")
    return getattr(importlib.import_module(module), name)


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Call what `config["target"]` names with the keywords of `config["params"]`, if any.

    Raises KeyError if there is no "target".
    """
    if "target" not in config:
        raise KeyError("Expected the key `target`, which says what to instantiate.")
    return get_obj_from_str(config["target"])(**config.get("params", {}))
