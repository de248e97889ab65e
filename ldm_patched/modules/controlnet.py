"""Controls from files: a picture that a UNet follows.

`load_controlnet` tells from names and shapes which kind a file holds. What it gives is set on
a picture with `set_cond_hint` and put into the conditions with `apply_controls`, which are copied
for it: the model itself is never changed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_patched.controlnet import cldm
from ldm_patched.modules import utils
from ldm_patched.modules.control_base import ControlBase
from ldm_patched.modules.control_detection import (
    detect_control_config,
    is_control_lora,
    short_names,
)
from ldm_patched.modules.control_networks import ControlLora, ControlNet, T2IAdapter
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.file_kinds import likely_kind
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.weight_file import LazyWeights, WeightFile, open_weights
from ldm_patched.t2ia.adapter import Adapter, detect_adapter_config, from_original

__all__ = ["ControlLora", "ControlNet", "T2IAdapter", "apply_controls", "load_controlnet"]


def load_controlnet(
    ckpt_path: str | Path, model: Any = None, *, policy: DevicePolicy | None = None
) -> ControlBase:
    """The control in a file: a ControlNet, control-LoRA or T2I-Adapter, in any of its layouts.

    model: a ModelPatcher that it shall fit; None leaves that to the run. policy: devices and
    precisions; None detects them.
    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    policy = policy or DevicePolicy.detect()
    file = open_weights(ckpt_path)
    with utils.sound_shapes(file.name):
        control = _load(file, policy)
        if model is not None:
            control.check_fits(model.model)
    return control


def _load(file: WeightFile, policy: DevicePolicy) -> ControlBase:
    if is_control_lora(file):
        weights = {name: file[name] for name in file}
        return ControlLora(file.name, weights, policy.device, policy.unet_compute_dtype)
    adapter_names = from_original(list(file))
    adapter_config = detect_adapter_config(
        {ours: tuple(file.outline(name).shape) for name, ours in adapter_names.items()}
    )
    if adapter_config is not None:
        with torch.device("meta"):
            adapter = Adapter(adapter_config)
        patcher = _filled(file, adapter, adapter_names, "T2I-Adapter", policy)
        return T2IAdapter(file.name, patcher, policy.unet_compute_dtype)
    names = short_names(list(file))
    found = detect_control_config({ours: tuple(file.outline(n).shape) for n, ours in names.items()})
    if found is None or any(name.startswith(("task_embedding", "control_add_")) for name in file):
        raise _no_control(file)
    network = cldm.ControlNet(*found, device="meta")
    patcher = _filled(file, network, names, "ControlNet", policy)
    return ControlNet(file.name, patcher, policy.unet_compute_dtype)


def _filled(
    file: WeightFile, network: nn.Module, names: Mapping[str, str], part: str, policy: DevicePolicy
) -> ModelPatcher:
    """`network` with the file's weights in it. Raises CorruptModelFile if some are missing."""
    lazy = LazyWeights(file, dtype=policy.unet_compute_dtype, memory_format=policy.memory_format)
    weights = {ours: lazy.pop(name) for name, ours in names.items()}
    report = utils.load_weights(network, weights)
    utils.require_complete(report, file.name, part)
    network.eval().requires_grad_(False)
    return ModelPatcher(network, policy.device, policy.offload_device, budget=policy.budget)


def _no_control(file: WeightFile) -> UnsupportedModel:
    kind = likely_kind(file)
    if any(name.startswith("model.diffusion_model.") for name in file):
        kind = "a checkpoint", "Put it into models/checkpoints"
    if kind is not None and kind[0] != "a ControlNet":
        words, remedy = kind
        end = f"{remedy}, and choose a ControlNet" if remedy else "Choose a ControlNet"
        return UnsupportedModel(f"{file.name} looks like {words}, not like a ControlNet. {end}.")
    return UnsupportedModel(
        f"{file.name} is no control of a known kind; choose a ControlNet, a control-LoRA or a "
        "T2I-Adapter."
    )


# --- conditions -------------------------------------------------------------------------------


def apply_controls(
    conditions: Sequence[Sequence[Any]], control: ControlBase | None
) -> list[list[Any]]:
    """Conditions [[context, options], …] with `control`; the given ones stay as they are.

    Give positive and negative conditions the same control, so that they share a network call.
    """
    if control is None:
        return [list(condition) for condition in conditions]
    return [[context, {**options, "control": control}] for context, options in conditions]
