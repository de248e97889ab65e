"""The built-in model: its dimensions, its networks, and its file in the layout of SDXL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extras.training.caption_tokens import VOCABULARY
from extras.training.scenes.scene import SIZES
from ldm_patched.ldm.models.autoencoder import AutoencoderConfig, AutoencoderKL
from ldm_patched.ldm.modules.diffusionmodules.model import (
    AttnBlock,
    Downsample,
    ResnetBlock,
    Upsample,
)
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.sd1_clip import CHUNK, ClipTextConfig, ClipTextModel

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_L_PREFIX = "conditioner.embedders.0.transformer.text_model."
CLIP_G_PREFIX = "conditioner.embedders.1.model."
SIZE_NUMBERS = 6
SIZE_WIDTH = 256
TOKENS = "text_model.embeddings.token_embedding"
_FIRST_LOG_VARIANCE = -6.0
_FIRST_BRANCH = 0.1
_ANCHOR = 2.5


@dataclass(frozen=True, kw_only=True)
class BuiltinSizes:
    """The free dimensions; attention heads are 64 wide everywhere."""

    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 3)
    depths: tuple[int, ...] = (0, 1, 2)
    """Transformer blocks after each residual block of a level; the middle has the last one's."""
    res_blocks: int = 1
    clip_l_width: int = 64
    clip_l_layers: int = 5
    clip_g_width: int = 128
    clip_g_layers: int = 5
    vae_channels: int = 32
    vae_mult: tuple[int, ...] = (3, 1, 2, 4)
    """The first is 3 at least: group norms have 32 groups, and one of one or two channels takes a
    flat colour away, be it black or white."""
    vae_res_blocks: int = 1

    def unet_config(self) -> UNetConfig:
        """See ldm_patched's UNetConfig."""
        n = self.res_blocks
        return UNetConfig(
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=(n,) * len(self.channel_mult),
            transformer_depth=tuple(d for d in self.depths for _ in range(n)),
            transformer_depth_middle=self.depths[-1],
            transformer_depth_output=tuple(d for d in self.depths[::-1] for _ in range(n + 1)),
            context_dim=self.clip_l_width + self.clip_g_width,
            adm_in_channels=self.clip_g_width + SIZE_NUMBERS * SIZE_WIDTH,
            time_embed_dim=4 * self.model_channels,
        )

    def vae_config(self) -> AutoencoderConfig:
        """See ldm_patched's AutoencoderConfig."""
        return AutoencoderConfig(
            ch=self.vae_channels,
            ch_mult=self.vae_mult,
            num_res_blocks=self.vae_res_blocks,
            z_channels=4,
            embed_dim=4,
        )


MINI = BuiltinSizes()
TOY = BuiltinSizes(
    model_channels=32,
    channel_mult=(1, 2, 2),
    depths=(0, 1, 1),
    clip_l_layers=2,
    clip_g_width=128,
    clip_g_layers=2,
    vae_mult=(1, 1, 1, 2),
)
"""For tests of the trainer: learns nothing worth seeing, runs in seconds."""


class CompactEmbedding(nn.Module):
    """An embedding of a few ids of a large vocabulary; all other ids share the last row."""

    rows: Tensor

    def __init__(self, ids: tuple[int, ...], width: int) -> None:
        super().__init__()
        rows = torch.full((VOCABULARY,), len(ids), dtype=torch.long)
        rows[list(ids)] = torch.arange(len(ids))
        self.register_buffer("rows", rows, persistent=False)
        self.weight = nn.Parameter(torch.randn(len(ids) + 1, width) * 0.5)
        with torch.no_grad():
            self.weight[-1].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) ids of the large vocabulary → (B, N, width)."""
        return nn.functional.embedding(self.rows[ids], self.weight)

    def whole(self, weight: Tensor) -> Tensor:
        """The (VOCABULARY, width) table that `weight`, in the place of this one's, stands for."""
        return weight[self.rows.to(weight.device)]


def make_unet(sizes: BuiltinSizes, *, use_checkpoint: bool = False) -> UNetModel:
    """A UNet with random weights, ready to be trained."""
    return UNetModel(sizes.unet_config(), use_checkpoint=use_checkpoint, operations=nn)


def make_vae(sizes: BuiltinSizes) -> AutoencoderKL:
    """An autoencoder with random weights, ready to be trained.

    It begins close to a linear one: what each level adds is small, and levels are joined by plain
    averages. Latents then tell how bright a flat picture is from the first step on.
    """
    vae = AutoencoderKL(sizes.vae_config(), operations=nn)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock):
                module.conv2.weight *= _FIRST_BRANCH
                if module.nin_shortcut is not None:
                    nn.init.orthogonal_(module.nin_shortcut.weight)
            elif isinstance(module, (Downsample, Upsample)):
                nn.init.dirac_(module.conv.weight)
                nn.init.zeros_(module.conv.bias)
                if isinstance(module, Downsample):  # what lies at the centre, to 2×2 pixels
                    module.conv.weight[:, :, :2, :2] = module.conv.weight[:, :, 1:2, 1:2] / 4
            elif isinstance(module, AttnBlock):
                module.proj_out.weight *= _FIRST_BRANCH
        for half, last in ((vae.encoder, vae.encoder.mid.block_2),
                           (vae.decoder, vae.decoder.up[0].block[-1])):  # fmt: skip
            _anchor(half.norm_out, last.conv2)
        # With the default start the latents drown in noise, and hundreds of steps go by until the
        # encoder has learnt to turn it down.
        embed = vae.config.embed_dim
        vae.quant_conv.weight[embed:] *= 0.1
        vae.quant_conv.bias[embed:] = _FIRST_LOG_VARIANCE
    return vae


