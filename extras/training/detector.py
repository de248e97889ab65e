"""Networks that tell the facts of a picture: the detector that judges what a model paints, and a
small CLIP image encoder that image prompts look through."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from extras.ip_store import clip_preprocess
from extras.training.errors import TrainingFolderError
from extras.training.facts import fact_index
from ldm_patched.modules import clip_vision
from ldm_patched.modules.clip_vision import ClipVisionConfig, ClipVisionTower
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy

DETECTOR_FILE = "detector.safetensors"
TOWER_FILE = "easel-mini-clip-vision.safetensors"
RARE = -4.0
"""The logit that every fact starts with: most are false of most pictures."""
MINI_TOWER = ClipVisionConfig(
    width=256, layers=4, patch=16, positions=65, intermediate=1024, projection=128
)
TOY_TOWER = ClipVisionConfig(
    width=64, layers=2, patch=16, positions=17, intermediate=128, projection=64
)


class FactNetwork(nn.Module):
    """Pictures, uint8 (B, H, W, 3), to logits of their facts, (B, F).

    seen: what another network sees, told from this one's hidden states (see Detector.features), if
    it has learned to.
    """

    seen: Tensor | None = None
    places_aside: int = 0
    """How many places it tells that of in a row and in a column."""
    looks: tuple[tuple[int, int], ...] = ((0, 0),)
    """By how many pixels, down and right, a picture is moved each time that `tell` looks at it."""

    file: str
    """The name of what its training leaves."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by readout; the first is the network's word, the others only help to train."""
        raise NotImplementedError

    @torch.no_grad()
    def tell(self, image: np.ndarray) -> Tensor:
        """The logits of one picture, uint8 (H, W, 3) → (1, F): their mean over all looks."""
        height, width = image.shape[:2]
        reach = max(abs(way) for look in self.looks for way in look)
        room = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        seen = [
            room[reach - down :, reach - right :][:height, :width] for down, right in self.looks
        ]
        device = next(self.parameters()).device
        logits = next(iter(self(torch.from_numpy(np.stack(seen)).to(device)).values()))
        return logits.float().mean(dim=0, keepdim=True)

    def result(self) -> dict[str, Tensor]:
        """What is written of it."""
        return self.state_dict()


def anywhere(logits: Tensor) -> Tensor:
    """(B, N, F), of N places in a picture → (B, F): high where a fact holds at any place."""
    return logits.logsumexp(dim=1)


class LocalFacts(nn.Linear):
    """Logits of facts at places (B, N, C), taken together with `anywhere`."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__(width, len(fact_index()))
        nn.init.constant_(self.bias, RARE)
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, F)."""
        return anywhere(super().forward(x).float()) - torch.tensor(float(self.places)).log()


class Residual(nn.Module):
    """Two convolutions, each after a norm, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Detector(FactNetwork):
    """A small convolutional network for pictures of any ratio, sides multiples of 16.

    What is bound to a subject is looked for at every place; the whole picture adds to it, since
    places, counts and sides are facts of the whole.
    """

    file = DETECTOR_FILE
    looks = ((0, 0), (2, 2), (-2, -2), (3, -1), (-1, 3))

    def __init__(self, widths: tuple[int, ...] = (32, 64, 112, 160)) -> None:
        """widths: of the features at a half, a quarter, an eighth and a sixteenth of the sides."""
        super().__init__()
        layers: list[nn.Module] = []
        before = 5
        for number, width in enumerate(widths):
            layers.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            layers += [Residual(width) for _ in range(0 if number == 0 else 2)]
            before = width
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, before), nn.SiLU())
        self.local = LocalFacts(before, places=256)
        self.whole = nn.Linear(2 * before, len(fact_index()))
        nn.init.zeros_(self.whole.bias)

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.local.in_features

    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, width, H/16, W/16)."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        rows, columns = (torch.linspace(-1.0, 1.0, n, device=x.device) for n in x.shape[-2:])
        where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        x = torch.cat([x, where.expand(len(x), -1, -1, -1)], dim=1)
        features: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See FactNetwork."""
        seen = self.features(images).flatten(2)
        whole = self.whole(torch.cat([seen.mean(dim=2), seen.amax(dim=2)], dim=1))
        return {"facts": self.local(seen.transpose(1, 2)) + whole.float()}


class FactTower(FactNetwork):
    """A CLIP image encoder of which two readouts tell the facts: the embedding, and the hidden
    states before the last layer, which an image prompt is made of. Of these, a third can tell what
    a detector sees at each place, which teaches it much faster than facts do."""

    file = TOWER_FILE

    def __init__(self, config: ClipVisionConfig = MINI_TOWER, seen: int = 0) -> None:
        """seen: channels of what a detector sees, which is learned, too."""
        super().__init__()
        self.tower = ClipVisionTower(config, operations=nn)
        embeddings = self.tower.vision_model.embeddings
        nn.init.normal_(embeddings.class_embedding, std=0.02)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
        self.embeds = nn.Linear(config.projection, len(fact_index()))
        nn.init.constant_(self.embeds.bias, RARE)
        self.hidden = LocalFacts(config.width, places=config.positions)
        self.places_aside = config.image_size // config.patch
        self.sight = nn.Linear(config.width, seen) if seen else None
        if self.sight is not None:
            nn.init.zeros_(self.sight.weight)  # hidden states are large

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See FactNetwork."""
        out = self.tower(tower_pixels(images, self.tower.config.image_size))
        if self.sight is not None:
            self.seen = self.sight(out.penultimate_hidden_states[:, 1:])  # all but the class
        hidden = self.hidden(out.penultimate_hidden_states)
        return {"embeds": self.embeds(out.image_embeds), "hidden": hidden}

    def result(self) -> dict[str, Tensor]:
        """The encoder alone, under the names of transformers."""
        return self.tower.state_dict()


def tower_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 (B, H, W, 3) → what an image encoder of this size takes, (B, 3, size, size)."""
    planes = images.permute(0, 3, 1, 2).float() / 255.0
    if planes.shape[-2:] != (size, size):
        planes = F.interpolate(planes, size=(size, size), mode="bicubic", antialias=True)
    return clip_preprocess(planes.clamp(0.0, 1.0).movedim(1, -1), size)


def load_detector(folder: Path, device: torch.device) -> Detector:
    """The detector that a run left. Raises TrainingFolderError if it is not there or damaged."""
    try:
        weights = load_file(folder / DETECTOR_FILE)
        widths = (weights[f"body.{n}.weight"].shape[0] for n in (0, 1, 4, 7))
        detector = Detector(tuple(widths))
        detector.load_state_dict(weights)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise TrainingFolderError(
            f"The folder {folder.name!r} has no sound {DETECTOR_FILE}: run the stage `detector` "
            "to its end first, in the same folder."
        ) from error
    return detector.to(device).eval().requires_grad_(False)


def load_tower(path: Path) -> ClipVisionTower:
    """The image encoder that the stage `tower` left, frozen. Raises TrainingFolderError."""
    if not path.is_file():
        raise TrainingFolderError(
            f"There is no {path.name} in {path.parent.name!r}: run the stage `tower` to its end "
            "first, in the same folder."
        )
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
    return clip_vision.load(path, policy).model.eval().requires_grad_(False)
