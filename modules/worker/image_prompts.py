"""Image prompts in the worker: from pictures to what steers a run.

What was loaded is kept for the next task; the keys and values of pictures are kept by the
IP-Adapter store.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from extras.ip_adapter import IPAdapterStore, patch_model
from ldm_patched.modules.control_base import ControlBase
from ldm_patched.modules.controlnet import load_controlnet
from ldm_patched.modules.model_management import DevicePolicy
from modules.gallery.inputs import InputStore
from modules.gallery.maps import map_of, structure_map
from modules.library.catalog import Catalog, ModelFile
from modules.library.control_files import NEGATIVE, find_file, look_for, needed_for, vision_for
from modules.spec.image_prompt import ImagePrompt, ImagePromptType
from modules.worker.model_files import FileStamp, reading, size_in_words, stamp_of

if TYPE_CHECKING:
    from ldm_patched.modules.model_patcher import ModelPatcher

Type = ImagePromptType
CONTROLS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Picture:
    """An image prompt with its pixels, and those of its region if it has one, uint8 (H, W, 3)."""

    prompt: ImagePrompt
    pixels: np.ndarray
    region: np.ndarray | None = None

    @property
    def region_mask(self) -> Tensor | None:
        """(H, W) in 0..1: where it counts; None is everywhere."""
        if self.region is None:
            return None
        return torch.from_numpy(self.region).float().mean(-1) / 255.0


def read_picture(prompt: ImagePrompt, store: InputStore) -> Picture:
    """What `prompt` names, read. Of a face that is looked for no more than the face is kept.

    Raises SpecError for what is gone or damaged, and if there is no such face.
    """
    region = store.read(prompt.region) if prompt.region else None
    if prompt.type is not Type.FACE or prompt.skip_preprocess:
        return Picture(prompt, store.read(prompt.image), region)
    face = map_of(store.read(prompt.image, whole=True), prompt)
    return Picture(prompt.model_copy(update={"skip_preprocess": True}), face, region)


class PictureTask:
    """Pictures whose content counts, to be attached to a clone of the UNet."""

    def __init__(self, tasks: Sequence[tuple[Any, ...]]) -> None:
        """tasks: as `patch_model` takes them."""
        self.tasks = tuple(tasks)

    def attach(self, unet: "ModelPatcher") -> None:
        """Let the cross-attention of this clone see the pictures. Raises UnsupportedModel."""
        unet.model_options = patch_model(unet, self.tasks).model_options


class ImagePromptShelf:
    """The files that image prompts need, loaded when first asked for."""

    def __init__(self, policy: DevicePolicy) -> None:
        self._policy = policy
        self._adapters = IPAdapterStore(policy)
        self._controls: OrderedDict[FileStamp, ControlBase] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, to make room."""
        self._adapters.clear()
        self._controls.clear()

    def picture_task(
        self,
        pictures: Sequence[Picture],
        catalog: Catalog,
        context_dim: int | None,
        on_loading: Callable[[ModelFile], None] = lambda _: None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> PictureTask:
        """What attaches the content of `pictures` (of the types image_prompt and face).

        context_dim: the text width of the network. on_loading: told a large file before it is read.
        check_stop: called between what takes long. Raises ModelMissing, or what is wrong with a
        file.
        """
        negative = look_for(catalog, NEGATIVE, context_dim)
        tasks = []
        for picture in pictures:
            kind = picture.prompt.type
            file = find_file(catalog, needed_for(kind, context_dim), kind, context_dim)
            vision = find_file(catalog, vision_for(file), Type.IMAGE_PROMPT, context_dim)
            paths = [str(f.path) if f else None for f in (vision, negative, file)]
            large = {str(f.path): f for f in (vision, file)}
            with reading(file, *(other for other in (vision, negative) if other)):
                self._adapters.load_ip_adapter(
                    *paths, on_reading=lambda p, of=large: on_loading(of[p])
                )
                check_stop()
                conds = self._adapters.preprocess(content_of(picture), paths[2])
            prompt = picture.prompt
            how = (prompt.stops_at, prompt.weighs, picture.region_mask, prompt.start)
            tasks.append((conds, *how, prompt.mode.value))
        return PictureTask(tasks)

    def control(
        self,
        file: ModelFile,
        unet: "ModelPatcher",
        on_loading: Callable[[ModelFile], None],
        wanted: Set[FileStamp] = frozenset(),
    ) -> ControlBase:
        """The control in `file`, to be copied for a picture.

        wanted: the files that the task needs, so that they do not put each other out.
        Raises ModelMissing, ModelCorrupt, or what the engine says of a file that does not fit.
        """
        stamp = stamp_of(file)
        if stamp not in self._controls:
            on_loading(file)
            others = [kept for kept in self._controls if kept not in wanted]
            for oldest in others[: max(0, len(self._controls) + 1 - CONTROLS_KEPT)]:
                del self._controls[oldest]
            with reading(file):
                self._controls[stamp] = load_controlnet(file.path, policy=self._policy)
        self._controls.move_to_end(stamp)
        self._controls[stamp].check_fits(unet.model)
        return self._controls[stamp]


def content_of(picture: Picture) -> np.ndarray:
    """The pixels whose content counts: for a face that face, upright, else all of them.

    Raises SpecError if there is no such face.
    """
    return map_of(picture.pixels, picture.prompt)


def hint_of(picture: Picture, width: int, height: int) -> Tensor:
    """The map that a control follows, (1, 3, height, width) in 0..1."""
    found = structure_map(picture.pixels, picture.prompt, width, height)
    return torch.from_numpy(np.array(found)).permute(2, 0, 1)[None].float() / 255.0


def loading_words(file: ModelFile) -> str:
    """What viewers are told while a file is read."""
    return f"loading {file.name} ({size_in_words(file.size)})"
