"""One call from noise and prompts to latents: what a pipeline uses.

`sample` takes latents in the VAE's scale and gives them back so; in between it works in the
model's scale. `prepare_noise` makes the starting noise of each picture from its own seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion.noise import seeds_for
from ldm_patched.modules.cond_batch import mask_like
from ldm_patched.modules.control_base import control_bytes, controls_in_place
from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.model_management import free_memory
from ldm_patched.modules.refiner import Arguments, RefinerSwitch, sample_with_refiner
from ldm_patched.modules.samplers import Conditions, KSampler

# step (from 0), denoised and x in the model's scale (B, C, H, W), number of steps
StepCallback = Callable[[int, Tensor, Tensor, int], None]


def prepare_noise(latent_image: Tensor, seeds: int | Sequence[int] | None) -> Tensor:
    """Standard normal float32 noise like latent_image (B, C, H, W), on the CPU.

    seeds: one a picture; an int is the first one's, counted up from there; None draws them.
    The same seed and size give the same noise, whatever the batch.
    """
    shape = latent_image.shape[1:]
    generators = (torch.Generator().manual_seed(s) for s in seeds_for(latent_image.shape[0], seeds))
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def part_of_schedule(
    sigmas: Tensor, start_step: int | None, last_step: int | None, force_full_denoise: bool
) -> Tensor:
    """The sigmas of steps start_step (counted from 0) up to last_step, which is left out.

    With force_full_denoise the last of them becomes 0, so that no noise is left over.
    """
    if last_step is not None and last_step < len(sigmas) - 1:
        sigmas = sigmas[: last_step + 1].clone()
        if force_full_denoise and len(sigmas):
            sigmas[-1] = 0.0
    return sigmas[start_step or 0 :]


def _step_watch(callback: StepCallback | None, steps: int) -> Callable[[dict[str, Any]], None]:
    """A sampler's callback: checks the numbers now and then, and tells `callback`."""
    checked = {0, steps // 2, steps - 1}  # each check waits for the device

    def on_step(state: dict[str, Any]) -> None:
        step = state["i"]
        if step in checked and not bool(torch.isfinite(state["denoised"]).all()):
            raise NotFinite(
                f"The picture turned into invalid numbers at step {step + 1} of {steps}. "
                "Use a lower guidance scale, another checkpoint, or start with --all-in-fp32."
            )
        if callback is not None:
            callback(step, state["denoised"], state["x"], steps)

    return on_step


def _device_of(model: Any) -> torch.device:
    """Where `model` (a ModelPatcher or BaseModel) computes."""
    if hasattr(model, "load_device"):
        return torch.device(model.load_device)
    return next(model.parameters()).device


def _free_bytes(model: Any, device: torch.device) -> int:
    """What network calls may use."""
    budget = getattr(getattr(model, "residence", None), "budget", None)
    return free_memory(device) if budget is None else budget.working_bytes()


def _bytes_beside(
    runner: KSampler, positive: Conditions, negative: Conditions, cfg: float, shape: Sequence[int]
) -> tuple[int, int]:
    """What a run takes beside the weights: for a call, and for what comes to stay meanwhile,
    which is the controls and what is kept of the texts."""
    model = runner.base_model
    working, kept = model.memory_required(shape), 0
    network = getattr(model, "diffusion_model", None)
    if network is not None:
        is_guided = cfg != 1.0 and not network.config.guidance_dim
        # without guidance the negative ones are never evaluated
        is_guided |= runner.model_options.get("disable_cfg1_optimization", False)
        evaluated = [*positive, *negative] if is_guided else positive
        dtype, batch = model.manual_cast_dtype or model.get_dtype(), shape[0]
        kept += network.text_bytes([text for text, *_ in evaluated], batch, dtype)
        kept += control_bytes(positive, negative, network, batch, is_guided=is_guided)
    return working, kept


@contextmanager
def _patched(model: Any, working: int, kept: int) -> Iterator[None]:
    """With a ModelPatcher's patches in the model, on its device; taken out if anything fails.

    working, kept: bytes beside the weights, see Residence.enter.
    They stay in otherwise: the next picture needs them, and another patcher takes them out itself.
    """
    if not hasattr(model, "patch_model"):
        yield
        return
    try:
        model.patch_model(model.load_device, working, kept)
        with model.residence.busy():
            yield
    except BaseException:
        model.unpatch_model()
        raise


def sample(  # noqa: PLR0913 - the field's signature
    model: Any,
    noise: Tensor | None,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditions,
    negative: Conditions,
    latent_image: Tensor,
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
    noise_mask: Tensor | None = None,
    sigmas: Tensor | None = None,
    callback: StepCallback | None = None,
    disable_pbar: bool = False,  # noqa: ARG001 - there is no progress bar here
    seed: int | Sequence[int] | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    refiner: RefinerSwitch | None = None,
) -> Tensor:
    """Sample latents; gives (B, C, H, W) float32 in the VAE's scale, where latent_image was.

    model: a ModelPatcher or BaseModel. noise: like latent_image, None to make it from `seed`;
    steps, denoise, sampler and scheduler as in KSampler; sigmas: a schedule of one's own.
    positive, negative: `[[context, {"pooled_output": pooled, …}]]`, see cond_batch.
    noise_mask: (H, W) or (B, 1, H, W) in 0..1 at any size: 1 is painted, 0 stays as it is.
    seed: of the noise that samplers add on the way, as in prepare_noise. refiner: who takes over
    for the last steps; the result is then in the scale of its VAE.
    Raises NotFinite, whatever the interrupt callable of transformer_options raises, and
    ValueError for a name or number that makes no sense.
    """
    device = _device_of(model)
    runner = KSampler(model, steps, device, sampler_name, scheduler, denoise)
    whole = runner.sigmas if sigmas is None else sigmas
    part = part_of_schedule(whole, start_step, last_step, force_full_denoise)
    if len(part) < 2:
        return latent_image
    if disable_noise:
        noise = torch.zeros_like(latent_image)
    elif noise is None:
        noise = prepare_noise(latent_image, seed)
    mask = None if noise_mask is None else mask_like(noise_mask, latent_image)
    latent_format = runner.latent_format
    start = latent_image.float()
    if start.any():  # no picture is zeros in every scale, though some have a middle of their own
        start = latent_format.process_in(start)
    interrupt = runner.model_options.get("transformer_options", {}).get("interrupt")
    controls = controls_in_place(runner.base_model, [*positive, *negative], interrupt)
    beside = _bytes_beside(runner, positive, negative, cfg, latent_image.shape)
    at = len(part) if refiner is None else refiner.step - (start_step or 0)
    other = None
    if refiner is not None and at < len(part) - 1:
        other = KSampler(refiner.model, steps, device, sampler_name, scheduler, denoise)
    # The run's model sampling outside of all else: controls go by it.
    in_place = runner.sampling_in_place()
    with _patched(model, *beside), in_place, torch.inference_mode(), controls, ExitStack() as stack:
        runner.free_bytes = _free_bytes(model, device)  # now that the weights are in their place
        given = Arguments(
            noise.float(),
            positive,
            negative,
            cfg,
            start,
            part,
            mask,
            _step_watch(callback, len(part) - 1),
            seed,
            sampler_options,
        )
        if refiner is None or other is None:
            latents = given.run(runner)
        else:

            def enter() -> None:
                texts = refiner.positive, refiner.negative
                beside = _bytes_beside(other, *texts, cfg, latent_image.shape)
                if hasattr(model, "residence"):
                    model.residence.is_busy = False  # it has done its part and may make room
                if other.base_model is runner.base_model:
                    runner.give_way()
                stack.enter_context(_patched(refiner.model, *beside))
                stack.enter_context(other.sampling_in_place())
                other.free_bytes = _free_bytes(refiner.model, device)

            latents = sample_with_refiner(runner, other, refiner, at, given, enter)
            latent_format = other.latent_format
    result = latent_format.process_out(latents).to(latent_image.device, torch.float32)
    same_scale = type(latent_format) is type(runner.latent_format)
    if mask is not None and same_scale and float(part[-1]) == 0.0:
        # scaling in and out rounds: what the mask keeps shall be the very numbers that came in
        result = torch.where(mask == 0, latent_image.float(), result)
    return result
