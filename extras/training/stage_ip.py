"""Stage `ip`: image prompts for the frozen base, an IP-Adapter "plus" (arXiv:2308.06721).

Trained with the very attention that the program paints with: one softmax over text and picture,
in which a layer's image keys count C / 1280. That is little in a small network, so the keys are
trained as if it were not there, and written that much larger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extras.ip_attention import (
    PENALTY_CHANNELS,
    ImagePrompt,
    ImagePromptAttention,
    SiteKey,
    own_sites,
    site_width,
)
from extras.ip_networks import DIM_HEAD
from extras.resampler import Resampler
from extras.training import picturebook
from extras.training.alignment import Lessons
from extras.training.detector import TOWER_FILE, Detector, load_tower, tower_pixels
from extras.training.grids import tile
from extras.training.pages import PageGroup, PagePlan
from extras.training.stage_diffusion import Workplace
from extras.training.stage_lora import AdapterStage, weights_like
from extras.training.window import Batch, WindowPlan
from extras.training.writing import half
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig

IP_FILE = "easel-mini-ip-adapter.safetensors"
NEGATIVE_FILE = "easel-mini-ip-negative.safetensors"
ALWAYS = 2.0
"""A `stop` that no step reaches."""


@dataclass(frozen=True, kw_only=True)
class ImagePromptPlan:
    """The adapter's sizes. picture_dropout: how often the picture is "no picture". levels: see
    make_loss; emphasis: see Lessons."""

    width: int = 256
    depth: int = 2
    tokens: int = 8
    picture_dropout: float = 0.1
    levels: str = ""
    emphasis: float = 1.0


class ImagePromptNetwork(nn.Module):
    """Hidden states of an image encoder to keys and values of each cross-attention layer."""

    def __init__(self, plan: ImagePromptPlan, config: UNetConfig, features: int) -> None:
        """features: width of the image encoder's hidden states."""
        super().__init__()
        text = config.context_dim
        self.image_proj = Resampler(
            dim=plan.width,
            depth=plan.depth,
            dim_head=DIM_HEAD,
            heads=plan.width // DIM_HEAD,
            num_queries=plan.tokens,
            embedding_dim=features,
            output_dim=text,
        )
        # Tokens that are alike at first would be nothing but their mean, which counts little.
        nn.init.normal_(self.image_proj.latents)
        self.negative = nn.Parameter(torch.randn(1, plan.tokens, text) * 0.02)
        widths = [site_width(config, site) for site in own_sites(config)]
        self.keys = nn.ModuleList(nn.Linear(text, width, bias=False) for width in widths)
        self.values = nn.ModuleList(nn.Linear(text, width, bias=False) for width in widths)

    @torch.no_grad()
    def begin_from(self, unet: nn.Module, spread: float) -> None:
        """Read a picture's tokens as the layers of this UNet read a text's.

        spread: the standard deviation of what the UNet is told of texts, which tokens then have.
        """
        for number, site in enumerate(own_sites(unet.config)):
            attention = unet.get_submodule(_layer(site)).attn2
            self.keys[number].weight.copy_(attention.to_k.weight)
            self.values[number].weight.copy_(attention.to_v.weight)
        self.image_proj.norm_out.weight.fill_(spread)

    @staticmethod
    def gain(layer: nn.Linear) -> float:
        """What the program's attention takes off the keys of this layer."""
        return PENALTY_CHANNELS / layer.out_features

    def forward(self, features: Tensor, without: Tensor) -> list[Tensor]:
        """(B, N, features) → keys and values in turn for each layer, (B, tokens, C) each.

        without: (B,) bool, the rows that get no picture.
        """
        tokens = self.image_proj(features)
        tokens = torch.where(without[:, None, None], self.negative.to(tokens.dtype), tokens)
        pairs = zip(self.keys, self.values, strict=True)
        return [made for k, v in pairs for made in (k(tokens) * self.gain(k), v(tokens))]

    def file(self) -> dict[str, Tensor]:
        """The adapter under the names of the released files, which number layers oddly."""
        weights = {f"image_proj.{n}": w for n, w in self.image_proj.state_dict().items()}
        for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            root = f"ip_adapter.{2 * number + 1}"
            weights[f"{root}.to_k_ip.weight"] = key.weight * self.gain(key)
            weights[f"{root}.to_v_ip.weight"] = value.weight
        return weights

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights from tensors that are named and scaled as `file` gives them."""
        root = "image_proj."
        proj = {n.removeprefix(root): w for n, w in weights.items() if n.startswith(root)}
        self.image_proj.load_state_dict(proj)
        for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            root = f"ip_adapter.{2 * number + 1}"
            key.weight.copy_(weights[f"{root}.to_k_ip.weight"] / self.gain(key))
            value.weight.copy_(weights[f"{root}.to_v_ip.weight"])


class ImagePromptStage(AdapterStage):
    """See the module's docstring."""

    def __init__(
        self,
        plan: ImagePromptPlan,
        base_file: Path,
        source: PagePlan,
        window: WindowPlan,
        place: Workplace,
        *,
        teacher: Detector | None = None,
        tower_folder: Path | None = None,
        output: Path | None = None,
    ) -> None:
        """See AdapterStage. teacher: see Lessons; tower_folder: None is the run's. Raises
        TrainingFolderError without the stage `tower`'s result there."""
        lessons = Lessons(teacher=teacher, emphasis=plan.emphasis)
        super().__init__(
            "ip", base_file, lessons.pages(source), window, place, output=output,
            levels=plan.levels, lessons=lessons,
        )  # fmt: skip
        self.plan = plan
        self.tower = load_tower((tower_folder or place.folder) / TOWER_FILE).to(self.device)
        self.sites = own_sites(self.base.unet.config)
        network = ImagePromptNetwork(plan, self.base.unet.config, self.tower.config.width)
        told = super().condition(super().preview_batch(place.preview.prompts, place.preview.size))
        network.begin_from(self.base.unet, float(told["crossattn"].float().std()))
        self.adapter = network.to(self.device)
        self.model = nn.ModuleDict({"adapter": self.adapter, **self.learn_to_tell()})

    def begin_with(self, path: Path) -> None:
        """See AdapterStage; the negative embedding is taken from beside the adapter."""
        weights = weights_like(path, self.adapter.file())
        embedding = {"data": self.adapter.negative}
        negative = weights_like(path.with_name(NEGATIVE_FILE), embedding)
        self.adapter.take(weights)
        with torch.no_grad():
            self.adapter.negative.copy_(negative["data"])

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "plan": asdict(self.plan)}

    def frozen(self) -> dict[str, Tensor]:
        tower = {f"tower.{name}": weight for name, weight in self.tower.state_dict().items()}
        return {**tower, **self.lessons.frozen()}

    def rows(self, group: PageGroup) -> dict[str, Tensor]:
        return {**super().rows(group), "features": self.features(group.images.to(self.device))}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → what the image encoder makes of it, (B, N, width)."""
        with self.autocast():
            pixels = tower_pixels(images, self.tower.config.image_size)
            return self.tower(pixels).penultimate_hidden_states.float()

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The text, and the pictures by way of the attention."""
        features = batch["features"]
        without = batch.get("without")
        if without is None:
            without = torch.rand(len(features)).to(self.device) < self.plan.picture_dropout
        with self.autocast():
            made = self.adapter(features, without)
        prompt = ImagePrompt((made, made), ALWAYS, 1.0)
        attention = ImagePromptAttention(SimpleNamespace(current_step=0.0), [prompt])
        table = {site: attention.at(number) for number, site in enumerate(self.sites)}
        options = {"patches_replace": {"attn2": table}}
        return {**super().condition(batch), "unet": {"transformer_options": options}}

    def preview_batch(self, prompts: Sequence[str], size: tuple[int, int]) -> Batch:
        features = self.features(self.references(len(prompts), size))
        without = torch.arange(2 * len(prompts), device=self.device) >= len(prompts)
        both = {"features": torch.cat([features, features]), "without": without}
        return {**super().preview_batch(prompts, size), **both}

    def references(self, count: int, size: tuple[int, int]) -> Tensor:
        """Held-out pages, uint8 (count, H, W, 3)."""
        images = [picturebook.draw(seed, size=size).image for seed in range(count)]
        return torch.from_numpy(np.stack(images)).to(self.device)

    def grid(self) -> np.ndarray:
        """Held-out pages above what is painted after each, without words."""
        count = len(self.place.preview.prompts)
        shown = self.references(count, self.place.preview.size).cpu().numpy()
        return tile([*shown, *self.paint([""] * count)], columns=count)

    def finish(self) -> list[Path]:
        """Write the adapter, its negative embedding, and the image encoder for --output.

        Raises TrainingFolderError.
        """
        paths = self.write(half(self.adapter.file()), *self.places(IP_FILE))
        negative = half({"data": self.adapter.negative})
        paths += self.write(negative, *self.places(NEGATIVE_FILE))
        if self.output:
            paths += self.write(half(self.tower.state_dict()), self.output / TOWER_FILE)
        return paths


def _layer(site: SiteKey) -> str:
    """The name of the UNet's transformer layer at a site."""
    name, number, depth = site
    block = "middle_block.1" if name == "middle" else f"{name}_blocks.{number}.1"
    return f"{block}.transformer_blocks.{depth}"
