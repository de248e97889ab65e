"""The networks of an IP-Adapter: image features to tokens, tokens to keys and values.

Names and shapes are those of the released files; see `ip_adapter` for what is done with them.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from extras.resampler import Resampler
from ldm_patched.modules.errors import CorruptModelFile
from ldm_patched.modules.weight_header import count_of

# Widths of key and value of each layer, in the order of the files: way down, way up, middle.
SD_V12_CHANNELS = [320] * 4 + [640] * 4 + [1280] * 4 + [1280] * 6 + [640] * 6 + [320] * 6
SD_V12_CHANNELS += [1280] * 2
SD_XL_CHANNELS = [640] * 8 + [1280] * 40 + [1280] * 60 + [640] * 12 + [1280] * 20
SDXL_WIDTH, SD1_WIDTH = 2048, 768
"""Width of the text conditioning, which tells the two families with a table."""
LAYERS_LOOKED_FOR = 4096
DIM_HEAD = 64


class ImageProjModel(nn.Module):
    """One image embedding (B, clip_embeddings_dim) to a few tokens."""

    def __init__(
        self,
        cross_attention_dim: int = 1024,
        clip_embeddings_dim: int = 1024,
        clip_extra_context_tokens: int = 4,
    ) -> None:
        super().__init__()
        self.cross_attention_dim = cross_attention_dim
        self.clip_extra_context_tokens = clip_extra_context_tokens
        self.proj = nn.Linear(clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """(B, clip_embeddings_dim) → (B, clip_extra_context_tokens, cross_attention_dim)."""
        tokens = self.proj(image_embeds)
        shape = (-1, self.clip_extra_context_tokens, self.cross_attention_dim)
        return self.norm(tokens.reshape(shape))


class To_KV(nn.Module):  # noqa: N801 - the field's name
    """Image tokens to the keys and values of every cross-attention layer."""

    def __init__(self, cross_attention_dim: int) -> None:
        super().__init__()
        channels = SD_XL_CHANNELS if cross_attention_dim == SDXL_WIDTH else SD_V12_CHANNELS
        self.cross_attention_dim = cross_attention_dim
        layers = [nn.Linear(cross_attention_dim, width, bias=False) for width in channels]
        self.to_kvs = nn.ModuleList(layers)

    def load_state_dict_ordered(self, sd: Mapping[str, Tensor]) -> None:
        """Take `{i}.to_k_ip.weight` and `{i}.to_v_ip.weight` in the order of i, key before value.

        Widths are the weights' own. For the widths of text of SDXL and Stable Diffusion 1 they
        must be the table's. Raises CorruptModelFile that names what was expected and found.
        """
        weights: list[Tensor] = []
        for i in range(LAYERS_LOOKED_FOR):
            pair = [sd.get(f"{i}.to_{kind}_ip.weight") for kind in "kv"]
            if (pair[0] is None) != (pair[1] is None):
                lacks = "keys" if pair[0] is None else "values"
                raise CorruptModelFile(
                    f"The IP-Adapter is damaged: its layer {i} has no {lacks}. Download it again."
                )
            weights += [w for w in pair if w is not None]
        self._check(weights)
        self.to_kvs = nn.ModuleList()
        for weight in weights:
            with torch.device("meta"):
                layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            self.to_kvs.append(layer)

    def _check(self, weights: Sequence[Tensor]) -> None:
        tables = {SDXL_WIDTH: ("SDXL", SD_XL_CHANNELS), SD1_WIDTH: ("SD 1", SD_V12_CHANNELS)}
        family, table = tables.get(self.cross_attention_dim, ("", None))
        if not weights or (table is not None and len(weights) != len(table)):
            needed = f"{family} needs {len(table)}" if table else "there must be some"
            raise CorruptModelFile(
                f"The IP-Adapter holds {len(weights)} matrices for keys and values, but {needed}. "
                "Download it again, or choose another one."
            )
        for n, weight in enumerate(weights):
            width = table[n] if table else weights[n - n % 2].shape[0]
            expected = (width, self.cross_attention_dim)
            if tuple(weight.shape) != expected:
                kind = "values" if n % 2 else "keys"
                raise CorruptModelFile(
                    f"The {kind} of layer {n // 2} of the IP-Adapter have the shape "
                    f"{tuple(weight.shape)}; expected was {expected}. Choose another file."
                )

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(B, T, cross_attention_dim) → keys and values in turn, (B, T, width) each."""
        return [layer(tokens.to(layer.weight.dtype)) for layer in self.to_kvs]


class IPAdapterModel(nn.Module):
    """An adapter: image features to tokens, tokens to keys and values."""

    def __init__(
        self,
        state_dict: Mapping[str, Mapping[str, Tensor]],
        plus: bool,
        cross_attention_dim: int = 768,
        clip_embeddings_dim: int = 1024,
        clip_extra_context_tokens: int = 4,
        sdxl_plus: bool = False,
    ) -> None:
        """state_dict: the file's two parts, "image_proj" and "ip_adapter". plus: a Resampler
        looks at all hidden states, else one layer at the embedding. sdxl_plus: the Resampler is
        1280 wide whatever the text's width, as SDXL's is.

        Raises CorruptModelFile if the weights do not fit.
        """
        super().__init__()
        self.plus = plus
        proj = state_dict["image_proj"]
        if plus:
            shapes = {name: tuple(weight.shape) for name, weight in proj.items()}
            sizes = _resampler_sizes(shapes, 1280 if sdxl_plus else None)
            with torch.device("meta"):
                self.image_proj_model: nn.Module = Resampler(
                    dim_head=DIM_HEAD,
                    num_queries=clip_extra_context_tokens,
                    embedding_dim=clip_embeddings_dim,
                    output_dim=cross_attention_dim,
                    **sizes,
                )
        else:
            with torch.device("meta"):
                self.image_proj_model = ImageProjModel(
                    cross_attention_dim, clip_embeddings_dim, clip_extra_context_tokens
                )
        try:
            self.image_proj_model.load_state_dict(dict(proj), assign=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise CorruptModelFile(
                f"The IP-Adapter's image projection does not fit: {reason} Choose another file."
            ) from None
        with torch.device("meta"):
            self.ip_layers = To_KV(cross_attention_dim)
        self.ip_layers.load_state_dict_ordered(state_dict["ip_adapter"])
        self.requires_grad_(False)


def _resampler_sizes(shapes: Mapping[str, tuple[int, ...]], dim: int | None) -> dict[str, int]:
    """What the names and shapes of a resampler's weights say of it; `dim` must be its width."""
    layers = {int(m[1]) for name in shapes if (m := re.match(r"layers\.(\d+)\.", name))}
    found = shapes.get("latents", (0, 0, 0))[-1]
    needed = ("layers.0.0.to_q.weight", "layers.0.1.1.weight")
    if not layers or any(name not in shapes for name in needed) or found == 0:
        raise CorruptModelFile("The IP-Adapter's resampler lacks layers. Download it again.")
    if dim is not None and found != dim:
        raise CorruptModelFile(
            f"The IP-Adapter's resampler is {found} wide; SDXL's is {dim}. Choose another file."
        )
    return {
        "dim": found,
        "depth": count_of(layers),
        "heads": shapes["layers.0.0.to_q.weight"][0] // DIM_HEAD,
        "ff_mult": shapes["layers.0.1.1.weight"][0] // found,
    }
