"""What ships stays small: all files of the built-in model together, from the networks' sizes."""

import torch
from torch import nn

from extras.training import builtin_model as builtin
from extras.training.caption_tokens import VOCABULARY
from extras.training.detector import MINI_TOWER, Detector
from extras.training.low_rank import LowRankSet, in_transformers
from extras.training.stage_control import BORROWED, OWN_PARTS
from extras.training.stage_ip import ImagePromptNetwork, ImagePromptPlan
from extras.training.stage_lora import LoraPlan
from ldm_patched.controlnet.cldm import ControlNet
from ldm_patched.modules.clip_vision import ClipVisionTower

HALF = 2  # bytes
LORAS = 3  # two looks and the few steps


def numbers(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def test_all_files_together_take_less_than_80_mb():
    config = builtin.MINI.unet_config()
    with torch.device("meta"):
        unet, vae = builtin.make_unet(builtin.MINI), builtin.make_vae(builtin.MINI)
        tower, detector = ClipVisionTower(MINI_TOWER), Detector()
        control = ControlNet(config, operations=nn)
        borrowed = LowRankSet(control, lambda name: name.startswith(BORROWED), rank=32)
        lora = LowRankSet(unet, in_transformers, LoraPlan(title="x").rank)
        prompts = ImagePromptNetwork(ImagePromptPlan(), config, MINI_TOWER.width)
    encoders = builtin.make_text_encoders(builtin.MINI, (0,))
    words = (VOCABULARY - 2) * (builtin.MINI.clip_l_width + builtin.MINI.clip_g_width)
    total = numbers(unet, vae, *encoders) + words
    total += numbers(tower, detector, prompts, borrowed) + LORAS * numbers(lora)
    total += numbers(*(getattr(control, name) for name in OWN_PARTS))
    assert 70e6 < total * HALF < 80e6
