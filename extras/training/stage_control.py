"""Stage `control`: a control-LoRA that makes the frozen base follow a map of edges.

The network is a ControlNet (arXiv:2302.05543) that borrows the base's encoder; trained are what
takes the map in, what hands the result over, and low-rank additions between.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extras.training import picturebook
from extras.training.grids import tile
from extras.training.low_rank import LowRankSet
from extras.training.pages import PageGroup, PagePlan, edge_map
from extras.training.stage_diffusion import Workplace
from extras.training.stage_lora import AdapterStage, weights_like
from extras.training.window import Batch, WindowPlan
from extras.training.writing import half
from ldm_patched.controlnet.cldm import ControlNet

CONTROL_FILE = "easel-mini-canny.safetensors"
OWN_PARTS = ("input_hint_block", "zero_convs", "middle_block_out")
BORROWED = ("input_blocks.", "middle_block.")


class ControlStage(AdapterStage):
    """See the module's docstring."""

    def __init__(
        self,
        base_file: Path,
        source: PagePlan,
        window: WindowPlan,
        place: Workplace,
        *,
        rank: int = 32,
        output: Path | None = None,
    ) -> None:
        """See AdapterStage. source: with edges."""
        super().__init__("control", base_file, source, window, place, output=output)
        self.rank = rank
        unet = self.base.unet
        self.control = ControlNet(unet.config, operations=nn)
        self.control.load_state_dict(unet.state_dict(), strict=False)
        self.control.requires_grad_(False)
        self.added = LowRankSet(self.control, lambda name: name.startswith(BORROWED), rank)
        own = {name: getattr(self.control, name).requires_grad_(True) for name in OWN_PARTS}
        self.control.to(self.device, memory_format=torch.channels_last)
        self.model = nn.ModuleDict({**own, "added": self.added}).to(self.device)

    def begin_with(self, path: Path) -> None:
        """See AdapterStage."""
        file = weights_like(path, self.file())
        own = {name: weight for name, weight in file.items() if name.startswith(OWN_PARTS)}
        self.control.load_state_dict(own, strict=False)
        with torch.no_grad():
            for name, pair in self.added.by_name():
                pair.up.weight.copy_(file[f"{name}.up"])
                pair.down.weight.copy_(file[f"{name}.down"])

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "rank": self.rank}

    def rows(self, group: PageGroup) -> dict[str, Tensor]:
        return {**super().rows(group), "maps": group.maps.to(self.device)}

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The text, and the maps as the engine hands them over: three equal channels in 0..1."""
        maps = batch["maps"].float()[:, None] / 255.0
        return {**super().condition(batch), "hint": maps.expand(-1, 3, -1, -1)}

    def network(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Any]) -> Tensor:
        with self.autocast():
            self.control.clear_cache()
            x = x.contiguous(memory_format=torch.channels_last)
            guided = self.control.embed_hint(cond["hint"])
            made = self.control(x, guided, c_noise, cond["crossattn"], cond["vector"])
        control = {"output": made[:-1], "middle": made[-1:]}
        return super().network(x, c_noise, {**cond, "unet": {"control": control}})

    def preview_maps(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Edges of held-out pages, uint8 (count, H, W)."""
        pages = [picturebook.draw(seed, size=size).image for seed in range(count)]
        return np.stack([edge_map(page, Random(seed)) for seed, page in enumerate(pages)])

    def preview_batch(self, prompts: Sequence[str], size: tuple[int, int]) -> Batch:
        maps = torch.from_numpy(self.preview_maps(len(prompts), size)).to(self.device)
        return {**super().preview_batch(prompts, size), "maps": torch.cat([maps, maps])}

    def grid(self) -> np.ndarray:
        """Maps above what is painted after each, by the captions of their pages."""
        count, size = len(self.place.preview.prompts), self.place.preview.size
        shown = np.repeat(self.preview_maps(count, size)[..., None], 3, axis=3)
        captions = [picturebook.draw(seed, size=size).caption for seed in range(count)]
        return tile([*shown, *self.paint(captions)], columns=count)

    def file(self) -> dict[str, Tensor]:
        """The control-LoRA: its own layers in full, and the additions to the others."""
        whole = self.control.state_dict()
        weights = {name: w for name, w in whole.items() if name.startswith(OWN_PARTS)}
        for name, pair in self.added.by_name():
            weights[f"{name}.up"] = pair.up.weight
            weights[f"{name}.down"] = pair.down.weight
        return weights

    def finish(self) -> list[Path]:
        """Write the control-LoRA. Raises TrainingFolderError."""
        return self.write(half(self.file()), *self.places(CONTROL_FILE))
