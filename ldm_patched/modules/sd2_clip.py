"""The text encoder of Stable Diffusion 2: OpenCLIP ViT-H, read before its last layer."""

from ldm_patched.modules.sd1_clip import PENULTIMATE, SingleClipModel

H_PAD = 0


class SD2ClipModel(SingleClipModel):
    """The layer before the last, through the final norm."""

    name = "h"
    pad = H_PAD
    layer = PENULTIMATE