def _anchor(norm: nn.Module, before: nn.Module) -> None:
    """Let a group norm pass absolute values from the first step on.

    Constants that differ within each group give it a spread of its own to divide by. Without them
    it divides by that of the picture, and brightness and colours are learnt last.
    """
    group = norm.num_channels // norm.num_groups
    row = torch.linspace(-_ANCHOR, _ANCHOR, group) if group > 1 else torch.zeros(1)
    constants = row.repeat(norm.num_groups)
    before.bias += constants
    norm.bias -= constants / constants.std(correction=0).clamp(min=1e-6)


def make_text_encoders(
    sizes: BuiltinSizes, ids: tuple[int, ...]
) -> tuple[ClipTextModel, ClipTextModel]:
    """Both text encoders with random weights, for training on captions that use `ids`."""
    widths = ((sizes.clip_l_width, sizes.clip_l_layers, 0, "quick_gelu"),
              (sizes.clip_g_width, sizes.clip_g_layers, sizes.clip_g_width, "gelu"))  # fmt: skip
    models = []
    for width, layers, projection, activation in widths:
        config = ClipTextConfig(
            width=width,
            layers=layers,
            vocabulary=1,  # replaced below: the whole table would only slow the optimiser
            length=CHUNK,
            intermediate=4 * width,
            projection=projection,
            activation=activation,
        )
        model = ClipTextModel(config, operations=nn)
        embeddings = model.text_model.embeddings
        embeddings.token_embedding = CompactEmbedding(ids, width)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
        models.append(model)
    return models[0], models[1]


# --- The file ---------------------------------------------------------------------------------


def clip_l_file(model: ClipTextModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first encoder's weights under the names of transformers, with the whole vocabulary."""
    found = {name.removeprefix("text_model."): w for name, w in _expanded(model, weights).items()}
    positions = torch.arange(model.config.length)[None]
    return {"embeddings.position_ids": positions, **found}


OPENCLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def clip_g_file(model: ClipTextModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second encoder's weights under the names of OpenCLIP, with the whole vocabulary."""
    weights = _expanded(model, weights)
    found = {
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": weights[f"{TOKENS}.weight"],
        "text_projection": weights["text_projection.weight"].t().contiguous(),
        "ln_final.weight": weights["text_model.final_layer_norm.weight"],
        "ln_final.bias": weights["text_model.final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6052),
    }
    for number in range(model.config.layers):
        own, theirs = f"text_model.encoder.layers.{number}", f"transformer.resblocks.{number}"
        for leaf in ("weight", "bias"):
            parts = [weights[f"{own}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{theirs}.attn.in_proj_{leaf}"] = torch.cat(parts)
            for name, renamed in OPENCLIP_LAYERS.items():
                found[f"{theirs}.{renamed}.{leaf}"] = weights[f"{own}.{name}.{leaf}"]
    return found


def _expanded(model: ClipTextModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    table = model.text_model.embeddings.token_embedding
    whole = table.whole(weights[f"{TOKENS}.weight"]) if isinstance(table, CompactEmbedding) else {}
    return {**weights, **({f"{TOKENS}.weight": whole} if isinstance(whole, Tensor) else {})}


def checkpoint_file(
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    clip_l: Mapping[str, Tensor],
    clip_g: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """One state dict in SDXL's layout; float tensors in `dtype`, on the CPU, contiguous."""
    parts = ((UNET_PREFIX, unet), (VAE_PREFIX, vae), (CLIP_L_PREFIX, clip_l),
             (CLIP_G_PREFIX, clip_g))  # fmt: skip
    return {
        prefix + name: _stored(weight, dtype)
        for prefix, weights in parts
        for name, weight in weights.items()
    }


def _stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    weight = weight.detach().to("cpu", dtype if weight.is_floating_point() else weight.dtype)
    return weight.contiguous().clone()


def file_metadata(sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, object]:
    """What the file says of the pictures that it was trained on; sizes: (width, height), the
    square first."""
    ratios = list(dict.fromkeys(ratio_name(*size) for size in sizes))
    area = sizes[0][0] * sizes[0][1]
    return {"easel.area": area, "easel.ratios": ratios, "modelspec.title": "Easel mini"}


def ratio_name(width: int, height: int) -> str:
    """Such as '10:6', not reduced, for sides that are multiples of 32."""
    return f"{width // 32}:{height // 32}" if width != height else "1:1"
