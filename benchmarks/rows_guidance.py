"""Rows about guidance: what picture quality costs beside the network's own work."""

import torch

from benchmarks import peer
from benchmarks.measure import Row, compare
from benchmarks.rows_network import _inputs, _our_call, _our_unet
from benchmarks.sizes import GIB, Options, fitting, name_of
from tests.support.tiny_checkpoint import unet_shapes


@torch.inference_mode()
def guidance_cost(options: Options) -> Row:
    """Sharpness, adaptive scale and the choice of sizes beside the forward pass of both prompts.

    The ratio says how many times a step's network calls take what guidance takes: 33 is 3 %.
    """
    from extras.guidance.attach import Guidance, guidance_function
    from ldm_patched.modules.conds import TimedInput
    from ldm_patched.modules.model_base import ModelType, model_sampling
    from ldm_patched.modules.model_management import cpu_has_bf16
    from ldm_patched.modules.model_sampling import sampling_progress

    # emulated bfloat16 would slow the network alone; and float32 wants a smaller picture
    dtype, needed, side = (torch.bfloat16, 9, 128) if cpu_has_bf16() else (torch.float32, 16, 64)
    sizes = fitting(options, needed * GIB)
    side = 16 if options.quick else side
    weights = peer.draw_weights(unet_shapes(sizes), dtype)
    forward = _our_call(_our_unet(weights, dtype), _inputs(sizes, side, 2, dtype))
    sampling, sigma = model_sampling(None, ModelType.EPS), torch.tensor([3.0])
    x, cond, uncond = torch.randn(3, 1, sizes.latent_channels, side, side)
    guide = guidance_function(Guidance(sharpness=2.0, mimic_scale=7.0))
    args = {
        "cond": x - cond,
        "uncond": x - uncond,
        "cond_denoised": cond,
        "cond_scale": 8.0,
        "sigma": sigma,
        "input": x,
        "model": type("Levels", (), {"model_sampling": sampling}),
    }
    y = TimedInput(*torch.randn(2, 2, 2816), torch.full((2, 1), 0.3))

    def ours() -> torch.Tensor:
        y.at(sampling_progress(sampling, sigma.expand(2)))
        return guide(args)

    return compare(
        "guidance_cost",
        f"{name_of(sizes)}, {side}x{side} latents, {str(dtype)[6:]}",
        ours,
        {"both prompts' forward": forward},
        rounds=options.few_rounds,
        error=0.0,
        target=">= 33x",
        note="quick run: no statement about speed" if options.quick else "",
    )
