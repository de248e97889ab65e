"""Pictures to latents and back: on the right device, in little memory, never in broken numbers."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.ldm.modules.diffusionmodules.model import Interrupt
from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import free_memory
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.vae_strips import StripCoder
from ldm_patched.modules.weight_stream import transfer_to

logger = logging.getLogger(__name__)

ENCODE_MAPS, DECODE_MAPS = 6, 7
"""Full-size maps of the first level's width alive at once; 4 and 5 were measured on a CPU."""


class VAE:
    """An autoencoder: `encode` and `decode` for whole pictures, in strips when memory is short."""

    def __init__(
        self,
        first_stage_model: AutoencoderKL,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        load_report: LoadReport | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        """device: where it computes. dtype: in which the weights are. budget: who decides when
        they are there; None: from the first use on."""
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = memory_format
        self.first_stage_model = first_stage_model.eval().requires_grad_(False)
        transfer = (transfer_to if budget is None else budget.transfer_to)(self.device)
        self.residence = Residence(first_stage_model, transfer, budget=budget)
        self.downscale_ratio = first_stage_model.config.downscale
        self.latent_channels = first_stage_model.config.embed_dim
        self.load_report = load_report or LoadReport()

    def memory_required(self, height: int, width: int, *, decoding: bool) -> int:
        """Bytes for one picture of height × width pixels besides the weights, rather too many."""
        maps = DECODE_MAPS if decoding else ENCODE_MAPS
        config = self.first_stage_model.config
        return height * width * config.ch * config.ch_mult[0] * maps * self.dtype.itemsize

    @torch.inference_mode()
    def encode(
        self, pixels: Tensor, interrupt: Interrupt = None, *, tiled: bool | None = None
    ) -> Tensor:
        """Pixels (B, H, W, 3) in 0..1 → latents (B, 4, H/8, W/8) float32 on the CPU.

        The posterior's mean, unscaled; sides that are no multiple of 8 lose their remainder.
        interrupt: called often; may raise to stop. tiled: strip by strip, in little memory; None
        lets the free memory decide. Raises NotFinite.
        """
        ratio = self.downscale_ratio
        x = pixels[..., :3].permute(0, 3, 1, 2).float() * 2.0 - 1.0
        height, width = (side - side % ratio for side in x.shape[-2:])
        return self._each(x[..., :height, :width], interrupt, tiled, decoding=False)

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, interrupt: Interrupt = None, *, tiled: bool | None = None
    ) -> Tensor:
        """Latents (B, 4, h, w), unscaled → pixels (B, 8h, 8w, 3) in 0..1, float32 on the CPU.

        A video decoder takes the batch as the frames of one video, which see each other: they are
        decoded together and never in strips. interrupt: called before each block and strip; may
        raise to stop. tiled: strip by strip, in little memory; None lets the free memory decide.
        Raises NotFinite, or torch.OutOfMemoryError for a video that is too long.
        """
        pixels = self._each(latents, interrupt, tiled, decoding=True)
        return pixels.permute(0, 2, 3, 1).add_(1.0).mul_(0.5).clamp_(0.0, 1.0)

    def _each(
        self, x: Tensor, interrupt: Interrupt, tiled: bool | None, *, decoding: bool
    ) -> Tensor:
        """Each picture of the batch apart, so that one picture's memory is enough; but a video's
        frames together."""
        if not bool(torch.isfinite(x).all()):
            raise NotFinite(
                "The picture turned into invalid numbers before it reached the VAE. Use a lower "
                "guidance scale, another checkpoint, or start Easel with --all-in-fp32."
            )
        ratio = self.downscale_ratio if decoding else 1
        together = decoding and self.first_stage_model.config.video
        count = len(x) if together else 1

        def needed() -> int:  # anew each time: it doubles when the weights become float32
            sides = (side * ratio for side in x.shape[-2:])
            return count * self.memory_required(*sides, decoding=decoding)

        tight = self._enter(needed())
        tiled = not together and (tight if tiled is None else tiled)

        def whole(part: Tensor) -> Tensor:
            part = self._prepared(part, self.device)
            code = self.first_stage_model.decode if decoding else self.first_stage_model.encode
            return code(part, interrupt).float().cpu()

        def strips(part: Tensor) -> Tensor:
            # Four maps of the first level's width wait between layers, of the seven counted.
            store = self.device if 0.65 * needed() < self._free() else torch.device("cpu")
            coder = StripCoder(
                self.first_stage_model, device=self.device, store=store, interrupt=interrupt
            )
            part = self._prepared(part, self.device if decoding else store)
            return (coder.decode if decoding else coder.encode)(part).float().cpu()

        results = []
        for part in x.split(count):
            if not tiled:
                try:
                    results.append(self._finite(partial(whole, part), needed))
                    continue
                except torch.OutOfMemoryError:
                    if together:
                        raise
                    logger.warning("Not enough memory for a whole picture in the VAE; in strips.")
                tiled = True
                self._enter(needed())  # float32 weights that found no room are on the host
            # Outside of the handler: the exception would hold on to the frames and their tensors.
            results.append(self._finite(partial(strips, part), needed))
        return torch.cat(results)

    def _prepared(self, x: Tensor, device: torch.device) -> Tensor:
        return x.to(device=device, dtype=self.dtype).contiguous(memory_format=self.memory_format)

    def _enter(self, needed: int) -> bool:
        """Be on the device; whether memory for a whole picture is short there."""
        self.residence.enter(needed)
        budget = self.residence.budget
        asked = budget is not None and (budget.mode == "no" or budget.is_sparing)
        return asked or needed > self._free()

    def _free(self) -> int:
        """Bytes that may be used beside the weights."""
        budget = self.residence.budget
        if budget is None or self.residence.transfer is None:
            return int(0.9 * free_memory(self.device))
        return budget.working_bytes()

    def _finite(self, compute: Callable[[], Tensor], needed: Callable[[], int]) -> Tensor:
        """The result of `compute`, again in float32 if it is not finite. Raises NotFinite.

        needed: bytes that it takes beside the weights.
        """
        result = compute()
        if bool(torch.isfinite(result).all()):
            return result
        if self.dtype is not torch.float32:
            logger.warning("The VAE overflowed in %s; it goes on in float32.", self.dtype)
            self.dtype = torch.float32
            self.residence.offload()
            self.first_stage_model.to(torch.float32)
            self.residence.enter(needed())
            result = compute()
            if bool(torch.isfinite(result).all()):
                return result
        raise NotFinite(
            "The VAE gave invalid numbers, even in float32: its weights are broken. Choose another "
            "checkpoint or VAE."
        )
