"""CLIP text encoders and how prompts are cut for them.

One network serves the text encoders of every family: its weight names are those of transformers'
CLIPTextModel, and `from_openclip` renames (and splits) the weights of the OpenCLIP layout. Widths
and depth come from the weights; heads are 64 wide.

Prompts longer than 75 tokens are cut into chunks that are encoded apart and joined. Tokens travel
as chunks of (id, weight) pairs, so that emphasis has its place from the tokenizer to the encoder.
"""

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.attention_kernels import attend
from ldm_patched.modules import ops
from ldm_patched.modules.clip_tokenizer import END_TOKEN, START_TOKEN, clip_tokenizer
from ldm_patched.modules.embedding_names import split_references
from ldm_patched.modules.embeddings import EmbeddingFolder
from ldm_patched.modules.prompt_weights import Weighted, read_weights
from ldm_patched.modules.weight_header import count_of

CHUNK = 77
WORDS_PER_CHUNK = CHUNK - 2  # a start and an end token around them
HEAD_SIZE = 64
LAST, PENULTIMATE = -1, -2

Token = int | Tensor
"""An id of the vocabulary, or a learned word's vector (width,) in the place of one's embedding."""
Chunk = list[tuple[Token, float]]
"""77 (token, weight) pairs; weight 1.0 leaves a token as it is."""


# --- Tokens -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SDTokenizer:
    """Prompts to chunks. pad: the id that fills a chunk after its end token.

    name: the encoder's short name, by which learned words have vectors for it.
    """

    pad: int = END_TOKEN
    name: str = "l"

    def tokenize_with_weights(
        self, text: str, embeddings: EmbeddingFolder | None = None
    ) -> list[Chunk]:
        """At least one chunk of 77; emphasis and BREAK are read as prompt_weights says.

        A word is never cut in two unless it is longer than a chunk. embeddings: whose learned
        words `embedding:name` means; without them it is ordinary text. Raises VocabularyMissing,
        and what EmbeddingFolder.vectors raises.
        """
        chunks: list[Chunk] = []
        for part in read_weights(text):
            if part:
                chunks += [self.frame(tokens) for tokens in self._packed(part, embeddings)]
        return chunks or [self.frame(())]

    def _words(self, text: str, embeddings: EmbeddingFolder | None) -> Iterator[Sequence[Token]]:
        """The tokens of each word, learned ones among them."""
        if embeddings is None:
            yield from clip_tokenizer().encode_words(text)
            return
        for words, name in split_references(text, embeddings.has):
            if name is None:
                yield from clip_tokenizer().encode_words(words)
            else:
                yield list(embeddings.vectors(name, self.name))

    def _packed(
        self, part: Weighted, embeddings: EmbeddingFolder | None
    ) -> list[list[tuple[Token, float]]]:
        """Tokens of at most 75 each, in order."""
        room: list[list[tuple[Token, float]]] = [[]]
        for words, weight in part:
            for word in self._words(words, embeddings):
                if len(word) <= WORDS_PER_CHUNK < len(room[-1]) + len(word):
                    room.append([])
                for token in word:
                    if len(room[-1]) == WORDS_PER_CHUNK:
                        room.append([])
                    room[-1].append((token, weight))
        return room

    def frame(self, tokens: Sequence[tuple[Token, float]]) -> Chunk:
        """At most 75 tokens between a start and an end token, filled up to 77."""
        framed: Chunk = [(START_TOKEN, 1.0), *tokens, (END_TOKEN, 1.0)]
        return framed + [(self.pad, 1.0)] * (CHUNK - len(framed))


Learned = Mapping[tuple[int, int], Tensor]
"""Vectors (width,) of learned words by (row, column) of a batch of ids."""

PLACEHOLDER = 0
"""The id where a learned word stands: any but the end token, whose place is looked for."""


