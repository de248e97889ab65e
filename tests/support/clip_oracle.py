"""transformers' text encoders with the weights of ours."""

import re

from torch import Tensor
from transformers import CLIPTextConfig

from ldm_patched.modules.clip_tokenizer import END_TOKEN, START_TOKEN


def library_config(
    width: int, layers: int, activation: str, projection: int = 512
) -> CLIPTextConfig:
    """Of a text encoder with heads of 64."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=activation,
        projection_dim=projection,
        eos_token_id=END_TOKEN,
        bos_token_id=START_TOKEN,
        pad_token_id=1,
    )


def openclip_to_library(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP names to transformers' names, written apart from the program's own."""
    renamed = {
        "text_projection.weight": weights["text_projection"].t().contiguous(),
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_model.final_layer_norm.weight": weights["ln_final.weight"],
        "text_model.final_layer_norm.bias": weights["ln_final.bias"],
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for name, tensor in weights.items():
        match = re.match(r"transformer\.resblocks\.(\d+)\.(.*)[._](weight|bias)$", name)
        if not match:
            continue
        layer, part, kind = match.groups()
        base = f"text_model.encoder.layers.{layer}."
        if part == "attn.in_proj":
            width = tensor.shape[0] // 3
            for index, letter in enumerate("qkv"):
                piece = tensor[index * width : (index + 1) * width].clone()
                renamed[f"{base}self_attn.{letter}_proj.{kind}"] = piece
        else:
            renamed[f"{base}{parts[part]}.{kind}"] = tensor
    return renamed
