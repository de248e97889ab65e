"""CLIP image encoders: a picture of the tower's own size in, hidden states and an embedding out.

Weight names are those of transformers' CLIPVisionModelWithProjection; `from_openclip` renames (and
splits) the `visual.*` layout of OpenCLIP. All sizes come from the weights, save the number of
heads and the activation, which no shape tells: ViT-H, ViT-g and bigG have 16 heads of odd width and
GELU, the others heads of 64 and the quick GELU of CLIP's first release.
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_patched.modules import ops, utils
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.file_kinds import likely_kind
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.sd1_clip import HEAD_SIZE, ClipLayer, rename_openclip
from ldm_patched.modules.weight_file import LazyWeights, WeightFile, open_weights
from ldm_patched.modules.weight_header import count_of

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that every CLIP was trained on, for red, green and blue in 0..1."""

NAMES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H", 1408: "ViT-g", 1664: "ViT-bigG"}
SIXTEEN_HEADS = frozenset({1280, 1408, 1664})


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """The dimensions of an image encoder. projection: width of the embedding, 0 without one."""

    width: int
    layers: int
    patch: int
    positions: int
    """Patches and one class token."""
    intermediate: int
    projection: int
    causal: ClassVar[bool] = False

    @property
    def heads(self) -> int:
        return 16 if self.width in SIXTEEN_HEADS else max(1, self.width // HEAD_SIZE)

    @property
    def activation(self) -> str:
        return "gelu" if self.width in SIXTEEN_HEADS else "quick_gelu"

    @property
    def image_size(self) -> int:
        """Width and height of the pictures, in pixels."""
        return isqrt(self.positions - 1) * self.patch

    @property
    def name(self) -> str:
        """What people call it, such as "ViT-H"."""
        return NAMES.get(self.width, f"a tower of width {self.width}")


@dataclass(frozen=True, slots=True)
class ClipVisionOutput:
    """What an image encoder makes of pictures; N is its number of positions, 257 for ViT-H."""

    last_hidden_state: Tensor
    """(B, N, width) of the last layer."""
    penultimate_hidden_states: Tensor
    """(B, N, width) of the layer before it, which IP-Adapter "plus" files are trained on."""
    image_embeds: Tensor
    """(B, projection); of the class token, normed and projected."""


class VisionEmbeddings(nn.Module):
    """A class token and the patches, plus positions."""

    def __init__(self, config: ClipVisionConfig, operations: Any, **placed: Any) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.class_embedding = nn.Parameter(torch.empty(width, **placed))
        self.patch_embedding = operations.Conv2d(
            3, width, patch, stride=patch, bias=False, **placed
        )
        self.position_embedding = operations.Embedding(config.positions, width, **placed)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, N, width)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, layers and the two norms, under the names that transformers uses."""

    def __init__(self, config: ClipVisionConfig, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config, operations, **placed)
        self.pre_layrnorm = operations.LayerNorm(config.width, **placed)  # spelt so in the files
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            ClipLayer(config, operations, **placed) for _ in range(config.layers)
        )
        self.post_layernorm = operations.LayerNorm(config.width, **placed)


class ClipVisionTower(nn.Module):
    """The network."""

    def __init__(
        self,
        config: ClipVisionConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        placed = {"dtype": dtype, "device": device}
        self.config = config
        self.vision_model = VisionTransformer(config, operations, **placed)
        self.visual_projection = (
            operations.Linear(config.width, config.projection, bias=False, **placed)
            if config.projection
            else nn.Identity()
        )

    def forward(self, pixels: Tensor) -> ClipVisionOutput:
        """pixels: (B, 3, S, S), normed by IMAGE_MEAN and IMAGE_STD, S the tower's image size."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"This image encoder takes (B, 3, {size}, {size}), got {tuple(pixels.shape)}."
            )
        model = self.vision_model
        x = before = model.pre_layrnorm(model.embeddings(pixels))
        for layer in model.encoder.layers:
            before, x = x, layer(x)
        embeds = self.visual_projection(model.post_layernorm(x[:, 0]))
        return ClipVisionOutput(x, before, embeds)


