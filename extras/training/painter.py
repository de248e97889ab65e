"""The shipped files through the program's own loaders, and pictures painted with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extras.ip_adapter import IPAdapterStore, patch_model
from extras.training.base_parts import MODEL_FILE, sizes_of
from extras.training.detector import TOWER_FILE
from extras.training.errors import TrainingFolderError
from extras.training.stage_control import CONTROL_FILE
from extras.training.stage_ip import ALWAYS, IP_FILE, NEGATIVE_FILE
from ldm_patched.modules.controlnet import apply_controls, load_controlnet
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.sample import sample
from ldm_patched.modules.sd import load_checkpoint_guess_config, load_lora_for_models
from ldm_patched.modules.weight_file import open_weights

FEWSTEP_FILE = "easel-mini-lcm.safetensors"


@dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How a picture is painted. batch: pictures at a time."""

    steps: int = 20
    cfg: float = 4.0
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    batch: int = 25


FEW = {"steps": 6, "cfg": 1.0, "sampler": "lcm", "scheduler": "lcm"}
"""What the few-step LoRA is painted with."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One picture to be painted. reference: uint8 (H, W, 3), an image prompt; edges: uint8 (H, W),
    to be followed; page: uint8 (H, W, 3), which stays but where mask, bool (H, W), says so."""

    prompt: str
    seed: int
    size: tuple[int, int] = (256, 256)
    negative: str = ""
    reference: np.ndarray | None = None
    edges: np.ndarray | None = None
    page: np.ndarray | None = None
    mask: np.ndarray | None = None


class Painter:
    """Paints orders with the model of a folder and what else is there.

    sizes: (width, height) of what the model was trained on."""

    def __init__(
        self,
        models: Path,
        settings: PaintSettings | None = None,
        policy: DevicePolicy | None = None,
    ) -> None:
        """Raises TrainingFolderError without a model, and EngineErrors for damaged files."""
        if not (models / MODEL_FILE).is_file():
            raise TrainingFolderError(
                f"There is no {MODEL_FILE} in {models.name!r}: train the built-in model, or name "
                "another folder with --models."
            )
        self.models, self.settings = models, settings or PaintSettings()
        self.policy = policy or DevicePolicy.detect()
        self.model, self.clip, self.vae, _ = load_checkpoint_guess_config(
            models / MODEL_FILE, policy=self.policy
        )
        self.sizes = sizes_of(models / MODEL_FILE)
        self._store = IPAdapterStore(self.policy)

    def lacks(self, *names: str) -> str:
        """The first of these files that is not there; empty if all are."""
        return next((name for name in names if not (self.models / name).is_file()), "")

    def with_lora(self, name: str) -> "Painter":
        """Another that paints with a LoRA of the folder, too."""
        other = object.__new__(Painter)
        other.__dict__.update(self.__dict__)
        weights = open_weights(self.models / name)
        other.model, _ = load_lora_for_models(self.model, None, weights, 1.0, 0.0)
        return other

    def in_few_steps(self) -> "Painter":
        """Another that paints with the few-step LoRA."""
        other = self.with_lora(FEWSTEP_FILE)
        other.settings = replace(self.settings, **FEW)
        return other

    def paint(self, orders: Sequence[Order]) -> list[np.ndarray]:
        """uint8 (H, W, 3) of each order, whatever their sizes."""
        painted: dict[int, np.ndarray] = {}
        for size in sorted({order.size for order in orders}):
            places = [i for i, order in enumerate(orders) if order.size == size]
            for start in range(0, len(places), self.settings.batch):
                part = places[start : start + self.settings.batch]
                made = self._paint_alike([orders[i] for i in part])
                painted |= dict(zip(part, made, strict=True))
        return [painted[i] for i in range(len(orders))]

    def _paint_alike(self, orders: Sequence[Order]) -> np.ndarray:
        """Orders of one size and with the same kinds of guides."""
        positive = self._conditions([order.prompt for order in orders])
        negative = self._conditions([order.negative for order in orders])
        model = self.model
        if orders[0].reference is not None:
            model = self._with_references([order.reference for order in orders])
        if orders[0].edges is not None:
            maps = torch.from_numpy(np.stack([order.edges for order in orders]))
            hint = (maps.float() / 255.0)[:, None].expand(-1, 3, -1, -1)
            path = self.models / CONTROL_FILE
            control = load_controlnet(path, self.model, policy=self.policy)
            control.set_cond_hint(hint, positive_only=True)  # as the program has it
            positive, negative = (apply_controls(c, control) for c in (positive, negative))
        width, height = orders[0].size
        start, mask = torch.zeros(len(orders), 4, height // 8, width // 8), None
        if orders[0].mask is not None:
            start = self._latents(np.stack([order.page for order in orders]))
            mask = torch.from_numpy(np.stack([order.mask for order in orders])).float()[:, None]
        s = self.settings
        latents = sample(
            model,
            None,
            s.steps,
            s.cfg,
            s.sampler,
            s.scheduler,
            positive,
            negative,
            start,
            noise_mask=mask,
            seed=[order.seed for order in orders],
        )
        pixels = self.vae.decode(latents)
        return (pixels * 255.0).round().byte().numpy()

    def _conditions(self, prompts: Sequence[str]) -> list[list[Any]]:
        """One condition with a row for each prompt."""
        made = [self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts]
        context, pooled = (torch.cat(parts) for parts in zip(*made, strict=True))
        return [[context, {"pooled_output": pooled}]]

    def _with_references(self, images: Sequence[np.ndarray]) -> Any:
        tower, negative, adapter = (self.models / n for n in (TOWER_FILE, NEGATIVE_FILE, IP_FILE))
        self._store.load_ip_adapter(tower, negative, adapter)
        conds = [self._store.preprocess(image, adapter) for image in images]
        rows = [torch.cat(layer) for layer in zip(*(kv for kv, _ in conds), strict=True)]
        return patch_model(self.model, [((rows, conds[0][1]), ALWAYS, 1.0)])

    def round_trip(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) there and back through the autoencoder, float (B, H, W, 3) in 0..1."""
        return self.vae.decode(self._latents(images))

    def _latents(self, images: np.ndarray) -> Tensor:
        return self.vae.encode(torch.from_numpy(images).float() / 255.0)
