"""The names that diffusers gives the parts of a UNet and a VAE, beside those of checkpoints.

LoRA files and model folders speak of `down_blocks.1.attentions.0`, where a checkpoint says
`input_blocks.4.1`. The plan of the network says which is which.
"""

import re
from collections.abc import Collection

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig

TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb": "class_embedding",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def block_names(config: UNetConfig) -> dict[str, str]:
    """Our name of each layer of each block → diffusers' name of it.

    Such as input_blocks.4.1 → down_blocks.1.attentions.0. All blocks of this plan are named,
    whether the layer exists (an attention of depth 0) or not.
    """
    names: dict[str, str] = {}
    number = 1
    for level, count in enumerate(config.num_res_blocks):
        for index in range(count):
            names[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{index}"
            names[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{index}"
            number += 1
        names[f"input_blocks.{number}.0"] = f"down_blocks.{level}.downsamplers.0"
        number += 1
    names["middle_block.0"] = "mid_block.resnets.0"
    names["middle_block.1"] = "mid_block.attentions.0"
    names["middle_block.2"] = "mid_block.resnets.1"
    number = 0
    for level, count in enumerate(reversed(config.num_res_blocks)):
        for index in range(count + 1):
            block = f"output_blocks.{number}"
            names[f"{block}.0"] = f"up_blocks.{level}.resnets.{index}"
            depth = config.transformer_depth_output[number]
            if depth:
                names[f"{block}.1"] = f"up_blocks.{level}.attentions.{index}"
            names[f"{block}.{2 if depth else 1}"] = f"up_blocks.{level}.upsamplers.0"
            number += 1
    return names


def module_names(config: UNetConfig, modules: list[str]) -> dict[str, str]:
    """Our name of each of `modules` (layers with weights) → diffusers' name of it."""
    blocks = block_names(config)
    names: dict[str, str] = {}
    for module in modules:
        if module in TOP:
            names[module] = TOP[module]
            continue
        parts = module.split(".")
        cut = 2 if parts[0] == "middle_block" else 3
        block, leaf = blocks.get(".".join(parts[:cut])), ".".join(parts[cut:])
        if block is None or not leaf:
            continue
        if ".resnets." in block:
            leaf = RESNET.get(leaf, leaf)
        elif leaf == "op":
            leaf = "conv"
        names[module] = f"{block}.{leaf}"
    return names


# --- From diffusers' names to ours ------------------------------------------------------------

BLOCK = re.compile(
    r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.\d+)\."
)
DOWN_RESNET = re.compile(
    r"down_blocks\.(\d+)\.resnets\.(\d+)\.(?:spatial_res_block\.)?conv1\.weight"
)


VIDEO_TRANSFORMER = {
    "temporal_transformer_blocks.": "time_stack.",
    "time_pos_embed.linear_1": "time_pos_embed.0",
    "time_pos_embed.linear_2": "time_pos_embed.2",
}


def is_diffusers_unet(keys: Collection[str]) -> bool:
    """Whether these are the names of a UNet in diffusers' layout."""
    return "conv_in.weight" in keys and "time_embedding.linear_1.weight" in keys


def unet_names(keys: Collection[str]) -> dict[str, str]:
    """diffusers' name of each weight of a UNet → ours; a name without a place stays as it is."""
    blocks = {theirs: ours for ours, theirs in block_names(_plan(keys)).items()}
    tops = {theirs: ours for ours, theirs in TOP.items()}
    resnets = {theirs: ours for ours, theirs in RESNET.items()}
    names: dict[str, str] = {}
    for key in keys:
        module, _, kind = key.rpartition(".")
        match = BLOCK.match(key)
        if match is None:
            names[key] = f"{tops.get(module, module)}.{kind}"
            continue
        leaf = module[match.end() :]
        if match[2] == "resnets":
            spatial, temporal = "spatial_res_block.", "temporal_res_block."
            time = "time_stack." if leaf.startswith(temporal) else ""
            leaf = leaf.removeprefix(spatial).removeprefix(temporal)
            leaf = time + resnets.get(leaf, leaf)
        elif match[2] == "attentions":
            for theirs, ours in VIDEO_TRANSFORMER.items():
                leaf = leaf.replace(theirs, ours)
        elif match[2] == "downsamplers":
            leaf = "op"
        names[key] = f"{blocks.get(match[1], match[1])}.{leaf}.{kind}"
    return names


def _plan(keys: Collection[str]) -> UNetConfig:
    """What the order of the blocks depends on: how many there are, and where attention is."""
    found = [tuple(map(int, match.groups())) for key in keys if (match := DOWN_RESNET.match(key))]
    levels = max((level for level, _ in found), default=-1) + 1
    counts = tuple(sum(level == mine for level, _ in found) for mine in range(levels))
    attention = {key.rsplit(".proj_in.", 1)[0] for key in keys if ".proj_in." in key}
    ups = (
        f"up_blocks.{level}.attentions.{index}" in attention
        for level, count in enumerate(reversed(counts))
        for index in range(count + 1)
    )
    return UNetConfig(
        channel_mult=(1,) * levels,
        num_res_blocks=counts,
        transformer_depth=(0,) * sum(counts),
        transformer_depth_output=tuple(map(int, ups)),
    )


VAE_PARTS = (
    (r"\bspatial_res_block\.", ""),
    *(
        (rf"\btemporal_res_block\.{theirs}\.", f"time_stack.{ours}.")
        for ours, theirs in RESNET.items()
    ),
    (r"\btime_mixer\.mix_factor", "mix_factor"),
    (r"\bdecoder\.time_conv_out\.", "decoder.conv_out.time_mix_conv."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\battn_1\.group_norm\.", "attn_1.norm."),
    (r"\battn_1\.(?:to_q|query)\.", "attn_1.q."),
    (r"\battn_1\.(?:to_k|key)\.", "attn_1.k."),
    (r"\battn_1\.(?:to_v|value)\.", "attn_1.v."),
    (r"\battn_1\.(?:to_out\.0|proj_attn)\.", "attn_1.proj_out."),
    (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bup\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"\bup\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\bconv_norm_out\.", "norm_out."),
)
UP_BLOCK = re.compile(r"\bup_blocks\.(\d+)\.")


def is_diffusers_vae(keys: Collection[str]) -> bool:
    """Whether these are the names of an autoencoder in diffusers' layout."""
    return any(key.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for key in keys)


def vae_names(keys: Collection[str]) -> dict[str, str]:
    """diffusers' name of each weight of an autoencoder → ours, which counts up from the finest."""
    levels = max((int(m[1]) for key in keys if (m := UP_BLOCK.search(key))), default=0)
    names: dict[str, str] = {}
    for key in keys:
        ours = UP_BLOCK.sub(lambda match: f"up.{levels - int(match[1])}.", key)
        for theirs, part in VAE_PARTS:
            ours = re.sub(theirs, part, ours)
        names[key] = ours
    return names
