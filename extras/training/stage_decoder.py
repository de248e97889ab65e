"""Stage 1 once more: the decoder of a whole model's autoencoder, trained further by itself.

Its encoder stays, and with it the latents: the UNet and what was trained on top of it stay true.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from extras.training.base_parts import MODEL_FILE, load_base
from extras.training.builtin_model import VAE_PREFIX
from extras.training.errors import TrainingFolderError
from extras.training.page_workers import draw_groups
from extras.training.pages import PageGroup, PagePlan, source_record
from extras.training.run import Stage
from extras.training.stage_vae import VaeLoss, psnr, reconstruction_loss, round_trips, to_network
from extras.training.writing import write_weights
from ldm_patched.modules.weight_file import read_metadata

LOSS = VaeLoss(squared=8.0, kl=0.0)
"""Squares weigh more than for a whole autoencoder: there is no blur of the latents to make up for,
and large errors are what is seen."""
_DECODING = ("decoder", "post_quant_conv")


class DecoderStage(Stage):
    """See the module's docstring."""

    name = "decoder"

    def __init__(
        self,
        base: Path,
        pages: PagePlan,
        *,
        folder: Path,
        device: torch.device,
        workers: int = 0,
        bf16: bool = True,
        compile_network: bool = False,
        output: Path | None = None,
    ) -> None:
        """base: the model file. A step takes one group of `pages`; `folder`, and `output` if given,
        are where the result goes. Raises TrainingFolderError and EngineErrors.
        """
        vae = load_base(base).vae
        self._file = _weights_of(base)
        self.vae = vae.to(device, memory_format=torch.channels_last)
        self.model = nn.ModuleDict({name: getattr(vae, name) for name in _DECODING})
        self.model.requires_grad_(True)
        self.metadata = read_metadata(base)
        self.pages, self.folder, self.device = pages, folder, device
        self.workers, self.bf16, self.output = workers, bf16, output
        self._source: Iterator[PageGroup] | None = None
        self._trip = torch.compile(self._round_trip) if compile_network else self._round_trip

    @property
    def pictures_per_step(self) -> int:
        return self.pages.group

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "pages": source_record(self.pages), "loss": asdict(LOSS)}

    def frozen(self) -> dict[str, Tensor]:
        weights = self.vae.state_dict()
        return {name: w for name, w in weights.items() if not name.startswith(_DECODING)}

    def begin(self, step: int) -> None:
        self._source = draw_groups(self.pages, step, self.workers)

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """Reconstruction from the latents' means; the groups come in the order of the steps."""
        x = to_network(next(self._source).images.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            y = self._trip(x).float()
        return reconstruction_loss(y, x, LOSS), {"psnr": psnr(y, x)}

    def _round_trip(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            latents = self.vae.encode(x)
        return self.vae.decode(latents)

    def grid(self) -> np.ndarray:
        return round_trips(self.vae, self.pages.sizes[0], self.device, bf16=self.bf16)

    def finish(self) -> list[Path]:
        """Write the model file with the new decoder; all else in it stays as it was.

        Raises TrainingFolderError.
        """
        weights = {name: weight.clone() for name, weight in self._file.items()}
        self._file = weights  # not mapped any more: Windows replaces no file that is
        for name, weight in self.model.state_dict().items():
            weights[VAE_PREFIX + name].copy_(weight)
        paths = [folder / MODEL_FILE for folder in (self.folder, self.output) if folder]
        for path in paths:
            write_weights(weights, path, metadata=self.metadata)
        return paths


def _weights_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a model file. Raises TrainingFolderError for a pickle and for other names."""
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise TrainingFolderError(
            f"{path.name} is no safetensors file, and its decoder is written back into one: choose "
            "a checkpoint that is."
        ) from error
    if not any(name.startswith(f"{VAE_PREFIX}decoder.") for name in weights):
        raise TrainingFolderError(
            f"{path.name} has its autoencoder under other names than SDXL's: choose a checkpoint "
            "in the layout of SDXL."
        )
    return weights
