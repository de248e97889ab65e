"""A checkpoint's text encoders with their tokenizer: what turns prompts into conditions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm_patched.modules import utils
from ldm_patched.modules.clip_tokenizer import END_TOKEN
from ldm_patched.modules.embeddings import EmbeddingFolder
from ldm_patched.modules.file_kinds import IGNORED
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.sd1_clip import CHUNK, ClipTextModel, detect_clip_config, from_openclip
from ldm_patched.modules.sdxl_clip import Tokens
from ldm_patched.modules.supported_models import BASE
from ldm_patched.modules.weight_file import LazyWeights, WeightFile
from ldm_patched.modules.weight_patches import WeightPatch

ACTIVATIONS = {"l": "quick_gelu"}
"""Of the encoder with this short name; the OpenCLIP ones use the exact GELU."""
H_LAYERS = 24


class CLIP:
    """Text encoders with their tokenizer. Clones share the weights, and differ in patches."""

    def __init__(
        self,
        cond_stage_model: nn.Module,
        tokenizer: Any,
        *,
        load_device: torch.device | str = "cpu",
        offload_device: torch.device | str = "cpu",
        load_report: LoadReport | None = None,
        embeddings: EmbeddingFolder | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        """cond_stage_model, tokenizer: see BASE.clip_model and BASE.tokenizer.

        embeddings: the learned words that prompts may name; None knows of none, and reads
        `embedding:name` as ordinary text.
        """
        self.cond_stage_model = cond_stage_model
        self.tokenizer = tokenizer
        self.patcher = ModelPatcher(cond_stage_model, load_device, offload_device, budget=budget)
        self.layer_idx: int | None = None
        self.load_report = load_report or LoadReport()
        self.embeddings = embeddings
        self.sources: Mapping[str, frozenset[str]] = {}
        """Names of the files that the weights of each encoder are from; see `clip_l` and so on."""

    def clone(self) -> Self:
        """Another with the same weights, patches and layer; patches added to it are its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.patcher = self.patcher.clone()
        return other

    def add_patches(
        self,
        patches: dict[str, WeightPatch],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
    ) -> list[str]:
        """See ModelPatcher.add_patches; names begin with `clip_l.`, `clip_g.` or `clip_h.`."""
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def clip_layer(self, layer_idx: int | None) -> None:
        """Take hidden states of this layer: -1 the last, -2 the one before it, and so on.

        None, as loaded, is the one that the family was trained with.
        """
        self.layer_idx = layer_idx

    def tokenize(self, text: str) -> Tokens:
        """Chunks of 77 (token, weight) pairs for each encoder.

        Raises VocabularyMissing, and for embeddings what EmbeddingFolder.vectors raises.
        """
        return self.tokenizer.tokenize_with_weights(text, self.embeddings)

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """(cond (1, 77·n, C), pooled (1, P)), or cond alone; float32, on the encoders' device."""
        self.patcher.patch_model(self.patcher.load_device)
        cond, pooled = self.cond_stage_model.encode_token_weights(tokens, self.layer_idx)
        return (cond, pooled) if return_pooled else cond

    def encode(self, text: str) -> Tensor:
        """The conditioning of a prompt, (1, 77·n, C)."""
        cond, _ = self.encode_from_tokens(self.tokenize(text))
        return cond


def load_clip(
    file: WeightFile,
    config: BASE,
    policy: DevicePolicy,
    embedding_directory: str | Path | None = None,
) -> CLIP | None:
    """The text encoders of a checkpoint; None if it lacks one of them altogether.

    embedding_directory: of the learned words that prompts may name. Raises CorruptModelFile.
    """
    if not config.text_encoder_prefixes:
        return None
    encoders: dict[str, ClipTextModel] = {}
    unexpected: list[str] = []
    sources: dict[str, frozenset[str]] = {}
    for name, prefix in config.text_encoder_prefixes.items():
        found = _load_text_encoder(file, prefix, name, policy)
        if found is None:
            return None
        encoders[name], report = found
        unexpected += [prefix + key for key in report.unexpected]
        sources[f"clip_{name}"] = frozenset(map(file.source_of, _keys(file, prefix)))
    embeddings = None
    if embedding_directory is not None:
        widths = {name: encoder.config.width for name, encoder in encoders.items()}
        embeddings = EmbeddingFolder(embedding_directory, widths)
    clip = CLIP(
        config.clip_model(encoders, _cut(file, config, encoders)).eval().requires_grad_(False),
        config.tokenizer(),
        load_device=policy.text_encoder_device,
        offload_device=policy.offload_device,
        budget=policy.budget,
        load_report=LoadReport(unexpected=tuple(unexpected)),
        embeddings=embeddings,
    )
    clip.sources = sources
    return clip


def _load_text_encoder(
    file: WeightFile, prefix: str, name: str, policy: DevicePolicy
) -> tuple[ClipTextModel, LoadReport] | None:
    names = {_in_text_model(key[len(prefix) :]): key for key in _keys(file, prefix)}
    is_openclip = "token_embedding.weight" in names
    shapes = {ours: tuple(file.outline(key).shape) for ours, key in names.items()}
    sources = {file.source_of(key) for key in names.values()} - {file.name}
    words = " with ".join([file.name, *sorted(sources)])
    with utils.sound_shapes(words):
        config = detect_clip_config(shapes, ACTIVATIONS.get(name, "gelu"))
        if config is not None and (config.vocabulary <= END_TOKEN or config.length < CHUNK):
            raise ValueError("There are tokens or places without a row.")
        with torch.device("meta"):
            model = None if config is None else ClipTextModel(config)
    if model is None:
        return None
    lazy = LazyWeights(file, prefix=prefix, dtype=policy.text_encoder_dtype)
    weights = {ours: lazy.pop(key) for ours, key in names.items()}
    report = utils.load_weights(model, from_openclip(weights) if is_openclip else weights)
    utils.require_complete(report, words, "text encoders")
    return model, report


def _keys(file: WeightFile, prefix: str) -> Iterator[str]:
    return (key for key in file if key.startswith(prefix) and not IGNORED.search(key))


def _in_text_model(name: str) -> str:
    """The name below `text_model.`, where newer versions of transformers leave that out."""
    loose = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{name}" if loose else name


def _cut(file: WeightFile, config: BASE, encoders: dict[str, ClipTextModel]) -> int:
    """How many layers of ViT-H are not in the file: transformers' layout leaves the last one out,
    which Stable Diffusion 2 never reads."""
    if "h" not in encoders:
        return 0
    is_openclip = f"{config.text_encoder_prefixes['h']}token_embedding.weight" in file
    return 0 if is_openclip else int(encoders["h"].config.layers != H_LAYERS)
