"""What a weight file looks like, from its names alone, to say it when it is the wrong one."""

import re
from collections.abc import Iterable

# Searched in order; the first pattern that fits a name decides. Words complete "… looks like …".
KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"\.lora_(up|down|A|B|mid)\b|^lora_(unet|te\d?|transformer)_|\.(hada|lokr)_w[12]|\.oft_|"
        r"\.dora_scale$",
        "a LoRA",
        "Put it into models/loras and choose it in the LoRA list",
    ),
    (r"^ip_adapter\.|^image_proj\.", "an IP-Adapter", "Put it into models/ipadapter"),
    (
        r"^control_model\.|^controlnet_|^(input_hint_block|zero_convs)\.|^lllite_",
        "a ControlNet",
        "Put it into models/controlnet",
    ),
    (r"^(emb_params|string_to_param|string_to_token)$", "an embedding", "Use it in the prompt"),
    (r"^vision_model\.|^visual_projection", "a CLIP image encoder", ""),
)
FAMILIES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)joint_blocks\.\d+\.", "Stable Diffusion 3"),
    (r"(^|\.)double_blocks\.\d+\.img_|(^|\.)single_blocks\.\d+\.modulation", "Flux"),
    (r"(^|\.)double_layers\.\d+\.", "AuraFlow"),
    (r"^clip_txt_mapper|^effnet|clip_txt_pooled_mapper", "Stable Cascade"),
    (r"(^|\.)(cap_embedder|context_refiner|noise_refiner)\.", "Lumina or Z-Image"),
    (r"(^|\.)transformer_blocks\.\d+\.img_mod", "Qwen-Image"),
    (r"(^|\.)blocks\.\d+\.cross_attn\.norm_k", "Wan video"),
    (r"(^|\.)(txt_in\.individual_token_refiner)", "Hunyuan video"),
    (r"time_stack|time_mixer|temporal_transformer", "a video model"),
    (r"^(down_blocks|mid_block|up_blocks)\.\d?", "a network in the diffusers folder layout"),
)
VAE_NAMES = re.compile(r"^(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv)\b")
TEXT_NAMES = re.compile(r"^(text_model|transformer\.resblocks|logit_scale|text_projection)\b")


def likely_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """(words, remedy) for a file that is no checkpoint, such as ("a LoRA", "Put it …"), or None."""
    names = list(keys)
    for pattern, words, remedy in KINDS:
        if any(re.search(pattern, name) for name in names):
            return words, remedy
    if names and all(VAE_NAMES.match(name) for name in names):
        return "a VAE", "Put it into models/vae"
    if names and all(TEXT_NAMES.match(name) for name in names):
        return "a text encoder", ""
    return None


def likely_family(keys: Iterable[str]) -> str | None:
    """The family that a checkpoint's names point to, as words, or None."""
    names = list(keys)
    for pattern, family in FAMILIES:
        if any(re.search(pattern, name) for name in names):
            return family
    return None


# What real files carry besides the weights that are used: averages and optimiser state of the
# training, buffers that are computed here, heads that only training or image towers need.
IGNORED = re.compile(
    r"^model_ema\.|^(first_stage_model\.)?(model_ema|loss)\.|^optimizer|^lr_scheduler"
    r"|^(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar"
    r"|scale_factor|global_step|v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.\w+)$"
    r"|^denoiser\.(sigmas|log_sigmas)$|^embedding_manager\."
    r"|(^|\.)(position_ids|logit_scale|attn_mask)$"
    r"|^(conditioner\.embedders\.\d|cond_stage_model)\."
    r"(model\.visual\.|transformer\.(text_projection|vision_model)\.)"
)