# --- Network ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """The dimensions of a text encoder. projection: width of the pooled output, 0 without one."""

    width: int
    layers: int
    vocabulary: int
    length: int
    intermediate: int
    projection: int = 0
    activation: str = "quick_gelu"
    causal: ClassVar[bool] = True

    @property
    def heads(self) -> int:
        return self.width // HEAD_SIZE


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU that CLIP's first release was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class ClipAttention(nn.Module):
    """Self-attention; causal in the text encoders, not in the image encoders."""

    def __init__(self, config: Any, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.heads = config.heads
        self.causal = config.causal
        width = config.width
        self.q_proj = operations.Linear(width, width, **placed)
        self.k_proj = operations.Linear(width, width, **placed)
        self.v_proj = operations.Linear(width, width, **placed)
        self.out_proj = operations.Linear(width, width, **placed)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → the same shape."""
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(q, k, v, causal=self.causal)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class ClipMlp(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self, config: Any, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(config.width, config.intermediate, **placed)
        self.fc2 = operations.Linear(config.intermediate, config.width, **placed)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class ClipLayer(nn.Module):
    """Pre-norm transformer layer of a text encoder, or of an image encoder (clip_vision)."""

    def __init__(self, config: Any, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.layer_norm1 = operations.LayerNorm(config.width, **placed)
        self.self_attn = ClipAttention(config, operations, **placed)
        self.layer_norm2 = operations.LayerNorm(config.width, **placed)
        self.mlp = ClipMlp(config, operations, **placed)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: ClipTextConfig, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.token_embedding = operations.Embedding(config.vocabulary, config.width, **placed)
        self.position_embedding = operations.Embedding(config.length, config.width, **placed)

    def forward(self, ids: Tensor, learned: Learned | None = None) -> Tensor:
        """(B, N) ids → (B, N, C). learned: vectors in the place of tokens."""
        tokens = self.token_embedding(ids)
        for (row, column), vector in (learned or {}).items():
            tokens[row, column] = vector.to(tokens)
        return tokens + self.position_embedding.weight[: ids.shape[1]]


class ClipTextTransformer(nn.Module):
    """Embeddings, layers and the final norm, under the names that transformers uses."""

    def __init__(self, config: ClipTextConfig, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config, operations, **placed)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            ClipLayer(config, operations, **placed) for _ in range(config.layers)
        )
        self.final_layer_norm = operations.LayerNorm(config.width, **placed)


class ClipTextModel(nn.Module):
    """A CLIP text encoder with, if the config says so, the projection of its pooled output."""

    def __init__(
        self,
        config: ClipTextConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        placed = {"dtype": dtype, "device": device}
        self.config = config
        self.text_model = ClipTextTransformer(config, operations, **placed)
        self.text_projection = (
            operations.Linear(config.width, config.projection, bias=False, **placed)
            if config.projection
            else None
        )

    def forward(
        self,
        ids: Tensor,
        layer: int = PENULTIMATE,
        *,
        final_norm: bool = False,
        learned: Learned | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(hidden states (B, N, C), pooled (B, P)) of token ids (B, N).

        layer: which layer's output the hidden states are; -1 the last, -2 the one before it, and
        the first for one that lies before it. final_norm: apply the final norm to them. pooled: of
        the last layer always, at each row's first end token. learned: vectors in the place of
        tokens, for inference alone.
        """
        layers = self.text_model.encoder.layers
        wanted = max(0, len(layers) + layer)
        x = self.text_model.embeddings(ids, learned)
        hidden = x
        for index, block in enumerate(layers):
            x = block(x)
            if index == wanted:
                hidden = x
        last = self.text_model.final_layer_norm(x)
        if final_norm:
            hidden = self.text_model.final_layer_norm(hidden)
        ends = (ids == END_TOKEN).int().argmax(dim=-1)
        pooled = last[torch.arange(len(ids), device=ids.device), ends]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return hidden, pooled


# --- Weights ----------------------------------------------------------------------------------

OPENCLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
OPENCLIP_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPENCLIP_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}


