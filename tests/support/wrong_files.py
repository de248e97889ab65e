"""Weights that are no checkpoint of a family that is known, by what the refusal calls them."""

import torch

_LORA = {
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8),
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.zeros(()),
}
WRONG_FILES = {
    "a LoRA": _LORA,
    "a LoRA of the other layout": {"unet.mid_block.to_q.lora_A.weight": torch.zeros(4, 8)},
    "a VAE": {"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.bias": torch.zeros(1)},
    "a ControlNet": {"control_model.zero_convs.0.0.weight": torch.zeros(1)},
    "an IP-Adapter": {"ip_adapter.1.to_k_ip.weight": torch.zeros(1)},
    "an embedding": {"emb_params": torch.zeros(2, 768)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.weight": torch.zeros(1)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(1)},
    "AuraFlow": {"model.double_layers.0.attn.w1q.weight": torch.zeros(1)},
    "no diffusion model": {"something": torch.zeros(1)},
}
