"""Presets of Fooocus, read into our own form. Names and meanings of its keys are facts about it."""

from collections.abc import Callable, Mapping
from typing import Any

_PERFORMANCE = {
    "Quality": "quality",
    "Speed": "speed",
    "Extreme Speed": "extreme_speed",
    "Lightning": "lightning",
    "Hyper-SD": "hyper_sd",
}
_NOTHING = ("None", "", None, "Default (model)")
_FOLDERS = {
    "checkpoint_downloads": "checkpoints",
    "lora_downloads": "loras",
    "embeddings_downloads": "embeddings",
    "vae_downloads": "vae",
}
# What has no place here: it is not a way of painting, or it is decided elsewhere.
_LEFT_OUT = frozenset(
    {
        "default_loras_min_weight",
        "default_loras_max_weight",
        "default_save_metadata_to_images",
        "default_inpaint_engine_version",
    }
)


def is_fooocus_preset(content: Mapping[str, Any]) -> bool:
    """Whether a preset's JSON is one of Fooocus."""
    return any(key in _FIELDS or key in _FOLDERS or key in _LEFT_OUT for key in content)


def from_fooocus(content: Mapping[str, Any], title: str) -> dict[str, Any]:
    """A preset file's content in our form; ValueError names a key that is not known or wrong."""
    settings: dict[str, Any] = {}
    downloads = []
    for key, value in content.items():
        if key in _FOLDERS:
            files = value if isinstance(value, Mapping) else {}
            for file, url in files.items():
                downloads.append({"file": file, "folder": _FOLDERS[key], "url": url})
        elif key in _FIELDS:
            settings |= _FIELDS[key](value)
        elif key not in _LEFT_OUT and key != "previous_default_models":
            raise ValueError(f"the key {str(key)[:80]!r} is not known; remove it")
    instead = content.get("previous_default_models", [])
    return {"title": title, "settings": settings, "downloads": downloads, "instead": instead}


def _plain(field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {} if value in _NOTHING else {field: value}


def _loras(value: Any) -> dict[str, Any]:
    """[[enabled, name, weight], …] or, as it was once, [[name, weight], …]."""
    found = []
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, list) or len(entry) not in (2, 3):
            raise ValueError("each of 'default_loras' must be [enabled, name, weight]")
        enabled, name, weight = entry if len(entry) == 3 else (True, *entry)
        if name not in _NOTHING:
            found.append({"enabled": enabled, "name": name, "weight": weight})
    return {"loras": found} if found else {}


def _styles(value: Any) -> dict[str, Any]:
    """Prompt expansion is one of Fooocus's styles; here it is a switch."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    styles = ["random" if name == "Random Style" else name for name in names]
    found: dict[str, Any] = {"expand_prompt": True} if "Fooocus V2" in names else {}
    kept = [name for name in styles if name != "Fooocus V2"]
    return found | ({"styles": kept} if kept else {})


def _performance(value: Any) -> dict[str, Any]:
    if not isinstance(value, str) or value not in _PERFORMANCE:
        raise ValueError(f"the performance {str(value)[:40]!r} is not known")
    return {"performance": _PERFORMANCE[value]}


def _steps(field: str) -> Callable[[Any], dict[str, Any]]:
    """-1 is Fooocus's word for none."""
    return lambda value: {field: value} if isinstance(value, int) and value > 0 else {}


_FIELDS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "default_model": _plain("checkpoint"),
    "default_vae": _plain("vae"),
    "default_refiner": _plain("refiner"),
    "default_refiner_switch": _plain("refiner_switch"),
    "default_loras": _loras,
    "default_cfg_scale": _plain("cfg_scale"),
    "default_sample_sharpness": _plain("sharpness"),
    "default_cfg_tsnr": _plain("adaptive_cfg"),
    "default_clip_skip": _plain("clip_skip"),
    "default_sampler": _plain("sampler"),
    "default_scheduler": _plain("scheduler"),
    "default_overwrite_step": _steps("overwrite_step"),
    "default_overwrite_switch": _steps("overwrite_switch"),
    "default_performance": _performance,
    "default_image_number": _plain("image_count"),
    "default_prompt": _plain("prompt"),
    "default_prompt_negative": _plain("negative_prompt"),
    "default_styles": _styles,
    "default_aspect_ratio": _plain("aspect_ratio"),
}
