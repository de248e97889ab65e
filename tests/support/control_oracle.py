"""diffusers' ControlNets and T2I-Adapters with random weights, and files in their layouts."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_patched.controlnet.cldm import ControlNet
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from tests.support.unet_oracle import diffusers_name, randomise

POOLED = 96
SDXL_LIKE = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2, 4),
    num_res_blocks=(2, 2, 2),
    transformer_depth=(0, 0, 1, 1, 2, 2),
    transformer_depth_middle=2,
    transformer_depth_output=(2, 2, 2, 1, 1, 1, 0, 0, 0),
    context_dim=80,
    adm_in_channels=POOLED + 6 * 256,
    time_embed_dim=256,
)
SD1_LIKE = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=(2, 2, 2, 2),
    transformer_depth=(1, 1, 1, 1, 1, 1, 0, 0),
    transformer_depth_middle=1,
    transformer_depth_output=(0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    context_dim=768,
    num_classes=None,
    adm_in_channels=0,
    time_embed_dim=128,
    use_linear_in_transformer=False,
    num_heads=8,
)
# without attention, as diffusers' small ControlNets for SDXL are
SMALL = replace(
    SDXL_LIKE,
    transformer_depth=(0,) * 6,
    transformer_depth_middle=0,
    projects_middle=True,
    context_dim=None,
)


def diffusers_controlnet(config: UNetConfig, seed: int = 5) -> nn.Module:
    """A ControlNetModel of this plan."""
    from diffusers import ControlNetModel

    widths = tuple(m * config.model_channels for m in config.channel_mult)
    depths = list(config.transformer_depth)
    downs = [[depths.pop(0) for _ in range(count)] for count in config.num_res_blocks]
    sized = config.num_classes is not None
    layers = [max(d[0], 1) for d in downs]
    if config.projects_middle:
        layers[-1] = 0
    model = ControlNetModel(
        block_out_channels=widths,
        layers_per_block=config.num_res_blocks[0],
        down_block_types=["CrossAttnDownBlock2D" if d[0] else "DownBlock2D" for d in downs],
        transformer_layers_per_block=layers,
        attention_head_dim=[config.heads_of(w)[0] for w in widths],
        cross_attention_dim=config.context_dim or 80,
        use_linear_projection=config.use_linear_in_transformer,
        addition_embed_type="text_time" if sized else None,
        addition_time_embed_dim=256 if sized else None,
        projection_class_embeddings_input_dim=config.adm_in_channels if sized else None,
    )
    randomise(model, seed)
    return model.requires_grad_(False).eval()


def in_ldm_layout(config: UNetConfig, control: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A ControlNetModel's weights under the latent diffusion code base's names."""
    theirs = dict(control.state_dict())
    weights: dict[str, Tensor] = {}

    def take(ours: str, name: str) -> None:
        for leaf in ("weight", "bias"):
            weights[f"{prefix}{ours}.{leaf}"] = theirs.pop(f"{name}.{leaf}")

    hints = ["conv_in", *(f"blocks.{n}" for n in range(6)), "conv_out"]
    for number, name in enumerate(hints):
        take(f"input_hint_block.{2 * number}", f"controlnet_cond_embedding.{name}")
    for number in range(len(control.controlnet_down_blocks)):
        take(f"zero_convs.{number}.0", f"controlnet_down_blocks.{number}")
    take("middle_block_out.0", "controlnet_mid_block")
    for ours, _ in ControlNet(config, device="meta").named_parameters():
        if not ours.startswith(("input_hint_block", "zero_convs", "middle_block_out")):
            weights[prefix + ours] = theirs.pop(diffusers_name(config, ours))
    if theirs:
        raise ValueError(f"left over: {sorted(theirs)[:3]}")
    return weights


def control_lora_file(
    network: ControlNet, unet: nn.Module, rank: int = 4
) -> tuple[dict[str, Tensor], ControlNet]:
    """A control-LoRA beside the encoder of `unet`, and the ControlNet that they make together.

    network: whose hint, zero convolutions and biases it takes.
    """
    generator = torch.Generator().manual_seed(9)
    theirs = dict(unet.named_parameters())
    file: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    file["lora_controlnet"] = torch.tensor([])
    for name, weight in network.named_parameters():
        if name not in theirs:  # hint, zero convolutions, the middle's
            file[name] = whole[name] = weight
        elif weight.ndim > 1:
            root = name.removesuffix(".weight")
            up = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
            down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.05
            file[f"{root}.up"] = up if weight.ndim == 2 else up[..., None, None]
            file[f"{root}.down"] = down
            whole[name] = theirs[name] + (up @ down.flatten(1)).reshape(weight.shape)
        elif name.endswith(".bias"):
            file[name] = whole[name] = weight
        else:
            whole[name] = theirs[name]
    merged = ControlNet(network.config)
    merged.load_state_dict(whole)
    return file, merged.requires_grad_(False).eval()


def write(path: Path, weights: dict[str, Tensor]) -> Path:
    """A safetensors file of float32 copies."""
    save_file({name: w.float().contiguous().clone() for name, w in weights.items()}, str(path))
    return path


class Inputs:
    """What a UNet of `config` and its controls take."""

    def __init__(self, config: UNetConfig, batch: int = 2, size: int = 16) -> None:
        from ldm_patched.ldm.modules.diffusionmodules.openaimodel import timestep_embedding

        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, 4, size, size, generator=g)
        self.t = torch.tensor([981.0, 3.0])[:batch]
        self.context = torch.randn(batch, 77, config.context_dim or 80, generator=g)
        self.pooled = torch.randn(batch, POOLED, generator=g)
        self.sizes = [1216, 832, 16, 8, 1152, 896]
        numbers = timestep_embedding(torch.tensor(self.sizes), 256).flatten()
        self.y = torch.cat([self.pooled, numbers.repeat(batch, 1)], dim=1)
        self.hint = torch.rand(1, 3, size * 8, size * 8, generator=g)
        if config.num_classes is None:
            self.y = None

    @property
    def added(self) -> dict[str, Tensor] | None:
        """diffusers' words for y."""
        if self.y is None:
            return None
        rows = torch.tensor([self.sizes] * len(self.x), dtype=torch.float32)
        return {"text_embeds": self.pooled, "time_ids": rows}


def call_controlnet(model: nn.Module, inputs: Inputs, scale: float = 1.0) -> list[Tensor]:
    """diffusers' residuals, in the order of the input blocks and the middle's last."""
    with torch.no_grad():
        down, middle = model(
            inputs.x,
            inputs.t,
            inputs.context,
            inputs.hint.expand(len(inputs.x), -1, -1, -1),
            conditioning_scale=scale,
            added_cond_kwargs=inputs.added,
            return_dict=False,
        )
    return [*down, middle]