def from_openclip(weights: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under OpenCLIP's names, moved out of `weights`, under this network's names.

    See rename_openclip; other names stay as they are.
    """
    projection = {"text_projection": "text_projection.weight"}
    root = "text_model.encoder.layers"
    return rename_openclip(weights, OPENCLIP_LAYER, root, OPENCLIP_NAMES, projection)


def rename_openclip(
    weights: MutableMapping[str, Tensor],
    layer: re.Pattern[str],
    root: str,
    names: Mapping[str, str],
    projection: Mapping[str, str],
) -> dict[str, Tensor]:
    """`weights`, moved out of it, under new names: layers that match `layer` under `root`.

    The joint input projection of a layer becomes three views of it; what `projection` names, which
    OpenCLIP applies from the right, is viewed transposed.
    """
    renamed: dict[str, Tensor] = {}
    for name in list(weights):
        tensor = weights.pop(name)
        match = layer.fullmatch(name.replace("in_proj_", "in_proj."))
        if name in projection:
            renamed[projection[name]] = tensor.t()
        elif match and match[2] == "attn.in_proj":
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{root}.{match[1]}.self_attn.{part}_proj.{match[3]}"] = third
        elif match and match[2] in OPENCLIP_PARTS:
            renamed[f"{root}.{match[1]}.{OPENCLIP_PARTS[match[2]]}.{match[3]}"] = tensor
        else:
            renamed[names.get(name, name)] = tensor
    return renamed


def detect_clip_config(
    shapes: Mapping[str, tuple[int, ...]], activation: str = "quick_gelu"
) -> ClipTextConfig | None:
    """The dimensions of a text encoder in either layout, without prefix; None if it is not one."""
    tokens = shapes.get("text_model.embeddings.token_embedding.weight")
    if tokens is not None:
        positions = shapes.get("text_model.embeddings.position_embedding.weight")
        inner = shapes.get("text_model.encoder.layers.0.mlp.fc1.weight")
        layer = r"text_model\.encoder\.layers\.(\d+)\."
    else:
        tokens = shapes.get("token_embedding.weight")
        positions = shapes.get("positional_embedding")
        inner = shapes.get("transformer.resblocks.0.mlp.c_fc.weight")
        layer = r"transformer\.resblocks\.(\d+)\."
    projection = shapes.get("text_projection") or shapes.get("text_projection.weight", (0, 0))[::-1]
    if not (tokens and positions and inner) or tokens[1] % HEAD_SIZE:
        return None
    numbers = {int(match[1]) for name in shapes if (match := re.match(layer, name))}
    return ClipTextConfig(
        width=tokens[1],
        layers=count_of(numbers),
        vocabulary=tokens[0],
        length=positions[0],
        intermediate=inner[0],
        projection=projection[1],
        activation=activation,
    )


# --- Encoding ---------------------------------------------------------------------------------


def encode_chunks(
    model: ClipTextModel,
    chunks: Sequence[Chunk],
    layer: int = PENULTIMATE,
    *,
    final_norm: bool = False,
    pad: int = END_TOKEN,
) -> tuple[Tensor, Tensor]:
    """(hidden states (1, 77·n, C), pooled (1, P) of the first chunk), float32.

    pad: the id that fills the chunks, and so the empty prompt that weights are relative to.
    """
    device = model.text_model.final_layer_norm.weight.device
    weights = torch.tensor([[weight for _, weight in chunk] for chunk in chunks], device=device)
    weighted = bool((weights != 1).any())
    rows = [*chunks, SDTokenizer(pad).frame(())] if weighted else chunks
    learned = {
        (row, column): token
        for row, chunk in enumerate(rows)
        for column, (token, _) in enumerate(chunk)
        if isinstance(token, Tensor)
    }
    ids = torch.tensor(
        [[PLACEHOLDER if isinstance(t, Tensor) else t for t, _ in chunk] for chunk in rows],
        device=device,
    )
    hidden, pooled = model(ids, layer, final_norm=final_norm, learned=learned)
    hidden = hidden.float()
    if weighted:
        hidden = emphasise(hidden[:-1], hidden[-1:], weights)
    return hidden.reshape(1, -1, hidden.shape[-1]), pooled[:1].float()


def emphasise(hidden: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Hidden states (B, N, C) pushed away from the empty prompt's (1, N, C) by weights (B, N).

    z' = empty + w (z - empty), then each row is scaled back to the mean that it had, so that
    emphasis shifts what is said and not how loud the whole is. Rows of weight 1 are untouched;
    one whose mean would have to grow or shrink fourfold, or change its sign, stays unscaled.
    """
    weighted = empty + weights[..., None] * (hidden - empty)
    ratio = hidden.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    weighted = torch.where((ratio >= 0.25) & (ratio <= 4.0), weighted * ratio, weighted)
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, hidden, weighted)


class SingleClipModel(nn.Module):
    """One text encoder; its weights are under `clip_<name>.`. Families say how it is read."""

    name: ClassVar[str] = "l"
    pad: ClassVar[int] = END_TOKEN
    layer: ClassVar[int] = LAST
    final_norm: ClassVar[bool] = True
    """Whether the hidden states, of whichever layer, go through the final norm."""

    def __init__(self, encoder: ClipTextModel, cut: int = 0) -> None:
        """cut: how many layers the file leaves out at the end, since nobody reads them."""
        super().__init__()
        self.cut = cut
        self.add_module(f"clip_{self.name}", encoder)

    @torch.inference_mode()
    def encode_token_weights(
        self, tokens: Mapping[str, Sequence[Chunk]], layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(cond (1, 77·n, C), pooled (1, P)), float32 on the encoder's device.

        layer: whose output the hidden states are, -1 the last; None is the one that the family
        was trained with.
        """
        layer = self.layer if layer is None else layer
        return encode_chunks(
            self.get_submodule(f"clip_{self.name}"),
            tokens[self.name],
            min(layer + self.cut, LAST),
            final_norm=self.final_norm,
            pad=self.pad,
        )


class SD1ClipModel(SingleClipModel):
    """CLIP ViT-L of Stable Diffusion 1: the last layer's normed output."""


@dataclass(frozen=True)
class SingleTokenizer:
    """Prompts for one encoder. name: its short name."""

    name: str = "l"
    pad: int = END_TOKEN

    def tokenize_with_weights(
        self, text: str, embeddings: EmbeddingFolder | None = None
    ) -> dict[str, list[Chunk]]:
        """As SDTokenizer's, by the encoder's name."""
        tokenizer = SDTokenizer(self.pad, self.name)
        return {self.name: tokenizer.tokenize_with_weights(text, embeddings)}
