"""How files of adapters name what they change: modules of a model, and parts of a form.

Kohya's trainers write `lora_unet_` or `lora_te_` and the module's name with underscores; diffusers
writes `unet.` or `text_encoder.` and the name as it is, in its own words; others take the
checkpoint's names. `KeyMap` knows them all for one model.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ldm_patched.modules.diffusers_names import module_names

UNET, CLIP = "unet", "clip"
UNET_ROOT = "diffusion_model."

ENDINGS: Mapping[str, str] = {
    # low rank, as kohya, diffusers in its several ages, and PEFT write it
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "middle",
    "lora_B.weight": "up",
    "lora_A.weight": "down",
    "lora_B.default.weight": "up",
    "lora_A.default.weight": "down",
    "lora.up.weight": "up",
    "lora.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    # LoHa, LoKr, GLoRA
    **{f"hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"kron_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")},
    "lokr_t2": "kron_t2",
    **{f"{part}.weight": part for part in ("a1", "a2", "b1", "b2")},
    # whole differences
    "diff": "diff",
    "w_norm": "diff",
    "diff_b": "bias",
    "b_norm": "bias",
}
# unet…attn1.processor.to_q_lora.up.weight, diffusers before 0.19
PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(up|down)\.weight$")
_LONGEST = max(ending.count(".") for ending in ENDINGS) + 1


def split_key(key: str) -> tuple[str, str] | None:
    """(module, part) of a name in a file, or None if it ends in no known way."""
    if match := PROCESSOR.search(key):
        inner = ".0" if match[1] == "to_out" else ""
        return f"{key[: match.start()]}.{match[1]}{inner}", match[2]
    pieces = key.split(".")
    for count in range(min(_LONGEST, len(pieces) - 1), 0, -1):
        part = ENDINGS.get(".".join(pieces[-count:]))
        if part is not None:
            return ".".join(pieces[:-count]), part
    return None


class KeyMap:
    """Where the modules that a file names are in a model.

    `find` gives (UNET or CLIP, the module's name in that part's state dict).
    """

    def __init__(self, model: Any = None, clip: Any = None) -> None:
        """model: a ModelPatcher of a BaseModel. clip: a CLIP. Either may be None."""
        self.weights: dict[str, Mapping[str, Any]] = {UNET: {}, CLIP: {}}
        self._places: dict[str, tuple[str, str]] = {}
        if model is not None:
            self.weights[UNET] = dict(model.model.named_parameters())
            self._add(UNET, _unet_names(model.model, self.weights[UNET]))
        if clip is not None:
            self.weights[CLIP] = dict(clip.cond_stage_model.named_parameters())
            self._add(CLIP, _clip_names(self.weights[CLIP]))

    def _add(self, part: str, names: Iterable[tuple[str, str]]) -> None:
        for name, module in names:
            self._places.setdefault(name, (part, module))

    def find(self, name: str) -> tuple[str, str] | None:
        """The place of the module that a file calls `name`."""
        return self._places.get(name)


def _modules(weights: Iterable[str], root: str = "") -> list[str]:
    """Names of the layers that have weights under `root`, without it."""
    ends = len(".weight")
    return [
        name[len(root) : -ends]
        for name in weights
        if name.startswith(root) and name.endswith(".weight")
    ]


def _unet_names(model: Any, weights: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    modules = _modules(weights, UNET_ROOT)
    diffusers = module_names(model.diffusion_model.config, modules)
    for module in modules:
        place = UNET_ROOT + module
        for root in (UNET_ROOT, "model.diffusion_model.", "unet."):
            yield root + module, place
        yield "lora_unet_" + module.replace(".", "_"), place
        if module in diffusers:
            theirs = diffusers[module]
            for root in ("unet.", "", "base_model.model.", "base_model.model.unet."):
                yield root + theirs, place
            flat = theirs.replace(".", "_")
            for root in ("lora_unet_", "lycoris_", "lycoris_unet_"):
                yield root + flat, place


# The first text encoder of a model, and the second one, as files call them.
TEXT_ROOTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("lora_te_", "lora_te1_"), ("text_encoder.",)),
    (("lora_te2_",), ("text_encoder_2.",)),
)


def _clip_names(weights: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    encoders = list(dict.fromkeys(name.split(".")[0] for name in weights))
    for encoder in encoders:
        second = encoder == "clip_g"
        flat, dotted = TEXT_ROOTS[second]
        for module in _modules(weights, f"{encoder}."):
            place = f"{encoder}.{module}"
            # newer versions of transformers have no `text_model.` around an encoder
            for theirs in dict.fromkeys((module, module.removeprefix("text_model."))):
                for root in flat:
                    yield root + theirs.replace(".", "_"), place
                for root in (*dotted, f"{encoder}.", f"{encoder}.transformer."):
                    yield root + theirs, place
                    yield f"base_model.model.{root}{theirs}", place
                yield f"text_encoders.{encoder}.transformer.{theirs}", place
