"""For which model family an adapter was made, to say it when it does not fit."""

import re
from collections.abc import Mapping

from torch import Tensor

from ldm_patched.modules.weight_file import outline_of

# Searched in order; the first pattern that fits a name decides.
NAMES: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_transformer_blocks|single_blocks", "Flux"),
    (r"joint_blocks|^lora_te3|^transformer\.transformer_blocks.*attn\.add_", "Stable Diffusion 3"),
    (r"double_layers", "AuraFlow"),
    (r"^lora_prior_unet|^lora_prior_te|effnet", "Stable Cascade"),
    (r"cap_embedder|context_refiner|noise_refiner", "Lumina or Z-Image"),
    (r"img_mod|txt_mlp", "Qwen-Image"),
    (r"motion_modules|temporal_transformer", "a video model"),
    (r"^(diffusion_model\.|lora_unet_|transformer\.)?_?blocks[._]\d+[._]cross_attn", "Wan video"),
)
# The width of the text that a UNet's cross-attention reads.
WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "SDXL refiner",
    2048: "SDXL",
}
CROSS_ATTENTION = re.compile(r"attn2[._].*to_[kv]")
READS_INPUT = re.compile(r"(lora_down|lora_A|lora\.down|_lora\.down|w1_b|hada_w1_b|\.a1)\b")


def likely_lora_family(lora: Mapping[str, Tensor]) -> str | None:
    """The family's name in words, from names and widths; None if they do not tell."""
    for pattern, family in NAMES:
        if any(re.search(pattern, key) for key in lora):
            return family
    for key in lora:
        if CROSS_ATTENTION.search(key) and READS_INPUT.search(key):
            family = WIDTHS.get(outline_of(lora, key).shape[-1])
            if family is not None:
                return family
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in lora):
        return "SDXL"
    return None
