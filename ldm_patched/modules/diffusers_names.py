"""The names that diffusers gives the parts of a UNet, beside those of the checkpoint layout.

LoRA files and model folders speak of `down_blocks.1.attentions.0`, where a checkpoint says
`input_blocks.4.1`. The plan of the network says which is which.
"""

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig

TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
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
