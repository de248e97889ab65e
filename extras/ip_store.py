"""What is kept of IP-Adapters: image encoders, adapters, keys and values of pictures."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from extras.ip_networks import SDXL_WIDTH, IPAdapterModel
from ldm_patched.modules import clip_vision as vision
from ldm_patched.modules.errors import CorruptModelFile, NotFinite, UnsupportedModel
from ldm_patched.modules.file_kinds import likely_kind
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.utils import is_sound, load_torch_file, not_numbers, sound_shapes

IMAGE_SIZE = 224
PICTURES_KEPT = 32
ADAPTERS_KEPT = 4  # pictures and faces of two families
TOWERS_KEPT = 2

ImageConds = tuple[list[Tensor], list[Tensor]]
"""Keys and values in turn for each layer, (1, T, C) each: of a picture, and of no picture."""


def clip_preprocess(image: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """(B, H, W, 3) in 0..1 → (B, 3, H, W), normed by CLIP's mean and deviation of each colour.

    Raises WrongImageSize unless height and width are `size`, 224 for every released tower.
    """
    numbers = {"device": image.device, "dtype": image.dtype}
    mean = torch.tensor(vision.IMAGE_MEAN, **numbers).view(1, 3, 1, 1)
    std = torch.tensor(vision.IMAGE_STD, **numbers).view(1, 3, 1, 1)
    image = image.movedim(-1, 1)
    if tuple(image.shape[-2:]) != (size, size):
        height, width = image.shape[-2:]
        raise WrongImageSize(
            f"The image encoder takes {size} × {size} pixels, got {width} × {height}."
        )
    return (image - mean) / std


class WrongImageSize(ValueError, AssertionError):
    """A picture is not of the image encoder's size."""


