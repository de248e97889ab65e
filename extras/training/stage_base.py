"""Stage 2: the UNet and both text encoders, from nothing, on latents of the picture book."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from extras.training import builtin_model as builtin
from extras.training.caption_tokens import caption_ids, framed, used_ids
from extras.training.conditioner import ClipEmbedder, ConcatTimestepEmbedderND, GeneralConditioner
from extras.training.errors import TrainingFolderError
from extras.training.grids import tile
from extras.training.objectives import OBJECTIVES, key_tensors, make_loss
from extras.training.pages import PagePlan
from extras.training.run import Stage
from extras.training.stage_text import load_text_encoders
from extras.training.stage_vae import VAE_FILE, to_network, to_pixels
from extras.training.window import LatentWindow, WindowPlan, conditions
from ldm_patched.k_diffusion.sampling import sample_euler
from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.modules.latent_formats import SDXL as LATENT_FORMAT

MODEL_FILE = "easel-mini.safetensors"
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


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the grids show: prompts, painted in so many steps."""

    prompts: tuple[str, ...] = GRID_PROMPTS
    steps: int = 20


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """What is learnt and how. ucg: how often each text encoder's output is zeroed, on top of the
    captions that are emptied."""

    objective: str = "eps"
    weighting: str = ""
    loss_type: str = "l2"
    offset_noise: float = 0.05
    ucg: float = 0.02
    use_checkpoint: bool = False
    compile: bool = False


