"""The networks of a text-to-picture model, as training takes them: fresh ones or a file's."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extras.training import builtin_model as builtin
from extras.training.caption_tokens import used_ids
from extras.training.errors import TrainingFolderError
from extras.training.pages import page_sizes
from extras.training.stage_text import TEXT_FILE, load_text_encoders
from extras.training.stage_vae import VAE_FILE
from ldm_patched.ldm.models.autoencoder import AutoencoderKL
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_patched.modules.model_base import SDXL, ModelType
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from ldm_patched.modules.sd import load_checkpoint_guess_config, read_model_metadata
from ldm_patched.modules.sd1_clip import ClipTextModel
from ldm_patched.modules.sdxl_clip import SDXLClipModel

MODEL_FILE = "easel-mini.safetensors"
SDXL_AREA = 1024 * 1024
PREDICTIONS = {
    ModelType.EPS: "eps",
    ModelType.V_PREDICTION: "v",
    ModelType.V_PREDICTION_EDM: "edm",
}
"""The objective that a kind of prediction was trained with."""


@dataclass(frozen=True)
class BaseParts:
    """A UNet, both text encoders, an autoencoder, and the objective of the UNet."""

    unet: UNetModel
    clip_l: ClipTextModel
    clip_g: ClipTextModel
    vae: AutoencoderKL
    objective: str = "eps"

    def to(self, device: torch.device) -> "BaseParts":
        """All of it moved to `device`, in the memory format of convolutions; itself."""
        for network in (self.unet, self.clip_l, self.clip_g, self.vae):
            network.to(device, memory_format=torch.channels_last)
        self.vae.eval().requires_grad_(False)
        return self


def sizes_of(path: Path) -> tuple[tuple[int, int], ...]:
    """(width, height) of the pages on which to go on with the training of a checkpoint.

    Those of the book's shapes that the file tells; all of them, if it tells none of these; all in
    SDXL's size, if it tells nothing, or is not there yet. Raises EngineErrors.
    """
    told = read_model_metadata(path) if path.is_file() else None
    sizes = page_sizes((told.area if told else None) or SDXL_AREA)
    own = tuple(size for size in sizes if told and builtin.ratio_name(*size) in told.ratios)
    return tuple(dict.fromkeys(own or sizes))


def load_base(path: Path) -> BaseParts:
    """The parts of a checkpoint in SDXL's layout, in float32 on the CPU, frozen.

    Raises TrainingFolderError if it is not there or of another family, and EngineErrors.
    """
    if not path.is_file():
        raise TrainingFolderError(
            f"There is no {path.name} in {path.parent.name!r}: run the stage `base` to its end "
            "first, in the same folder, or name a checkpoint with --start-from."
        )
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
    model, clip, vae, _ = load_checkpoint_guess_config(path, policy=policy)
    objective = PREDICTIONS.get(model.model.model_type)
    unet, encoders = model.model.diffusion_model, getattr(clip, "cond_stage_model", None)
    from_words = isinstance(encoders, SDXLClipModel) and unet.config.in_channels == 4
    if not isinstance(model.model, SDXL) or objective is None or not from_words or vae is None:
        raise TrainingFolderError(
            f"{path.name} is no whole checkpoint in the layout of SDXL's base, as refiners and "
            "inpainting models are not: choose one that is."
        )
    if objective == "v" and model.model.model_config.sampling_settings.get("zsnr"):
        objective = "v_ztsnr"
    parts = (unet, encoders.clip_l, encoders.clip_g, vae.first_stage_model)
    for network in parts:
        network.eval().requires_grad_(False)
    return BaseParts(*parts, objective)


def fresh_base(
    sizes: builtin.BuiltinSizes,
    folder: Path,
    *,
    objective: str,
    use_checkpoint: bool = False,
    needs_text: bool = False,
) -> BaseParts:
    """Random networks, ready to be trained, with what the stages `vae` and `text` left.

    needs_text: whether the latter's result must be there.
    Raises TrainingFolderError if what is needed is missing, or one of the two is damaged.
    """
    unet = builtin.make_unet(sizes, use_checkpoint=use_checkpoint)
    encoders = builtin.make_text_encoders(sizes, used_ids())
    if not load_text_encoders(folder, *encoders) and needs_text:
        raise TrainingFolderError(
            f"The folder {folder.name!r} has no {TEXT_FILE}, and text encoders that nobody has "
            "trained cannot stay as they are: run the stage `text` to its end first, in the same "
            "folder."
        )
    return BaseParts(unet, *encoders, _trained_vae(sizes, folder), objective)


def continued_base(
    sizes: builtin.BuiltinSizes, path: Path, *, objective: str, use_checkpoint: bool = False
) -> BaseParts:
    """Networks with the weights of a model file, ready to be trained further.

    Raises TrainingFolderError if the file holds a model of other sizes or another objective.
    """
    old = load_base(path)
    unet = builtin.make_unet(sizes, use_checkpoint=use_checkpoint)
    ids = used_ids()
    clip_l, clip_g = builtin.make_text_encoders(sizes, ids)
    try:
        unet.load_state_dict(old.unet.state_dict())
        for new, whole in ((clip_l, old.clip_l), (clip_g, old.clip_g)):
            new.load_state_dict(_compacted(whole.state_dict(), ids))
    except RuntimeError as error:
        raise TrainingFolderError(
            f"{path.name} has other sizes than the model that is trained: choose another file."
        ) from error
    if old.objective != objective:
        raise TrainingFolderError(
            f"{path.name} was trained to predict {old.objective!r}: add --objective "
            f"{old.objective}, or choose another file."
        )
    return BaseParts(unet, clip_l, clip_g, old.vae, objective)


def _compacted(weights: dict[str, Tensor], ids: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of a text encoder with the rows of `ids` and the one that all others share."""
    name = f"{builtin.TOKENS}.weight"
    known = set(ids)
    other = next(row for row in range(len(weights[name])) if row not in known)
    return {**weights, name: weights[name][[*ids, other]]}


def _trained_vae(sizes: builtin.BuiltinSizes, folder: Path) -> AutoencoderKL:
    vae = builtin.make_vae(sizes)
    try:
        vae.load_state_dict(load_file(folder / VAE_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingFolderError(
            f"The folder {folder.name!r} has no sound {VAE_FILE} of this model: run the stage "
            "`vae` to its end first, in the same folder."
        ) from error
    return vae
