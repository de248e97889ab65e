"""What all stages share that train on noised latents of the picture book."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extras.training import builtin_model as builtin
from extras.training.alignment import ALIGNMENT_WEIGHT, Lessons, TellingUNet, untold
from extras.training.base_parts import BaseParts
from extras.training.caption_tokens import caption_ids, framed
from extras.training.conditioner import ClipEmbedder, ConcatTimestepEmbedderND, GeneralConditioner
from extras.training.grids import tile
from extras.training.kept_pages import KeptPages
from extras.training.objectives import OBJECTIVES, make_loss
from extras.training.pages import GroupSource, PageGroup, source_record
from extras.training.run import Stage
from extras.training.stage_vae import to_network, to_pixels
from extras.training.window import Batch, LatentWindow, WindowPlan, conditions
from extras.training.writing import write_weights
from ldm_patched.k_diffusion.sampling import sample_euler
from ldm_patched.modules.latent_formats import SDXL as LATENT_FORMAT
from ldm_patched.modules.sd1_clip import ClipTextModel

GRID_PROMPTS = (
    "a red house by a blue lake at night, watercolor",
    "two yellow cats in a meadow",
    "pixel art of a green rocket in space",
    "a purple fish under the sea, neon",
    "a blue car to the left of a red tree",
    "a white snowman in falling snow, crayon drawing",
    "an orange umbrella on a beach at sunset",
    "cat",
)
SIZE_KEYS = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the grids show: prompts, painted in so many steps with this guidance."""

    prompts: tuple[str, ...] = GRID_PROMPTS
    steps: int = 20
    cfg: float = 4.0
    size: tuple[int, int] = (256, 256)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a stage works. folder: of the run and its results; workers: processes that draw;
    keep_pages: the folder in which encoded pages are kept for later runs, if they are."""

    folder: Path
    device: torch.device
    workers: int = 0
    bf16: bool = True
    seed: int = 0
    preview: Preview = Preview()
    keep_pages: Path | None = None

    def autocast(self) -> torch.autocast:
        """The precision of networks here."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class DiffusionStage(Stage):
    """A network learns to denoise latents. Subclasses set `model` and write the result."""

    def __init__(
        self,
        base: BaseParts,
        source: GroupSource,
        window: WindowPlan,
        place: Workplace,
        *,
        weighting: str = "",
        loss_type: str = "l2",
        offset_noise: float = 0.05,
        text_dropout: float | None = None,
        levels: str = "",
        lessons: Lessons = Lessons(),
    ) -> None:
        """weighting, levels: see make_loss. text_dropout: how often each text encoder's output is
        zeroed while both are trained; None trains neither. lessons: with a teacher, subclasses
        train what `learn_to_tell` gives as well."""
        self.lessons = lessons
        self.base, self.source, self.window_plan, self.place = base, source, window, place
        self.device = place.device
        objective = OBJECTIVES[base.objective]
        self.sigmas = objective.sigmas
        self.denoiser = objective.denoiser().to(self.device)
        self.loss = make_loss(base.objective, weighting, loss_type, offset_noise, levels)
        self.conditioner = sdxl_conditioner(base.clip_l, base.clip_g, text_dropout)
        self.conditioner.to(self.device)
        self.forward: Callable[..., Tensor] = base.unet
        self._telling: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._told: Tensor | None = None
        self.window: LatentWindow | None = None

    @property
    def pictures_per_step(self) -> int:
        return self.window_plan.batch

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "pages": source_record(self.source),
                "window": asdict(self.window_plan)}  # fmt: skip

    def begin(self, step: int) -> None:
        self.window = LatentWindow(
            self.source,
            self.window_plan,
            self.rows,
            device=self.device,
            workers=self.place.workers,
            first_step=step,
            kept=self.kept_pages(),
        )

    def kept_pages(self) -> KeptPages | None:
        """Where what `rows` gives of these pages may be already, if it is kept."""
        return None

    def rows(self, group: PageGroup) -> dict[str, Tensor]:
        """What the window keeps of each picture: its latents, for the lessons what the teacher
        sees, (G, N, C), and how much each place counts, and what subclasses add."""
        images = group.images.to(self.device, non_blocking=True)
        with self.autocast():
            seen = {k: t.flatten(2).transpose(1, 2) for k, t in self.lessons.seen(images).items()}
        counts = self.lessons.counts(group.things.to(self.device))
        return {"latents": self.encode(images), **seen, **counts}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, 4, H/8, W/8), scaled for the network."""
        with self.autocast():
            latents = self.base.vae.encode(to_network(images))
        return LATENT_FORMAT().process_in(latents.float())

    def autocast(self) -> torch.autocast:
        """The precision of this stage's networks."""
        return self.place.autocast()

    def network(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The UNet as the denoiser calls it; "unet" of the conditions are more keywords for it."""
        with self.autocast():
            x = x.contiguous(memory_format=torch.channels_last)
            # What is kept of a text does not know of adapters that change.
            self.base.unet.clear_cache()
            return self.forward(
                x,
                timesteps=c_noise,
                context=cond["crossattn"],
                y=cond["vector"],
                **cond.get("unet", {}),
            )

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the network is told of a batch."""
        with self.autocast():
            return self.conditioner(batch)

    def learn_to_tell(self, *, compiled: bool = False) -> dict[str, nn.Module]:
        """What is to be trained so that the UNet tells what the lessons' teacher sees, by name."""
        if self.lessons.teacher is None:
            return {}
        telling = TellingUNet(self.base.unet, self.lessons.teacher.width).to(self.device)
        self._telling = torch.compile(telling) if compiled else telling
        self.forward = self._tell
        return {"sight": telling.sight}

    def _tell(self, x: Tensor, **told: Any) -> Tensor:
        prediction, self._told = self._telling(x, **told)
        return prediction

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The latents' loss, and, beside it, that of what the teacher sees."""
        self.window.advance(step)
        batch = self.window.batch(step)
        clean = batch.pop("latents")
        latents = self.loss(self.network, self.denoiser, self.condition, clean, batch).mean()
        if self._telling is None:
            return latents, {}
        counts = batch.get("emphasis")
        if counts is not None:  # of the teacher's places, two by two of the latents'
            counts = F.avg_pool2d(counts, 2).flatten(1)
        missed = untold(self._told, batch["seen"], counts)
        return latents + ALIGNMENT_WEIGHT * missed, {"latents": latents, "untold": missed}

    # --- Looking ------------------------------------------------------------------------------

    def preview_batch(self, prompts: Sequence[str], size: tuple[int, int]) -> Batch:
        """The conditioner's inputs for the prompts, then as many for none."""
        width, height = size
        tokens = [framed(caption_ids(p)) for p in prompts] + [framed([])] * len(prompts)
        numbers = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(tokens), -1)
        return conditions(torch.from_numpy(np.stack(tokens)).long(), numbers, self.device)

    def paint(self, prompts: Sequence[str], *, seed: int = 0) -> np.ndarray:
        """Pictures of prompts, uint8 (B, H, W, 3), as the preview says."""
        # Nothing is told, and nothing compiled: a grid has rows of its own.
        trained, self.forward = self.forward, self.base.unet
        try:
            return self._paint(prompts, seed)
        finally:
            self.forward = trained

    @torch.no_grad()
    def _paint(self, prompts: Sequence[str], seed: int) -> np.ndarray:
        shown, count = self.place.preview, len(prompts)
        width, height = shown.size
        rates = [embedder.ucg_rate for embedder in self.conditioner.embedders]
        try:
            for embedder in self.conditioner.embedders:
                embedder.ucg_rate = 0.0
            cond = self.condition(self.preview_batch(prompts, shown.size))
        finally:
            for embedder, rate in zip(self.conditioner.embedders, rates, strict=True):
                embedder.ucg_rate = rate

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            twice = self.denoiser(self.network, torch.cat([x, x]), torch.cat([sigma, sigma]), cond)
            good, empty = twice.chunk(2)
            return empty + shown.cfg * (good - empty)

        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, 4, height // 8, width // 8, generator=generator)
        sigmas = self.sigmas(shown.steps)
        start = (noise * (1.0 + sigmas[0] ** 2) ** 0.5).to(self.device)
        latents = self.sample(model, start, sigmas.to(self.device))
        with self.autocast():  # one by one: at SDXL's size each takes gigabytes
            each = LATENT_FORMAT().process_out(latents).split(1)
            pixels = torch.cat([self.base.vae.decode(one) for one in each])
        return to_pixels(pixels).cpu().numpy()

    def sample(self, model: Callable[..., Tensor], start: Tensor, sigmas: Tensor) -> Tensor:
        """Latents from noise, by a denoiser."""
        return sample_euler(model, start, sigmas, disable=True)

    def grid(self) -> np.ndarray:
        return tile(list(self.paint(self.place.preview.prompts)), columns=4)

    # --- The result ---------------------------------------------------------------------------

    def write(
        self, weights: Mapping[str, Tensor], *paths: Path, metadata: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Write tensors to each path, all or nothing; half precision is the caller's to make.

        Raises TrainingFolderError if a folder cannot be written to.
        """
        for path in paths:
            write_weights(weights, path, metadata=metadata)
        return list(paths)


def sdxl_conditioner(
    clip_l: ClipTextModel, clip_g: ClipTextModel, dropout: float | None
) -> GeneralConditioner:
    """SDXL's conditions: both texts, the pooled second one, and six sizes.

    dropout: how often each text is zeroed while both encoders are trained; None trains neither.
    """
    text = {"is_trainable": dropout is not None, "ucg_rate": dropout or 0.0}
    embedders: list[nn.Module] = [
        ClipEmbedder(clip_l, "tokens_l", **text),
        ClipEmbedder(clip_g, "tokens_g", return_pooled=True, **text),
        *(ConcatTimestepEmbedderND(builtin.SIZE_WIDTH, key) for key in SIZE_KEYS),
    ]
    return GeneralConditioner(embedders)
