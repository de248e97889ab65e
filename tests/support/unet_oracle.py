"""A diffusers UNet with the same weights as one of ours, and random weights that are tame."""

import re

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def randomise(module: nn.Module, seed: int) -> None:
    """Weights near 1 / sqrt(fan in), norms near 1, small biases: activations of unit size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * p[0].numel() ** -0.5)
            else:
                p.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def make_unet(config: UNetConfig, seed: int = 0) -> UNetModel:
    """One of our UNets in float32 with random weights."""
    unet = UNetModel(config)
    randomise(unet, seed)
    return unet.requires_grad_(False).eval()


def _block_place(config: UNetConfig, group: str, number: int, layer: int) -> tuple[str, bool]:
    """(diffusers' name of the layer, whether it is a residual block)."""
    counts = config.num_res_blocks
    if group == "middle_block":
        kinds = ("resnets.0", "attentions.0", "resnets.1")
        return f"mid_block.{kinds[layer]}", layer != 1
    if group == "input_blocks":
        number -= 1
        for level, count in enumerate(counts):
            if number < count:
                kind = "attentions" if layer else "resnets"
                return f"down_blocks.{level}.{kind}.{number}", layer == 0
            if number == count:
                return f"down_blocks.{level}.downsamplers.0", False
            number -= count + 1
    for up, count in enumerate(reversed(counts)):
        if number <= count:
            return f"up_blocks.{up}.{('resnets', 'attentions')[min(layer, 1)]}.{number}", layer == 0
        number -= count + 1
    raise ValueError(f"No place for {group}.{number}.{layer}")


def diffusers_name(config: UNetConfig, name: str) -> str:
    """Our parameter's name in diffusers' layout."""
    for ours, theirs in TOP.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    group, rest = name.split(".", 1)
    numbers = re.match(r"(\d+)\.(\d+)\.(.*)" if group != "middle_block" else r"()(\d+)\.(.*)", rest)
    number, layer, leaf = int(numbers[1] or 0), int(numbers[2]), numbers[3]
    place, is_resnet = _block_place(config, group, number, layer)
    if leaf.startswith("op."):
        return f"{place}.conv{leaf[2:]}"
    if leaf.startswith("conv."):
        place = place.replace("attentions", "upsamplers").replace("resnets", "upsamplers")
        return re.sub(r"upsamplers\.\d+", "upsamplers.0", place) + "." + leaf
    if is_resnet:
        for ours, theirs in RESNET.items():
            if leaf.startswith(ours + "."):
                return f"{place}.{theirs}{leaf[len(ours) :]}"
    return f"{place}.{leaf}"


def to_diffusers(config: UNetConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours in diffusers' layout."""
    return {diffusers_name(config, name): w for name, w in weights.items()}


MIDDLES = {0: "UNetMidBlock2D", None: None}
SIZES_AND_TEXT = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}


def _per_level(config: UNetConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Depths after each residual block, level by level, on the way down and on the way up."""
    down, up = list(config.transformer_depth), list(config.transformer_depth_output)
    downs = [[down.pop(0) for _ in range(n)] for n in config.num_res_blocks]
    ups = [[up.pop(0) for _ in range(n + 1)] for n in reversed(config.num_res_blocks)]
    return downs, ups


def diffusers_unet(unet: UNetModel) -> nn.Module:
    """diffusers' UNet2DConditionModel with `unet`'s plan and weights (shared, not copied)."""
    from diffusers import UNet2DConditionModel

    c = unet.config
    downs, ups = _per_level(c)
    widths = tuple(m * c.model_channels for m in c.channel_mult)
    model = UNet2DConditionModel(
        in_channels=c.in_channels,
        out_channels=c.out_channels,
        block_out_channels=widths,
        layers_per_block=list(c.num_res_blocks),
        down_block_types=["CrossAttnDownBlock2D" if d[0] else "DownBlock2D" for d in downs],
        up_block_types=["CrossAttnUpBlock2D" if u[0] else "UpBlock2D" for u in ups],
        mid_block_type=MIDDLES.get(c.transformer_depth_middle, "UNetMidBlock2DCrossAttn"),
        transformer_layers_per_block=[d if any(d) else c.transformer_depth_middle for d in downs],
        reverse_transformer_layers_per_block=[u if any(u) else 1 for u in ups],
        attention_head_dim=[c.heads_of(w)[0] for w in widths],
        cross_attention_dim=c.context_dim,
        use_linear_projection=c.use_linear_in_transformer,
        sample_size=32,
        time_cond_proj_dim=c.guidance_dim or None,
        **(SIZES_AND_TEXT | {"projection_class_embeddings_input_dim": c.adm_in_channels})
        if c.num_classes
        else {},
    )
    _set_middle_depth(model, c)
    if not c.conv_resample:
        _average_between_levels(model)
    model.load_state_dict(to_diffusers(c, unet.state_dict()), strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _set_middle_depth(model: nn.Module, config: UNetConfig) -> None:
    if not config.transformer_depth_middle:
        return
    # diffusers gives the middle the depth of the last level; cut or check ours against it.
    blocks = model.mid_block.attentions[0].transformer_blocks
    if len(blocks) < config.transformer_depth_middle:
        raise ValueError("The middle can be made shallower than the last level only.")
    del blocks[config.transformer_depth_middle :]


def _average_between_levels(model: nn.Module) -> None:
    for block in model.down_blocks:
        for index in range(len(block.downsamplers or ())):
            block.downsamplers[index] = _Averaged()
    for block in model.up_blocks:
        for sampler in block.upsamplers or ():
            sampler.conv, sampler.use_conv = None, False


class _Averaged(nn.Module):
    """Stands for diffusers' own averaging layer, which its UNets cannot be configured to use."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return nn.functional.avg_pool2d(x, 2)


def call_diffusers(
    model: nn.Module, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, sizes: list[int]
) -> Tensor:
    """diffusers' prediction; sizes: height, width, crop top and left, target height and width."""
    time_ids = torch.tensor([sizes] * x.shape[0], dtype=pooled.dtype, device=x.device)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    return model(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