def squash(image: np.ndarray, size: int = IMAGE_SIZE) -> Tensor:
    """uint8 (H, W, 3) of any size → float32 (1, size, size, 3) in 0..1, without regard to ratio."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).float()[None] / 255.0
    if image.shape[:2] == (size, size):
        return pixels
    planes = F.interpolate(pixels.movedim(-1, 1), size=(size, size), mode="bicubic", antialias=True)
    return planes.clamp_(0.0, 1.0).movedim(1, -1)


@dataclass(slots=True)
class _Adapter:
    """A loaded adapter. `tower` is the path of the image encoder that it came with.

    offered: the negative that it came with; `negative` is that one if it fits.
    """

    stamp: tuple[int, int]
    ip_adapter: IPAdapterModel
    image_proj_model: ModelPatcher
    ip_layers: ModelPatcher
    tower: str
    offered: Tensor | None
    negative: Tensor | None
    ip_unconds: list[Tensor] | None = None


class IPAdapterStore:
    """Image encoders, adapters and the keys and values of pictures, by what they come from."""

    def __init__(
        self, policy: DevicePolicy | None = None, pictures_kept: int = PICTURES_KEPT
    ) -> None:
        """policy: devices and precisions; None detects them when first needed."""
        self._policy = policy
        self._pictures_kept = pictures_kept
        self._towers: dict[str, tuple[tuple[int, int], vision.ClipVisionModel]] = {}
        self._negatives: dict[str, tuple[tuple[int, int], Tensor]] = {}
        self._adapters: dict[str, _Adapter] = {}
        self._pictures: OrderedDict[tuple[str, bytes], list[Tensor]] = OrderedDict()
        self.runs = 0
        """How often an image encoder has run."""

    @property
    def policy(self) -> DevicePolicy:
        if self._policy is None:
            self._policy = DevicePolicy.detect()
        return self._policy

    def clear(self) -> None:
        """Forget everything, to make room."""
        for kept in (self._towers, self._negatives, self._adapters, self._pictures):
            kept.clear()

    def load_ip_adapter(
        self,
        clip_vision_path: Any,
        ip_negative_path: Any,
        ip_adapter_path: Any,
        on_reading: Callable[[str], None] = lambda _: None,
    ) -> None:
        """See the function of this name. on_reading: told the path of a large file to be read."""
        if isinstance(clip_vision_path, str | Path):
            self._load_tower(str(clip_vision_path), on_reading)
        if isinstance(ip_negative_path, str | Path):
            self._load_negative(str(ip_negative_path))
        if not isinstance(ip_adapter_path, str | Path):
            return
        path = str(ip_adapter_path)
        stamp = _stamp(path)
        known = self._adapters.get(path)
        tower = str(clip_vision_path) if clip_vision_path else next(iter(self._towers), "")
        negative = self._negatives.get(str(ip_negative_path), (None, None))[1]
        if known and known.stamp == stamp and known.tower == tower and known.offered is negative:
            return
        self._forget(path)
        on_reading(path)
        for oldest in list(self._adapters)[: 1 - ADAPTERS_KEPT]:
            self._forget(oldest)
        with sound_shapes(Path(path).name):
            self._adapters[path] = self._load_adapter(path, stamp, tower, negative)

    def _forget(self, path: str) -> None:
        self._adapters.pop(path, None)
        for key in [key for key in self._pictures if key[0] == path]:
            del self._pictures[key]

    def _load_tower(self, path: str, on_reading: Callable[[str], None]) -> None:
        stamp = _stamp(path)
        if path not in self._towers or self._towers[path][0] != stamp:
            on_reading(path)
            for oldest in [path, *list(self._towers)[: 1 - TOWERS_KEPT]]:
                self._forget_tower(oldest)
            self._towers[path] = stamp, vision.load(path, self.policy)

    def _forget_tower(self, path: str) -> None:
        """With the adapters whose pictures it has seen."""
        self._towers.pop(path, None)
        for adapter in [name for name, kept in self._adapters.items() if kept.tower == path]:
            self._forget(adapter)

    def _load_negative(self, path: str) -> None:
        stamp = _stamp(path)
        if path in self._negatives and self._negatives[path][0] == stamp:
            return
        tensors = load_torch_file(path)
        found = tensors.get("data", next(iter(tensors.values()), None))
        if len(tensors) != 1 or found is None or found.ndim not in (2, 3) or not found.numel():
            raise UnsupportedModel(
                f"{Path(path).name} is no negative image embedding, which is one tensor of tokens; "
                f"it holds {len(tensors)}. Choose fooocus_ip_negative.safetensors."
            )
        if not bool(found.isfinite().all()):
            raise not_numbers(Path(path).name, "negative image embedding")
        self._negatives[path] = stamp, found.reshape(-1, *found.shape[-2:])[:1]

    def _load_adapter(
        self, path: str, stamp: tuple[int, int], tower: str, negative: Tensor | None
    ) -> _Adapter:
        name = Path(path).name
        parts = _parts_of(load_torch_file(path), name)
        proj, layers = parts["image_proj"], parts["ip_adapter"]
        plus = "latents" in proj
        width = next(iter(layers.values())).shape[1]
        features = proj["proj_in.weight" if plus else "proj.weight"].shape[1]
        self._check_tower(name, tower, plus, features)
        tokens = proj["latents"].shape[1] if plus else proj["proj.weight"].shape[0] // width
        try:
            model = IPAdapterModel(
                parts,
                plus=plus,
                cross_attention_dim=width,
                clip_embeddings_dim=features,
                clip_extra_context_tokens=tokens,
                sdxl_plus=plus and width == SDXL_WIDTH,
            )
        except CorruptModelFile as error:
            raise CorruptModelFile(f"{name}: {error}") from error
        # The small projection stays exact; keys and values are made in the network's precision.
        model.image_proj_model.float()
        model.ip_layers.to(self.policy.unet_compute_dtype)
        where = {
            "load_device": self.policy.device,
            "offload_device": self.policy.offload_device,
            "budget": self.policy.budget,
        }
        return _Adapter(
            stamp,
            model,
            ModelPatcher(model.image_proj_model, **where),
            ModelPatcher(model.ip_layers, **where),
            tower,
            negative,
            negative if negative is not None and negative.shape[1:] == (tokens, width) else None,
        )

    def _check_tower(self, name: str, tower: str, plus: bool, features: int) -> None:
        if tower not in self._towers:
            raise UnsupportedModel(
                f"{name} needs an image encoder; put clip_vision_vit_h.safetensors into "
                "models/clip_vision."
            )
        config = self._towers[tower][1].config
        found = config.width if plus else config.projection
        if found != features:
            what = "hidden states" if plus else "embeddings"
            raise UnsupportedModel(
                f"{name} takes image {what} {features} wide, but {Path(tower).name} "
                f"({config.name}) gives {found}. Choose the image encoder made for this adapter."
            )

    @torch.inference_mode()
    def preprocess(self, img: np.ndarray, ip_adapter_path: Any) -> ImageConds:
        """See the function of this name."""
        path = str(ip_adapter_path)
        entry = self._adapters[path]
        key = path, hashlib.sha256(repr(img.shape).encode() + img.tobytes()).digest()
        if key not in self._pictures:
            tower = self._towers[entry.tower][1]
            size = tower.config.image_size
            pixels = clip_preprocess(squash(img, size), size)
            self._pictures[key] = self._keys_values(path, self._tokens(entry, pixels))
        if entry.ip_unconds is None:
            entry.ip_unconds = self._keys_values(path, self._negative_tokens(entry))
        self._pictures.move_to_end(key)
        conds = self._pictures[key]
        while len(self._pictures) > self._pictures_kept:
            self._pictures.popitem(last=False)
        return conds, entry.ip_unconds

    def _tokens(self, entry: _Adapter, pixels: Tensor) -> Tensor:
        self.runs += 1
        try:
            out = self._towers[entry.tower][1].encode(pixels)
        except CorruptModelFile:
            self._forget_tower(entry.tower)
            raise
        plus = entry.ip_adapter.plus
        return self._project(entry, out.penultimate_hidden_states if plus else out.image_embeds)

    def _project(self, entry: _Adapter, features: Tensor) -> Tensor:
        network = entry.image_proj_model.patch_model(entry.image_proj_model.load_device)
        return network(features.to(entry.image_proj_model.load_device, torch.float32))

    def _negative_tokens(self, entry: _Adapter) -> Tensor:
        """The negative embedding if it fits, else what the adapter makes of no picture: zeros."""
        if entry.negative is not None:
            return entry.negative
        config = self._towers[entry.tower][1].config
        if not entry.ip_adapter.plus:
            return self._project(entry, torch.zeros(1, config.projection))
        return self._tokens(entry, torch.zeros(1, 3, config.image_size, config.image_size))

    def _keys_values(self, path: str, tokens: Tensor) -> list[Tensor]:
        """Raises CorruptModelFile or NotFinite, here where it is known whose numbers they are."""
        entry = self._adapters[path]
        patcher = entry.ip_layers
        made = patcher.patch_model(patcher.load_device)(tokens.to(patcher.load_device))
        if patcher.offload_device != patcher.load_device:
            patcher.residence.offload()
            entry.image_proj_model.residence.offload()
        if not bool(torch.stack([tensor.float().sum() for tensor in made]).isfinite().all()):
            self._forget(path)
            name = Path(path).name
            if not is_sound(entry.ip_adapter):
                raise not_numbers(name, "IP-Adapter")
            raise NotFinite(
                f"{name} gave invalid numbers for this picture; start Easel with --all-in-fp32, "
                "or take that image prompt out."
            )
        return made


def _stamp(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def _parts_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """A file's two parts. Raises UnsupportedModel if it is no adapter of a known kind."""
    parts = {
        part: {
            k.removeprefix(f"{part}."): w for k, w in tensors.items() if k.startswith(f"{part}.")
        }
        for part in ("image_proj", "ip_adapter")
    }
    proj, layers = parts["image_proj"], parts["ip_adapter"]
    if not proj or not layers:
        kind = likely_kind(tensors)
        words = f" It looks like {kind[0]}." if kind and "IP-Adapter" not in kind[0] else ""
        raise UnsupportedModel(
            f"{name} holds no IP-Adapter.{words} Put IP-Adapter files into models/ipadapter."
        )
    known = "proj.weight" in proj or {"latents", "proj_in.weight"} <= proj.keys()
    if not known or not any(k.endswith("to_k_ip.weight") for k in layers):
        raise UnsupportedModel(
            f"{name} is an IP-Adapter of a kind that is not supported, such as FaceID or "
            "full-face. Choose a plain, plus or plus-face one."
        )
    return parts
