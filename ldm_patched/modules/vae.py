"""Pictures to latents and back: on the right device, in little memory, never in broken numbers."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.ldm.modules.diffusionmodules.model import Interrupt
from ldm_patched.modules import utils
from ldm_patched.modules.errors import NotFinite
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import free_memory
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.weight_stream import transfer_to

logger = logging.getLogger(__name__)

TILE = 64
"""Latents along a tile's side: 512 pixels, which the model sees whole."""
ENCODE_MAPS, DECODE_MAPS = 6, 7
"""Full-size maps of the first level's width alive at once; 4 and 5 were measured on a CPU."""


class VAE:
    """An autoencoder: `encode` and `decode` for whole pictures, in tiles when memory is short."""

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
        return height * width * self.first_stage_model.config.ch * maps * self.dtype.itemsize

    @torch.inference_mode()
    def encode(
        self, pixels: Tensor, interrupt: Interrupt = None, *, tiled: bool | None = None
    ) -> Tensor:
        """Pixels (B, H, W, 3) in 0..1 → latents (B, 4, H/8, W/8) float32 on the CPU.

        The posterior's mean, unscaled; sides that are no multiple of 8 lose their remainder.
        interrupt: called often; may raise to stop. tiled: None lets the free memory decide.
        Raises NotFinite.
        """
        ratio = self.downscale_ratio
        x = pixels[..., :3].permute(0, 3, 1, 2).float() * 2.0 - 1.0
        height, width = (side - side % ratio for side in x.shape[-2:])
        x = x[..., :height, :width]
        return self._each(
            x,
            lambda part: self.first_stage_model.encode(part, interrupt),
            tile=TILE * ratio,
            scale=1.0 / ratio,
            tiled=self._enter(height, width, decoding=False) if tiled is None else tiled,
            interrupt=interrupt,
        )

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, interrupt: Interrupt = None, *, tiled: bool | None = None
    ) -> Tensor:
        """Latents (B, 4, h, w), unscaled → pixels (B, 8h, 8w, 3) in 0..1, float32 on the CPU.

        interrupt: called before each block and tile; may raise to stop. tiled: None lets the free
        memory decide. Raises NotFinite.
        """
        height, width = (side * self.downscale_ratio for side in latents.shape[-2:])
        pixels = self._each(
            latents,
            lambda part: self.first_stage_model.decode(part, interrupt),
            tile=TILE,
            scale=float(self.downscale_ratio),
            tiled=self._enter(height, width, decoding=True) if tiled is None else tiled,
            interrupt=interrupt,
        )
        return pixels.permute(0, 2, 3, 1).add_(1.0).mul_(0.5).clamp_(0.0, 1.0)

    def _enter(self, height: int, width: int, *, decoding: bool) -> bool:
        """Be on the device; whether memory for a whole picture is short there."""
        needed = self.memory_required(height, width, decoding=decoding)
        self.residence.enter(needed)
        budget = self.residence.budget
        if budget is None or self.residence.transfer is None:
            return needed > 0.9 * free_memory(self.device)
        return budget.mode == "no" or needed > budget.working_bytes()

    def _each(
        self,
        x: Tensor,
        function: Callable[[Tensor], Tensor],
        *,
        tile: int,
        scale: float,
        tiled: bool,
        interrupt: Interrupt,
    ) -> Tensor:
        """`function` of each picture of the batch apart, so that one picture's memory is enough."""
        if not bool(torch.isfinite(x).all()):
            raise NotFinite(
                "The picture turned into invalid numbers before it reached the VAE. Use a lower "
                "guidance scale, another checkpoint, or start Easel with --all-in-fp32."
            )
        overlap = tile // 4

        def whole(part: Tensor) -> Tensor:
            part = part.to(device=self.device, dtype=self.dtype)
            return function(part.contiguous(memory_format=self.memory_format)).float().cpu()

        def one(part: Tensor, tiled: bool) -> Tensor:
            if not tiled:
                return whole(part)
            return utils.tiled_map(
                whole, part, tile=tile, overlap=overlap, scale=scale, before_tile=interrupt
            )

        results = []
        for part in x.split(1):
            try:
                result = self._finite(lambda part=part: one(part, tiled))
            except torch.OutOfMemoryError:
                if tiled:
                    raise
                logger.warning("Not enough memory for a whole picture in the VAE; using tiles.")
                result = self._finite(lambda part=part: one(part, tiled=True))
            results.append(result)
        return torch.cat(results)

    def _finite(self, compute: Callable[[], Tensor]) -> Tensor:
        """The result of `compute`, again in float32 if it is not finite. Raises NotFinite."""
        result = compute()
        if bool(torch.isfinite(result).all()):
            return result
        if self.dtype is not torch.float32:
            logger.warning("The VAE overflowed in %s; it goes on in float32.", self.dtype)
            self.dtype = torch.float32
            self.residence.offload()
            self.first_stage_model.to(torch.float32)
            self.residence.enter()
            result = compute()
            if bool(torch.isfinite(result).all()):
                return result
        raise NotFinite(
            "The VAE gave invalid numbers, even in float32: its weights are broken. Choose another "
            "checkpoint or VAE."
        )
