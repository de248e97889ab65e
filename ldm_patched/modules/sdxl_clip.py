"""The two text encoders of SDXL, side by side, and the refiner's single one.

"l" is CLIP ViT-L, padded with its end token; "g" is OpenCLIP ViT-bigG, padded with zeros. The
conditioning is the hidden states of both before the last layer, concatenated by width; the pooled
output is that of "g".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm_patched.modules.embeddings import EmbeddingFolder
from ldm_patched.modules.sd1_clip import (
    PENULTIMATE,
    Chunk,
    ClipTextModel,
    SDTokenizer,
    SingleClipModel,
    encode_chunks,
)

G_PAD = 0
Tokens = dict[str, list[Chunk]]
"""The chunks for each encoder, by its short name."""


@dataclass(frozen=True)
class SDXLTokenizer:
    """One prompt for both encoders: the same tokens, padded in two ways."""

    encoders: Mapping[str, SDTokenizer] = field(
        default_factory=lambda: {"l": SDTokenizer(), "g": SDTokenizer(pad=G_PAD, name="g")}
    )

    def tokenize_with_weights(self, text: str, embeddings: EmbeddingFolder | None = None) -> Tokens:
        """As SDTokenizer's, for "l" and "g"."""
        return {
            name: each.tokenize_with_weights(text, embeddings)
            for name, each in self.encoders.items()
        }


class SDXLClipModel(nn.Module):
    """Both encoders; their weights are under `clip_l.` and `clip_g.`."""

    def __init__(self, clip_l: ClipTextModel, clip_g: ClipTextModel) -> None:
        super().__init__()
        self.clip_l = clip_l
        self.clip_g = clip_g

    @torch.inference_mode()
    def encode_token_weights(
        self, tokens: Tokens, layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(cond (1, 77·n, L + G), pooled (1, P)), float32 on the encoders' device.

        layer: whose output the hidden states are; None is -2, the one before the last.
        """
        layer = PENULTIMATE if layer is None else layer
        hidden_l, _ = encode_chunks(self.clip_l, tokens["l"], layer)
        hidden_g, pooled = encode_chunks(self.clip_g, tokens["g"], layer, pad=G_PAD)
        length = min(hidden_l.shape[1], hidden_g.shape[1])
        return torch.cat([hidden_l[:, :length], hidden_g[:, :length]], dim=-1), pooled


class SDXLRefinerClipModel(SingleClipModel):
    """OpenCLIP ViT-bigG alone: the layer before the last, as it is."""

    name = "g"
    pad = G_PAD
    layer = PENULTIMATE
    final_norm = False
