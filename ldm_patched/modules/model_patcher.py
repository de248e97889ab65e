"""Adapters on a model: cheap clones that share the weights and differ in patches and options.

A clone's patches reach the shared model only between `patch_model` and `unpatch_model`. The
originals are set aside as they are, not recomputed, so afterwards they are back bit by bit;
when another clone is patched in, the one before is taken out first.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ldm_patched.modules import ops
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.weight_patches import WeightPatch, patched_weight
from ldm_patched.modules.weight_stream import transfer_to

if TYPE_CHECKING:
    from ldm_patched.modules.memory_budget import MemoryBudget

_MISSING = object()


@dataclass(slots=True)
class _Applied:
    """What is changed in the shared model now; one object for all clones."""

    by: object | None = None
    """The revision of the patches that are in; None if the model is as loaded."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)


class ModelPatcher:
    """A model with patches of its own."""

    def __init__(
        self,
        model: nn.Module,
        load_device: torch.device | str = "cpu",
        offload_device: torch.device | str = "cpu",
        size: int = 0,
        *,
        budget: "MemoryBudget | None" = None,
    ) -> None:
        """load_device: where it computes; offload_device: where it waits. size: bytes, 0: count.

        budget: who decides how much of it may be on the device; None: all of it.
        """
        self.model = model
        self.load_device = torch.device(load_device)
        self.offload_device = torch.device(offload_device)
        self.size = size
        self.residence = Residence(
            model,
            (transfer_to if budget is None else budget.transfer_to)(self.load_device),
            keeps_host=self.load_device != self.offload_device,
            budget=budget,
        )
        self.patches: dict[str, list[tuple[float, WeightPatch, float]]] = {}
        self.object_patches: dict[str, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self._revision = object()
        self._applied = _Applied()

    def clone(self) -> Self:
        """Another patcher of the same model: patches and options copied, weights shared."""
        other = type(self)(self.model, self.load_device, self.offload_device, self.size)
        other.residence = self.residence
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.object_patches = dict(self.object_patches)
        other.model_options = copy_options(self.model_options)
        other._revision = self._revision  # equal patches: switching to it costs nothing
        other._applied = self._applied
        return other

    def is_clone(self, other: object) -> bool:
        """Whether `other` shares this one's model."""
        return getattr(other, "model", None) is self.model

    def model_size(self) -> int:
        """Bytes of the weights and buffers."""
        if not self.size:
            self.size = sum(t.nbytes for t in self.model.state_dict().values())
        return self.size

    def memory_required(self, input_shape: tuple[int, ...]) -> int:
        """See BaseModel.memory_required."""
        return self.model.memory_required(input_shape)

    def model_dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.get_dtype()

    @property
    def current_device(self) -> torch.device:
        """Where the weights are now."""
        first = next(self.model.parameters(), None)
        return self.offload_device if first is None else first.device

    # --- options -----------------------------------------------------------------------------

    def set_model_sampler_cfg_function(
        self, function: Callable[..., Tensor], disable_cfg1_optimization: bool = False
    ) -> None:
        """Guidance by `function(args)`, or by `function(cond, uncond, cond_scale)`.

        The predictions are noise-like, x - denoised, and so is what it returns.
        disable_cfg1_optimization: call it at scale 1, too.
        """
        if len(inspect.signature(function).parameters) == 3:
            plain = function

            def function(args: Mapping[str, Any]) -> Tensor:
                return plain(args["cond"], args["uncond"], args["cond_scale"])

        self.model_options["sampler_cfg_function"] = function
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_post_cfg_function(
        self, function: Callable[[Mapping[str, Any]], Tensor]
    ) -> None:
        """One more function over the guided prediction."""
        self.model_options.setdefault("sampler_post_cfg_function", []).append(function)

    def set_model_unet_function_wrapper(self, function: Callable[..., Tensor]) -> None:
        """Call `function(apply_model, args)` in the place of the network."""
        self.model_options["model_function_wrapper"] = function

    def set_model_denoise_mask_function(self, function: Callable[..., Tensor]) -> None:
        """How a mask acts at each sigma."""
        self.model_options["denoise_mask_function"] = function

    def set_model_patch(self, patch: Callable[..., Any], name: str) -> None:
        """One more patch in transformer_options["patches"][name]; see attention.py."""
        options = self.model_options["transformer_options"]
        options.setdefault("patches", {}).setdefault(name, []).append(patch)

    def set_model_patch_replace(
        self,
        patch: Callable[..., Tensor],
        name: str,
        block_name: str,
        number: int,
        transformer_index: int | None = None,
    ) -> None:
        """The replacement of "attn1" or "attn2" in a block, or in one transformer block of it."""
        key: tuple[Any, ...] = (block_name, number)
        if transformer_index is not None:
            key = (*key, transformer_index)
        options = self.model_options["transformer_options"]
        options.setdefault("patches_replace", {}).setdefault(name, {})[key] = patch

    def set_model_attn1_patch(self, patch: Callable[..., Any]) -> None:
        """Before self-attention: f(n, context, value, extra_options) → the three."""
        self.set_model_patch(patch, "attn1_patch")

    def set_model_attn2_patch(self, patch: Callable[..., Any]) -> None:
        """Before cross-attention: f(n, context, value, extra_options) → the three."""
        self.set_model_patch(patch, "attn2_patch")

    def set_model_attn1_output_patch(self, patch: Callable[..., Tensor]) -> None:
        """After self-attention: f(n, extra_options) → n."""
        self.set_model_patch(patch, "attn1_output_patch")

    def set_model_attn2_output_patch(self, patch: Callable[..., Tensor]) -> None:
        """After cross-attention: f(n, extra_options) → n."""
        self.set_model_patch(patch, "attn2_output_patch")

    def set_model_attn1_replace(
        self, patch: Callable[..., Tensor], block_name: str, number: int, index: int | None = None
    ) -> None:
        """In the place of self-attention: f(q, k, v, extra_options) → the attention's output."""
        self.set_model_patch_replace(patch, "attn1", block_name, number, index)

    def set_model_attn2_replace(
        self, patch: Callable[..., Tensor], block_name: str, number: int, index: int | None = None
    ) -> None:
        """In the place of cross-attention: f(q, k, v, extra_options) → the attention's output."""
        self.set_model_patch_replace(patch, "attn2", block_name, number, index)

    def set_model_input_block_patch(self, patch: Callable[..., Tensor]) -> None:
        """After each input block: f(h, options) → h."""
        self.set_model_patch(patch, "input_block_patch")

    def set_model_output_block_patch(self, patch: Callable[..., Any]) -> None:
        """Before each output block: f(h, skip, options) → (h, skip)."""
        self.set_model_patch(patch, "output_block_patch")

    # --- objects -----------------------------------------------------------------------------

    def add_object_patch(self, name: str, obj: Any) -> None:
        """Put `obj` in the place of the model's attribute with the dotted `name`."""
        self.object_patches[name] = obj
        self._revision = object()

    def get_model_object(self, name: str) -> Any:
        """What the model has at the dotted `name` when this patcher's patches are in."""
        if name in self.object_patches:
            return self.object_patches[name]
        if name in self._applied.objects:  # another clone's object is in its place now
            return self._applied.objects[name]
        found: Any = self.model
        for part in name.split("."):
            found = getattr(found, part)
        return found

    # --- weights -----------------------------------------------------------------------------

    def add_patches(
        self,
        patches: Mapping[str, WeightPatch],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
    ) -> list[str]:
        """Add a patch to each named weight; the names that the model has, which alone are kept.

        Names are those of the model's state dict; see weight_patches for the patches.
        """
        own = set(self.model.state_dict().keys())
        known = [key for key in patches if key in own]
        for key in known:
            entry = (strength_patch, patches[key], strength_model)
            self.patches.setdefault(key, []).append(entry)
        if known:
            self._revision = object()
        return known

    @property
    def is_patched(self) -> bool:
        """Whether this patcher's very patches are in the model."""
        return self._applied.by is self._revision

    def patch_model(
        self, device_to: torch.device | str | None = None, working: int = 0, kept: int = 0
    ) -> nn.Module:
        """The model with this patcher's objects and weights in it, on `device_to` if given.

        working, kept: see Residence.enter. Raises torch.OutOfMemoryError; the model is on the
        host then, without patches.
        """
        anew = not self.is_patched
        try:
            if anew:
                self.unpatch_model()
                self._put_objects()
            self._move(device_to, working, kept)  # with the numbers that the objects bring along
            if anew:
                self._merge()
        except BaseException:
            self.residence.offload()  # putting back takes room, of which there may be none there
            self.unpatch_model()
            raise
        self._applied.by = self._revision
        return self.model

    def _put_objects(self) -> None:
        for name, obj in self.object_patches.items():
            owner, leaf = self._owner(name)
            self._applied.objects[name] = original = getattr(owner, leaf, _MISSING)
            self.residence.retire_all(original)
            _assign(owner, leaf, obj)

    def _merge(self) -> None:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for key, patches in self.patches.items():
            # Weights made in inference mode could not be watched for changes.
            with torch.inference_mode(False), torch.no_grad():
                weight = self._patched(tensors[key], patches)
                self._applied.weights[key] = tensors[key]
                self.residence.replace(key, weight, keeps_old=True)

    def _patched(self, own: Tensor, patches: list[tuple[float, WeightPatch, float]]) -> Tensor:
        """A new tensor like `own` with the patches, computed where the model computes."""
        here = self.residence.on_device(own)
        if own.dtype.itemsize > 1:
            return patched_weight(here, patches)
        return ops.compressed(
            patched_weight(ops.expanded(here, torch.float32, scale_of=own), patches), own.dtype
        )

    def unpatch_model(self, device_to: torch.device | str | None = None) -> None:
        """Put back whatever any clone's patches replaced; then move to `device_to` if given."""
        applied = self._applied
        applied.by = None  # first, and each forgotten once it is back: any of it can fail
        for key in list(applied.weights):
            self.residence.replace(key, applied.weights[key], keeps_old=False)
            del applied.weights[key]
        for name in list(applied.objects):
            owner, leaf = self._owner(name)
            self.residence.retire_all(getattr(owner, leaf, None))
            _assign(owner, leaf, applied.objects[name])
            del applied.objects[name]
        self._move(device_to)

    def _move(self, device: torch.device | str | None, working: int = 0, kept: int = 0) -> None:
        if device is None:
            return
        if torch.device(device) == self.load_device:
            self.residence.enter(working, kept)
        else:
            self.residence.offload()

    def _owner(self, name: str) -> tuple[Any, str]:
        """The object that has the attribute with the dotted name, and the attribute's own name."""
        *path, leaf = name.split(".")
        owner: Any = self.model
        for part in path:
            owner = getattr(owner, part)
        return owner, leaf


def _assign(owner: Any, name: str, value: Any) -> None:
    if value is _MISSING:
        delattr(owner, name)
        return
    if isinstance(owner, nn.Module) and name in owner._modules and not isinstance(value, nn.Module):
        del owner._modules[name]  # else nn.Module refuses what is no module
    setattr(owner, name, value)


def copy_options(options: Any) -> Any:
    """Dictionaries and lists copied all the way down, everything else shared."""
    if isinstance(options, dict):
        return {key: copy_options(value) for key, value in options.items()}
    if isinstance(options, list):
        return [copy_options(value) for value in options]
    return options