class ClipVisionModel:
    """An image encoder and where it runs."""

    def __init__(
        self,
        model: ClipVisionTower,
        *,
        load_device: torch.device | str = "cpu",
        offload_device: torch.device | str = "cpu",
        budget: MemoryBudget | None = None,
        name: str = "The image encoder",
    ) -> None:
        """As ModelPatcher. name: of the file."""
        self.model = model
        self.name = name
        self.patcher = ModelPatcher(model, load_device, offload_device, budget=budget)

    @property
    def config(self) -> ClipVisionConfig:
        return self.model.config

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> ClipVisionOutput:
        """See ClipVisionTower.forward; pixels of any device and precision.

        Raises CorruptModelFile for weights that are no numbers: reading them all when a file is
        opened would take longer than to look at what comes out.
        """
        device = self.patcher.load_device
        self.patcher.patch_model(device)
        dtype = self.model.vision_model.embeddings.class_embedding.dtype
        out = self.model(pixels.to(device, dtype))
        seen = torch.cat([out.penultimate_hidden_states.flatten(), out.image_embeds.flatten()])
        if not bool(seen.isfinite().all()) and not utils.is_sound(self.model):
            raise utils.not_numbers(self.name, "image encoder")
        return out


# --- Weights ----------------------------------------------------------------------------------

OPENCLIP_LAYER = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
OPENCLIP_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
OTHER_HALF = re.compile(
    r"^(text_model\.|text_projection|logit_scale|token_embedding|positional_embedding|ln_final|"
    r"transformer\.|attn_mask|input_resolution|context_length|vocab_size)|position_ids$"
)
"""What files of a whole CLIP hold besides the image encoder."""


def from_openclip(weights: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under OpenCLIP's `visual.*` names, moved out of `weights`, under the tower's names.

    See rename_openclip; other names stay as they are.
    """
    projection = {"visual.proj": "visual_projection.weight"}
    root = "vision_model.encoder.layers"
    return rename_openclip(weights, OPENCLIP_LAYER, root, OPENCLIP_NAMES, projection)


def detect_config(shapes: Mapping[str, tuple[int, ...]]) -> ClipVisionConfig | None:
    """The dimensions of an image encoder in either layout; None if it is not one."""
    is_openclip = "visual.conv1.weight" in shapes
    if is_openclip:
        patch = shapes["visual.conv1.weight"]
        positions = shapes.get("visual.positional_embedding")
        inner = shapes.get("visual.transformer.resblocks.0.mlp.c_fc.weight")
        projection = shapes.get("visual.proj", (0, 0))[1]
        layer = r"visual\.transformer\.resblocks\.(\d+)\."
    else:
        root = "vision_model.embeddings"
        patch = shapes.get(f"{root}.patch_embedding.weight", ())
        positions = shapes.get(f"{root}.position_embedding.weight")
        inner = shapes.get("vision_model.encoder.layers.0.mlp.fc1.weight")
        projection = shapes.get("visual_projection.weight", (0, 0))[0]
        layer = r"vision_model\.encoder\.layers\.(\d+)\."
    if len(patch) != 4 or not (positions and inner):
        return None
    numbers = {int(match[1]) for name in shapes if (match := re.match(layer, name))}
    return ClipVisionConfig(
        width=patch[0],
        layers=count_of(numbers),
        patch=patch[2],
        positions=positions[0],
        intermediate=inner[0],
        projection=projection,
    )


def load(path: str | Path, policy: DevicePolicy | None = None) -> ClipVisionModel:
    """The image encoder in a file, in the place and precision of the text encoders.

    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    return load_tower(open_weights(path), policy or DevicePolicy.detect())


def load_tower(file: WeightFile, policy: DevicePolicy) -> ClipVisionModel:
    """As `load`, from a file that is open."""
    with utils.sound_shapes(file.name):
        config = detect_config({name: tuple(file.outline(name).shape) for name in file})
        with torch.device("meta"):
            tower = None if config is None else ClipVisionTower(config)
    if tower is None:
        kind = likely_kind(file)
        found = f" It looks like {kind[0]}." if kind and "image encoder" not in kind[0] else ""
        raise UnsupportedModel(
            f"{file.name} holds no CLIP image encoder.{found} Put clip_vision_vit_h.safetensors "
            "into models/clip_vision."
        )
    lazy = LazyWeights(file, dtype=policy.text_encoder_dtype)
    weights = from_openclip({n: lazy.pop(n) for n in list(lazy) if not OTHER_HALF.search(n)})
    report = utils.load_weights(tower, weights)
    utils.require_complete(report, file.name, "image encoder")
    return ClipVisionModel(
        tower.eval().requires_grad_(False),
        load_device=policy.text_encoder_device,
        offload_device=policy.offload_device,
        budget=policy.budget,
        name=file.name,
    )
