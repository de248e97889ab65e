"""Adapters that change weights: from the file that a trainer wrote to patches of a model.

LoRA and LoCon, DoRA, LoHa, LoKr, GLoRA and whole differences, of the UNet and of the text
encoders, under the names of kohya, diffusers, PEFT and the checkpoint itself (see lora_names).
`read_lora` checks a whole file against a model before anything is changed; what it gives goes
onto clones with `add_patches`, and so comes off without a trace.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.file_kinds import likely_kind
from ldm_patched.modules.lora_family import likely_lora_family
from ldm_patched.modules.lora_names import CLIP, UNET, KeyMap, split_key
from ldm_patched.modules.weight_patches import WeightPatch, require_fit

logger = logging.getLogger(__name__)

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """A file as patches. unet, clip: by names in those parts' state dicts.

    modules: how many the file names; unmatched: names in the file that fit nothing here, or are of
    a kind that is not applied.
    """

    name: str
    unet: dict[str, WeightPatch] = field(default_factory=dict)
    clip: dict[str, WeightPatch] = field(default_factory=dict)
    modules: int = 0
    unmatched: tuple[str, ...] = ()

    @property
    def used(self) -> int:
        """How many of the modules are used with all that the file says of them."""
        return self.modules - len(set(map(_module_of, self.unmatched)))

    @property
    def coverage(self) -> float:
        """The share of the file's modules that are used, 0..1."""
        return self.used / self.modules if self.modules else 0.0


def _module_of(key: str) -> str:
    """The module that a name in a file speaks of, whatever it ends in."""
    known = split_key(key)
    return known[0] if known is not None else key.rpartition(".")[0] or key


# --- Forms ------------------------------------------------------------------------------------


def _low_rank(parts: Parts, alpha: float | None) -> WeightPatch:
    return "lora", (parts["up"], parts["down"], alpha, parts.get("middle"))


