"""Between the stages `vae` and `base`: teaches the text encoders what captions say.

Each encoder learns to tell the facts of a scene from its caption alone, at the end token of the
hidden states and in the pooled output that the UNet is given. A diffusion loss would teach them
the same by way of pictures, many times slower. The base stage goes on with these weights.
"""

from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from extras.training import builtin_model as builtin
from extras.training import picturebook
from extras.training.caption_tokens import END_TOKEN, PAD_G, caption_ids, framed, strew, used_ids
from extras.training.captions import caption
from extras.training.errors import TrainingFolderError
from extras.training.facts import fact_index, fact_loss, scene_facts
from extras.training.pages import FIRST_TRAINING_SEED
from extras.training.run import Stage
from extras.training.writing import write_weights
from ldm_patched.modules.sd1_clip import PENULTIMATE

TEXT_FILE = "text.safetensors"
READOUTS = ("hidden_l", "hidden_g", "pooled")
_STRANGE = 0.15  # how many captions get unknown words
_SEED = 700_000_000_000 + FIRST_TRAINING_SEED  # far from the pages of the other stages


def draw_captions(seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
    """(ids int64 (B, N), facts float32 (B, F)) of a step; N is as long as the longest needs."""
    ids, facts = [], []
    for index in range(count):
        number = _SEED + (seed << 40) + step * count + index
        scene, rng = picturebook.scene_from_seed(number), Random(f"text {number}")
        tokens = caption_ids(caption(scene, rng))
        ids.append(framed(strew(tokens, rng) if rng.random() < _STRANGE else tokens))
        facts.append(scene_facts(scene))
    rows = torch.from_numpy(np.stack(ids)).long()
    longest = int((rows != END_TOKEN).sum(dim=1).max()) + 1
    return rows[:, :longest], torch.from_numpy(np.stack(facts)).float()


class TextStage(Stage):
    """See the module's docstring."""

    name = "text"

    def __init__(
        self,
        sizes: builtin.BuiltinSizes,
        *,
        folder: Path,
        device: torch.device,
        batch: int = 128,
        bf16: bool = True,
        seed: int = 0,
    ) -> None:
        """folder: where the result goes."""
        torch.manual_seed(seed)
        self.sizes, self.folder, self.device = sizes, folder, device
        self.batch, self.bf16, self.seed = batch, bf16, seed
        clip_l, clip_g = builtin.make_text_encoders(sizes, used_ids())
        widths = (sizes.clip_l_width, sizes.clip_g_width, sizes.clip_g_width)
        heads = {
            name: nn.Linear(width, len(fact_index()))
            for name, width in zip(READOUTS, widths, strict=True)
        }
        parts = {"clip_l": clip_l, "clip_g": clip_g, "heads": nn.ModuleDict(heads)}
        self.model = nn.ModuleDict(parts).to(device)

    @property
    def pictures_per_step(self) -> int:
        return self.batch

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "sizes": asdict(self.sizes), "batch": self.batch}

    def guesses(self, ids: Tensor) -> dict[str, Tensor]:
        """Logits (B, F) of the facts by readout, for ids (B, N) padded with the end token."""
        ends = (ids == END_TOKEN).int()
        last = ends.argmax(dim=1)
        behind = ends.cumsum(dim=1) > 1
        rows = torch.arange(len(ids), device=ids.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden_l, _ = self.model["clip_l"](ids, PENULTIMATE)
            hidden_g, pooled = self.model["clip_g"](ids.masked_fill(behind, PAD_G), PENULTIMATE)
            read = {"hidden_l": hidden_l[rows, last], "hidden_g": hidden_g[rows, last],
                    "pooled": pooled}  # fmt: skip
            return {name: self.model["heads"][name](value) for name, value in read.items()}

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The facts' cross-entropy, mean over the readouts."""
        ids, facts = (part.to(self.device) for part in draw_captions(self.seed, step, self.batch))
        losses = {name: fact_loss(logits, facts) for name, logits in self.guesses(ids).items()}
        return torch.stack(list(losses.values())).mean(), losses

    def finish(self) -> list[Path]:
        """Write both encoders, without the heads. Raises TrainingFolderError."""
        weights = {
            name: weight.float()
            for name, weight in self.model.state_dict().items()
            if not name.startswith("heads.")
        }
        path = self.folder / TEXT_FILE
        write_weights(weights, path)
        return [path]


def load_text_encoders(folder: Path, clip_l: nn.Module, clip_g: nn.Module) -> bool:
    """Give both encoders the weights of the stage `text`, if its result is there; whether it was.

    Raises TrainingFolderError if the file is damaged or of other dimensions.
    """
    path = folder / TEXT_FILE
    if not path.is_file():
        return False
    try:
        nn.ModuleDict({"clip_l": clip_l, "clip_g": clip_g}).load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingFolderError(
            f"The file {TEXT_FILE} in {folder.name!r} is damaged or of another model: delete it, "
            "or run the stage `text` again in the same folder."
        ) from error
    return True