def load_vae(sizes: builtin.BuiltinSizes, folder: Path, device: torch.device) -> AutoencoderKL:
    """The result of stage 1, frozen. Raises TrainingFolderError if it is not there or damaged."""
    vae = builtin.make_vae(sizes)
    try:
        vae.load_state_dict(load_file(folder / VAE_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingFolderError(
            f"The folder {folder.name!r} has no sound {VAE_FILE} of this model: run the stage "
            "`vae` to its end first, in the same folder."
        ) from error
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


class BaseStage(Stage):
    """See the module's docstring."""

    name = "base"

    def __init__(
        self,
        sizes: builtin.BuiltinSizes,
        pages: PagePlan,
        window: WindowPlan,
        plan: BasePlan,
        *,
        folder: Path,
        output: Path | None = None,
        device: torch.device,
        workers: int = 0,
        bf16: bool = True,
        seed: int = 0,
        preview: Preview | None = None,
    ) -> None:
        """folder: where the autoencoder is and the result goes; output: a second place for it."""
        self.sizes, self.pages, self.window_plan, self.plan = sizes, pages, window, plan
        self.folder, self.output, self.device = folder, output, device
        self.workers, self.bf16 = workers, bf16
        self.preview = preview or Preview()
        self.vae = load_vae(sizes, folder, device)
        torch.manual_seed(seed)
        self.ids = used_ids()
        unet = builtin.make_unet(sizes, use_checkpoint=plan.use_checkpoint)
        clip_l, clip_g = builtin.make_text_encoders(sizes, self.ids)
        load_text_encoders(folder, clip_l, clip_g)
        model = nn.ModuleDict({"unet": unet, "clip_l": clip_l, "clip_g": clip_g})
        self.model = model.to(device, memory_format=torch.channels_last)
        self.conditioner = _conditioner(clip_l, clip_g, plan.ucg).to(device)
        objective = OBJECTIVES[plan.objective]
        self.sigmas = objective.sigmas
        self.denoiser = objective.denoiser().to(device)
        self.loss = make_loss(plan.objective, plan.weighting, plan.loss_type, plan.offset_noise)
        self._forward: Callable[..., Tensor] = torch.compile(unet) if plan.compile else unet
        self.window: LatentWindow | None = None

    @property
    def pictures_per_step(self) -> int:
        return self.window_plan.batch

    def identity(self) -> dict[str, Any]:
        plan = {k: v for k, v in asdict(self.plan).items() if k not in ("compile",)}
        return {"stage": self.name, "sizes": asdict(self.sizes), "pages": asdict(self.pages),
                "window": asdict(self.window_plan), "plan": plan}  # fmt: skip

    def begin(self, step: int) -> None:
        self.window = LatentWindow(
            self.pages,
            self.window_plan,
            self.encode,
            device=self.device,
            workers=self.workers,
            first_step=step,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, 4, H/8, W/8), scaled for the network."""
        with self._autocast():
            latents = self.vae.encode(to_network(images))
        return LATENT_FORMAT().process_in(latents.float())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def network(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The UNet as the denoiser calls it."""
        with self._autocast():
            x = x.contiguous(memory_format=torch.channels_last)
            return self._forward(x, timesteps=c_noise, context=cond["crossattn"], y=cond["vector"])

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The conditioner under autocast."""
        with self._autocast():
            return self.conditioner(batch)

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.window.advance(step)
        batch = self.window.batch(step)
        latents = batch.pop("latents")
        losses = self.loss(self.network, self.denoiser, self.condition, latents, batch)
        return losses.mean(), {}

    # --- Looking ------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(
        self, prompts: list[str], *, steps: int = 20, cfg: float = 4.0, seed: int = 0,
        size: tuple[int, int] = (256, 256),
    ) -> np.ndarray:  # fmt: skip
        """Pictures of prompts, uint8 (B, H, W, 3), by Euler steps with guidance."""
        width, height = size
        both = torch.from_numpy(
            np.stack([framed(caption_ids(p)) for p in prompts] + [framed([])] * len(prompts))
        ).long()
        numbers = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(both), -1)
        batch = conditions(both, numbers, self.device)
        with self._autocast():
            cond, _ = self.conditioner.get_unconditional_conditioning(batch)

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            twice = self.denoiser(self.network, torch.cat([x, x]), torch.cat([sigma, sigma]), cond)
            good, empty = twice.chunk(2)
            return empty + cfg * (good - empty)

        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(prompts), 4, height // 8, width // 8, generator=generator)
        sigmas = self.sigmas(steps)
        start = (noise * (1.0 + sigmas[0] ** 2) ** 0.5).to(self.device)
        latents = sample_euler(model, start, sigmas.to(self.device), disable=True)
        with self._autocast():
            pixels = self.vae.decode(LATENT_FORMAT().process_out(latents))
        return to_pixels(pixels).cpu().numpy()

    def grid(self) -> np.ndarray:
        shown = self.preview
        size = self.pages.sizes[0]
        return tile(list(self.paint(list(shown.prompts), steps=shown.steps, size=size)), columns=4)

    # --- The result ---------------------------------------------------------------------------

    def file(self) -> dict[str, Tensor]:
        """The whole model in SDXL's layout, from the weights now in `model`."""
        model = self.model
        return {
            **builtin.checkpoint_file(
                model["unet"].state_dict(),
                self.vae.state_dict(),
                builtin.clip_l_file(model["clip_l"], model["clip_l"].state_dict()),
                builtin.clip_g_file(model["clip_g"], model["clip_g"].state_dict()),
            ),
            **key_tensors(self.plan.objective),
        }

    def finish(self) -> list[Path]:
        """Write the model file. Raises TrainingFolderError if a folder cannot be written to."""
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in builtin.file_metadata().items()
        }
        paths = [path for path in (self.folder / MODEL_FILE, self.output) if path]
        weights = self.file()
        for path in paths:
            beside = path.with_name(path.name + ".part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(weights, beside, metadata=metadata)
                beside.replace(path)
            except OSError as error:
                raise TrainingFolderError(
                    f"The model could not be written to {path.name!r}: make its folder writable "
                    "and run the stage again with --resume."
                ) from error
        return paths


def _conditioner(clip_l: nn.Module, clip_g: nn.Module, ucg: float) -> GeneralConditioner:
    """SDXL's conditions: both texts, the pooled second one, and six sizes."""
    text = {"is_trainable": True, "ucg_rate": ucg}
    keys = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    return GeneralConditioner(
        [
            ClipEmbedder(clip_l, "tokens_l", **text),
            ClipEmbedder(clip_g, "tokens_g", return_pooled=True, **text),
            *(ConcatTimestepEmbedderND(builtin.SIZE_WIDTH, key) for key in keys),
        ]
    )