def _hadamard(parts: Parts, alpha: float | None) -> WeightPatch:
    four = (parts[name] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return "loha", (*four, alpha, parts.get("t1"), parts.get("t2"))


def _kronecker(parts: Parts, alpha: float | None) -> WeightPatch:
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    found = {name: parts.get(f"kron_{name}") for name in names}
    for factor in ("w1", "w2"):
        if found[factor] is None and (found[f"{factor}_a"] is None or found[f"{factor}_b"] is None):
            raise KeyError(f"kron_{factor}")
    return "lokr", (*found.values(), alpha)


def _generalised(parts: Parts, alpha: float | None) -> WeightPatch:
    return "glora", (*(parts[name] for name in ("a1", "a2", "b1", "b2")), alpha)


def _difference(parts: Parts, _alpha: float | None) -> WeightPatch:
    return "diff", (parts["diff"],)


FORMS = (
    ({"up", "down", "middle"}, _low_rank),
    ({"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}, _hadamard),
    ({f"kron_{n}" for n in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")}, _kronecker),
    ({"a1", "a2", "b1", "b2"}, _generalised),
    ({"diff"}, _difference),
)
"""The parts of each form, and what makes a patch of them."""


def weight_patch_of(parts: Parts, alpha: float | None) -> WeightPatch | None:
    """The patch of a module's weight; None if the parts speak of no weight.

    Raises KeyError with the name of a part that is missing.
    """
    patch = next((make(parts, alpha) for names, make in FORMS if names & parts.keys()), None)
    if patch is None:
        return None
    if "magnitude" in parts:  # PEFT's is one length for each output, however it is shaped
        return "dora", (patch, parts["magnitude"].reshape(-1, 1))
    if "dora_scale" in parts:
        scale = parts["dora_scale"]
        return "dora", (patch, scale.reshape(-1, 1) if scale.ndim == 1 else scale)
    return patch


def _read_parts(parts: Iterable[str]) -> set[str]:
    """Those of the parts that `weight_patch_of` reads."""
    parts = set(parts)
    form = next((names for names, _ in FORMS if names & parts), None)
    if form is None:
        return set()
    return parts & {*form, "magnitude" if "magnitude" in parts else "dora_scale"}


# --- Reading ----------------------------------------------------------------------------------


def read_lora(
    lora: Mapping[str, Tensor],
    model: Any = None,
    clip: Any = None,
    *,
    key_map: KeyMap | None = None,
) -> Lora:
    """The patches of a file for a model and its text encoders; nothing is changed yet.

    lora: a WeightFile, or tensors by name. model: a ModelPatcher; clip: a CLIP; either may be
    None. key_map: of these two, if it is there already.
    Raises UnsupportedModel for a file that fits no part of the model or has other widths, with
    the family that it seems to be made for, and CorruptModelFile for one that is damaged.
    """
    key_map = KeyMap(model, clip) if key_map is None else key_map
    reader = _Reader(lora, key_map, model)
    return reader.read()


class _Reader:
    """One reading of a file."""

    def __init__(self, lora: Mapping[str, Tensor], key_map: KeyMap, model: Any) -> None:
        self.lora, self.key_map = lora, key_map
        self.name = getattr(lora, "name", None) or "The LoRA"
        config = getattr(getattr(model, "model", None), "model_config", None)
        self.family = getattr(config, "name", "") or "the chosen checkpoint"
        self.alphas = _Alphas(getattr(lora, "metadata", None) or {})
        self.patches: dict[str, dict[str, WeightPatch]] = {UNET: {}, CLIP: {}}

    def read(self) -> Lora:
        modules, unmatched = self._modules()
        fitting = 0
        for module, parts in modules.items():
            place = self.key_map.find(module)
            if place is None:
                unmatched += parts.values()
                continue
            left = self._take(module, parts, *place)
            fitting += len(left) < len(parts)
            unmatched += left
        if not fitting:
            raise self._nothing_fits()
        if unmatched:
            some = ", ".join(unmatched[:3])
            logger.warning(
                "%s: %d of %d weights fit nothing in this model, such as %s",
                self.name,
                len(unmatched),
                len(self.lora),
                some,
            )
        count = len(set(map(_module_of, self.lora)))
        return Lora(self.name, self.patches[UNET], self.patches[CLIP], count, tuple(unmatched))

    def _modules(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """(module → part → name in the file, names that are no part of a form)."""
        modules: dict[str, dict[str, str]] = {}
        rest: list[str] = []
        for key in self.lora:
            split = split_key(key)
            if split is None:
                rest.append(key)
            else:
                modules.setdefault(split[0], {})[split[1]] = key
        return modules, rest

    def _take(self, module: str, parts: dict[str, str], part: str, place: str) -> list[str]:
        """Make the patches of one module; the names in the file of parts that go into none."""
        tensors = {name: self._load(key) for name, key in parts.items()}
        alpha = tensors.pop("alpha", None)
        if alpha is not None and not alpha.numel():
            raise CorruptModelFile(
                f"{self.name} is damaged: the alpha of {module} is empty. Download it again."
            )
        number = self.alphas.of(module, tensors) if alpha is None else float(alpha.flatten()[0])
        bias = tensors.pop("bias", None)
        try:
            patch = weight_patch_of(tensors, number)
        except KeyError as error:
            raise CorruptModelFile(
                f"{self.name} is damaged: a part ({error.args[0]}) of {module} is missing. "
                "Download it again."
            ) from None
        used = _read_parts(tensors)
        if patch is not None:
            self._add(part, f"{place}.weight", patch)
        if bias is not None and f"{place}.bias" in self.key_map.weights[part]:
            self._add(part, f"{place}.bias", ("diff", (bias,)))
            used.add("bias")
        if used:
            used.add("alpha")  # which says nothing by itself
        return [key for name, key in parts.items() if name not in used]

    def _load(self, key: str) -> Tensor:
        tensor = self.lora[key]
        if tensor.numel():
            wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
            if not all(math.isfinite(end) for end in torch.stack(wide.aminmax()).tolist()):
                raise CorruptModelFile(
                    f"{self.name} holds invalid numbers (in {key}), so it cannot be used. "
                    "Choose another file."
                )
        return tensor

    def _add(self, part: str, name: str, patch: WeightPatch) -> None:
        weight = self.key_map.weights[part][name]
        try:
            require_fit(patch, weight.shape)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._does_not_fit(name, tuple(weight.shape)) from error
        self.patches[part][name] = patch

    # --- errors ---

    def _does_not_fit(self, name: str, shape: tuple[int, ...]) -> UnsupportedModel:
        family = likely_lora_family(self.lora)
        made_for = f"it looks like a LoRA for {family}" if family else "it is for another model"
        if family == self.family:
            made_for = "it is for a model of other widths"
        return UnsupportedModel(
            f"{self.name} does not fit: {made_for}, and the checkpoint's {name} is "
            f"{' × '.join(map(str, shape))}. Choose a LoRA made for {self.family}."
        )

    def _nothing_fits(self) -> UnsupportedModel:
        remedy = f"Choose a LoRA made for {self.family}."
        if any(".oft_" in key for key in self.lora):
            return UnsupportedModel(
                f"{self.name} is an OFT, a kind of adapter that Easel does not apply. {remedy}"
            )
        family = likely_lora_family(self.lora)
        if family is not None:
            return UnsupportedModel(
                f"{self.name} looks like a LoRA for {family}, and fits no part of this model. "
                + remedy
            )
        kind = likely_kind(self.lora)
        if kind is not None and kind[0] != "a LoRA":
            words, place = kind
            remedy = f"{place}. {remedy}" if place else remedy
            return UnsupportedModel(f"{self.name} looks like {words}, not like a LoRA. {remedy}")
        return UnsupportedModel(f"{self.name} fits no part of this model. {remedy}")


class _Alphas:
    """The scales that diffusers keeps beside the weights, in the file's metadata.

    `lora_adapter_metadata` is JSON with entries such as unet.lora_alpha and unet.r.
    """

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            entries = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError):
            entries = {}
        self._entries: dict[str, Any] = entries if isinstance(entries, dict) else {}

    def of(self, module: str, parts: Parts) -> float | None:
        """The alpha of a module whose tensors the file has without one; None if it has none."""
        root, _, rest = module.partition(".")
        alpha = self._entries.get(f"{root}.lora_alpha")
        patterns = self._entries.get(f"{root}.alpha_pattern")
        if isinstance(patterns, dict):  # by the ends of names; of several the first
            found = (own for end, own in patterns.items() if f".{rest}".endswith(f".{end}"))
            alpha = next(found, alpha)
        if type(alpha) not in (int, float) or not math.isfinite(alpha) or "down" not in parts:
            return None
        if self._entries.get(f"{root}.use_rslora") is True:  # alpha / sqrt(rank), not alpha / rank
            return alpha * math.sqrt(parts["down"].shape[0])
        return float(alpha)
