"""The loaded models and what is done with them: refresh, encode, sample, decode.

Everything is cached by what it depends on: a model by its file's path, size and time, a prompt's
embedding by model and text. As many models stay as the computer's memory holds beside the next.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_patched.modules import sample as sampling
from ldm_patched.modules import sd
from ldm_patched.modules.controlnet import apply_controls
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.lora import Lora, read_lora
from ldm_patched.modules.model_management import DevicePolicy, free_memory, soft_empty_cache
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.supported_models import BASE
from ldm_patched.modules.weight_file import open_weights
from modules.library.catalog import ModelFile
from modules.spec.errors import ModelUnsupported, NotANumber
from modules.worker.broken_weights import blaming_files
from modules.worker.guidance import guided_conditions
from modules.worker.image_prompts import ImagePromptShelf
from modules.worker.job import Job
from modules.worker.model_files import (
    FileStamp,
    missing_part,
    reading,
    size_in_words,
    stamp_of,
    stamps_of,
)
from modules.worker.previews import make_previewer
from modules.worker.progress import Previewer
from modules.worker.refining import last_vae, refiner_switch

logger = logging.getLogger(__name__)

LoraStamps = tuple[tuple[FileStamp, float, float], ...]
WordStamps = tuple[tuple[FileStamp, float], ...]
PromptKey = tuple[FileStamp, WordStamps, tuple[str, ...], int, int | None, tuple[FileStamp, ...]]
RAM_RESERVE = 2 * 2**30  # bytes that are left to everything else when another model is loaded
VAE_SHAPE = (4, 8)  # channels of latents, and pixels per latent along a side
Conditions = list[Any]  # [[cond (1, 77·n, C), {"pooled_output": (1, P)}]]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A checkpoint in memory. `stamp` says which version of the file it was.

    vae_stamp: of the file that `vae` is from, None if none was asked for. spare_stamp: of the one
    that was taken unasked, for the checkpoint has none. text_stamps: of the files that `clip` is
    from, none if it is the checkpoint's own. loras: stamps and weights
    of the adapters on `unet` and `clip`, in order; word_loras: of those that change `clip`, with
    their weights there.
    """

    stamp: FileStamp
    name: str
    unet: ModelPatcher
    clip: sd.CLIP
    vae: sd.VAE
    previewer: Previewer
    vae_stamp: FileStamp | None = None
    spare_stamp: FileStamp | None = None
    text_stamps: tuple[FileStamp, ...] = ()
    loras: LoraStamps = ()
    word_loras: WordStamps = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Dressed:
    """`bare` with its LoRAs on; is_whole: all that were asked for, not those that fit alone."""

    bare: LoadedModel
    model: LoadedModel
    is_whole: bool


class Pipeline:
    """What a worker keeps between tasks."""

    def __init__(
        self,
        policy: DevicePolicy,
        *,
        models_kept: int = 4,
        free_ram: Callable[[], int] = partial(free_memory, torch.device("cpu")),
        prompts_kept: int = 128,
        loras_kept: int = 16,
        embeddings_path: Path | None = None,
        previews_path: Path | None = None,
    ) -> None:
        """models_kept: at most, and while they fit. free_ram: bytes that the computer has left.

        embeddings_path: folder of the learned words that prompts may name; previews_path: of the
        tiny decoders that make better previews, where there is one.
        """
        self.policy = policy
        self._embeddings_path, self._previews_path = embeddings_path, previews_path
        self.image_prompts = ImagePromptShelf(policy)
        self._models: OrderedDict[FileStamp, LoadedModel] = OrderedDict()
        self._prompts: OrderedDict[PromptKey, Conditions] = OrderedDict()
        self._loras: OrderedDict[tuple[FileStamp, FileStamp], Lora] = OrderedDict()
        self._dressed: dict[FileStamp, _Dressed] = {}
        self._models_kept, self._prompts_kept = models_kept, prompts_kept
        self._loras_kept, self._free_ram = loras_kept, free_ram

    def refresh(
        self,
        file: ModelFile,
        on_loading: Callable[[str], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
        *,
        vae: ModelFile | None = None,
        spare_vaes: Sequence[ModelFile] = (),
        text_encoders: Sequence[ModelFile] = (),
        beside: int = 0,
    ) -> LoadedModel:
        """The model of `file`: the one in memory if the file has not changed since.

        on_loading: told a sentence before a file is read. check: may raise to stop before that.
        vae: a file to take in the place of the checkpoint's own. spare_vaes, text_encoders: files
        for a checkpoint without the part; of the VAEs only a single one, for no name tells which
        fits. beside: so many of the models used last stay, whatever is kept otherwise.
        Raises ModelMissing, ModelUnsupported, or what the engine's loader raises.
        """
        stamp = stamp_of(file)
        vae_stamp = None if vae is None else stamp_of(vae)
        texts = stamps_of(text_encoders)
        if stamp in self._models and not set(self._models[stamp].text_stamps) <= texts.keys():
            self._forget(stamp)  # a text encoder of it was replaced or taken away
            self.free_memory()
        if stamp in self._models:
            self._models.move_to_end(stamp)
            model = self._models[stamp]
            spare_changed = (
                vae is None
                and model.spare_stamp is not None
                and [model.spare_stamp] != [stamp_of(spare) for spare in spare_vaes]
            )
            if model.vae_stamp != vae_stamp or spare_changed:
                self._models[stamp] = model = self._with_vae(model, file, vae, spare_vaes)
            return model
        check()
        on_loading(f"loading {file.name} ({size_in_words(file.size)})")
        logger.info("loading %s", file.name)
        with reading(file, *text_encoders):
            unet, clip, own, _ = sd.load_checkpoint_guess_config(
                str(file.path),
                policy=self.policy,
                output_vae=vae is None,
                embedding_directory=self._embeddings_path,
                # A file that is no model at all shall not cost the one that is loaded.
                before_weights=partial(self._admit, file, beside),
                text_encoder_paths=[encoder.path for encoder in text_encoders],
            )
        if unet is None or clip is None:
            raise missing_part(file, "text encoders", "text_encoders")
        spare = stamp_of(spare_vaes[0]) if own is None and vae is None and spare_vaes else None
        if own is None:
            own = self._load_vae(unet, file, vae, spare_vaes)
        previewer = make_previewer(unet, self._previews_path, self.policy)
        sources = frozenset[str]().union(*clip.sources.values())
        taken = tuple(s for s, encoder in texts.items() if encoder.path.name in sources)
        model = LoadedModel(stamp, file.name, unet, clip, own, previewer, vae_stamp, spare, taken)
        self._models[stamp] = model
        return model

    def _with_vae(
        self, model: LoadedModel, file: ModelFile, vae: ModelFile | None, spare: Sequence[ModelFile]
    ) -> LoadedModel:
        """`model` with the VAE of a file, or with its own again."""
        own = None
        if vae is None:
            with reading(file):
                *_, own, _ = sd.load_checkpoint_guess_config(
                    str(file.path), policy=self.policy, output_model=False, output_clip=False
                )
            if own is not None:
                sd.renew_blank_picture(model.unet, own, file.name)
        self._dressed.pop(model.stamp, None)  # it holds on to the VAE before
        stamp = None if vae is None else stamp_of(vae)
        taken = stamp_of(spare[0]) if own is None and vae is None and spare else None
        return replace(
            model,
            vae=own or self._load_vae(model.unet, file, vae, spare),
            vae_stamp=stamp,
            spare_stamp=taken,
        )

    def _load_vae(
        self,
        unet: ModelPatcher,
        file: ModelFile,
        vae: ModelFile | None,
        spare: Sequence[ModelFile],
    ) -> sd.VAE:
        """The VAE of a file of its own for the checkpoint `file`, which has none."""
        if vae is None:
            if len(spare) != 1:
                raise missing_part(file, "VAE", "vae")
            (vae,) = spare
        with reading(vae):
            loaded = sd.load_vae(vae.path, self.policy)
        if (loaded.latent_channels, loaded.downscale_ratio) != VAE_SHAPE:
            raise ModelUnsupported(
                f"{vae.name} is the VAE of another kind of model and does not fit {file.name}; "
                "choose another VAE."
            )
        sd.renew_blank_picture(unet, loaded, vae.name)
        return loaded

    def lora(self, model: LoadedModel, file: ModelFile) -> Lora:
        """The patches of `file` for `model`: those in memory if neither has changed since.

        Raises ModelMissing, ModelCorrupt, or what the engine says of a file that does not fit.
        """
        key = (model.stamp, stamp_of(file))
        if key not in self._loras:
            with reading(file):
                self._loras[key] = read_lora(open_weights(file.path), model.unet, model.clip)
            while len(self._loras) > self._loras_kept:
                self._loras.popitem(last=False)
        self._loras.move_to_end(key)
        return self._loras[key]

    def with_loras(
        self,
        model: LoadedModel,
        loras: Sequence[tuple[ModelFile, float, float]],
        *,
        fitting_only: bool = False,
    ) -> LoadedModel:
        """`model` with these adapters on clones of its parts, or itself if there are none.

        loras: files with their weights on the UNet and on the text encoders. fitting_only: leave
        out those of another kind of model. The last set that was asked for is kept for each
        model, so that the weights of a whole batch are changed once. Raises as `lora`.
        """
        stamps = tuple((stamp_of(file), weight, clip) for file, weight, clip in loras)
        kept = self._dressed.get(model.stamp)
        if (
            kept is not None
            and (kept.bare, kept.model.loras) == (model, stamps)
            and (fitting_only or kept.is_whole)
        ):
            return kept.model
        self._dressed.pop(model.stamp, None)  # let go of it while the next one is made
        if not stamps:
            return model
        unet, clip = model.unet.clone(), model.clip.clone()
        words: list[tuple[FileStamp, float]] = []
        is_whole = True
        for (file, weight, clip_weight), (stamp, _, _) in zip(loras, stamps, strict=True):
            try:
                found = self.lora(model, file)
            except UnsupportedModel:
                if not fitting_only:
                    raise
                is_whole = False
                continue
            if weight:
                unet.add_patches(found.unet, weight)
            if clip_weight and found.clip:
                clip.add_patches(found.clip, clip_weight)
                words.append((stamp, clip_weight))
        dressed = replace(model, unet=unet, clip=clip, loras=stamps, word_loras=tuple(words))
        self._dressed[model.stamp] = _Dressed(model, dressed, is_whole)
        return dressed

    def _admit(self, file: ModelFile, beside: int, family: BASE, size: int) -> None:
        """Before the weights of `file` are read, which will take `size` bytes. Raises
        ModelUnsupported for what does not paint pictures from words."""
        if family.purpose:
            raise ModelUnsupported(
                f"{file.name} {family.purpose} instead of painting them from words; choose another "
                "checkpoint."
            )
        self._make_place(size, beside)

    def _make_place(self, size: int, beside: int = 0) -> None:
        """Forget the models used longest ago until one of `size` bytes fits in the computer.

        beside: so many are in use and stay.
        """
        self.drop_models(keep=max(beside, self._models_kept - 1))
        if self._free_ram() < size + RAM_RESERVE:
            self.image_prompts.clear()
            self.free_memory()
        while len(self._models) > beside and self._free_ram() < size + RAM_RESERVE:
            self.drop_models(keep=len(self._models) - 1)

    def make_place_beside(self, size: int, used: int = 1) -> None:
        """Before `size` bytes of another kind are read: models go while memory is short, but for
        the `used` ones of last."""
        while len(self._models) > used and self._free_ram() < size + RAM_RESERVE:
            self.drop_models(keep=len(self._models) - 1)

    def drop_models(self, keep: int = 0) -> None:
        """Forget all but the `keep` models used last, and give their memory back."""
        dropped = len(self._models) > keep
        while len(self._models) > keep:
            self._forget(next(iter(self._models)))
        if dropped:
            self.free_memory()

    def _forget(self, stamp: FileStamp) -> None:
        """Let go of a model and of what was made from it."""
        del self._models[stamp]
        self._dressed.pop(stamp, None)  # it holds on to the model
        for prompt in [key for key in self._prompts if key[0] == stamp]:
            del self._prompts[prompt]
        for lora in [key for key in self._loras if key[0] == stamp]:
            del self._loras[lora]

    def make_room(self) -> None:
        """After memory ran out: all leave the device, and only the model used last is kept."""
        self.drop_models(keep=1)
        self.image_prompts.clear()
        self.policy.budget.make_room(None)
        self.free_memory()

    def free_memory(self) -> None:
        """Give back what nobody uses any more."""
        gc.collect()
        soft_empty_cache(self.policy.device)

    @torch.inference_mode()
    def encode(
        self,
        model: LoadedModel,
        texts: Sequence[str],
        pooled_count: int = 1,
        clip_skip: int | None = None,
    ) -> Conditions:
        """The condition of texts that are encoded apart, each computed once for each model.

        Their tokens stand one after another; the pooled output is the sum over the first
        `pooled_count` texts. The same texts give the same tensors, so that a network may keep
        what it computed from them. texts: at least one. clip_skip: which layer of the text encoder
        is read, counted from its end; None is the one that the family was trained with.
        """
        known = model.clip.embeddings
        learned = known.stamps(" ".join(texts)) if known is not None else ()
        key = (model.stamp, model.word_loras, tuple(texts), pooled_count, clip_skip, learned)
        if key not in self._prompts:
            if len(texts) == 1:
                with blaming_files(model):
                    self._keep(key, self._encode_text(model, texts[0], clip_skip))
            else:
                parts = [self.encode(model, [text], 1, clip_skip)[0] for text in texts]
                pooled = sum(part[1]["pooled_output"] for part in parts[:pooled_count])
                cond = torch.cat([part[0] for part in parts], dim=1)
                self._keep(key, [[cond, {"pooled_output": pooled}]])
        self._prompts.move_to_end(key)
        return self._prompts[key]

    def _encode_text(self, model: LoadedModel, text: str, clip_skip: int | None) -> Conditions:
        model.clip.clip_layer(None if clip_skip is None else -clip_skip)
        cond, pooled = model.clip.encode_from_tokens(model.clip.tokenize(text), return_pooled=True)
        if not bool(torch.isfinite(cond).all() and torch.isfinite(pooled).all()):
            raise NotANumber(
                f"The text encoder of {model.name} gave invalid numbers for this prompt; start "
                "Easel with --clip-in-fp32, or choose another checkpoint."
            )
        # They wait on the host, for they are many and the device's account does not know them.
        return [[cond.cpu(), {"pooled_output": pooled.cpu()}]]

    def _keep(self, key: PromptKey, conditions: Conditions) -> None:
        self._prompts[key] = conditions
        while len(self._prompts) > self._prompts_kept:
            self._prompts.popitem(last=False)

    def sample(self, job: Job, on_step: sampling.StepCallback) -> Tensor:
        """Latents (1, 4, H/8, W/8) of picture job.index.

        Raises NotFinite, ModelCorrupt for a file with broken weights, or a Stop of job.
        """
        if job.model is None or job.unet is None:
            raise RuntimeError("the control stage has not run yet")
        resolved = job.settled
        vae = job.model.vae
        height, width = (s // vae.downscale_ratio for s in (resolved.height, resolved.width))
        empty = torch.zeros(1, vae.latent_channels, height, width)
        positive, negative = guided_conditions(resolved, job.positive, job.negative)
        with blaming_files(job.model, job.refiner):
            return sampling.sample(
                job.unet,
                sampling.prepare_noise(empty, [job.seed]),
                resolved.steps,
                resolved.cfg_scale,
                resolved.sampler.value,
                resolved.scheduler.value,
                apply_controls(positive, job.control),
                apply_controls(negative, job.control),
                empty,
                callback=on_step,
                seed=[job.seed],
                refiner=refiner_switch(job, self._previews_path),
            )

    @torch.inference_mode()
    def decode(self, job: Job) -> np.ndarray:
        """job.latents as pixels (H, W, 3) uint8. Raises as `sample`."""
        if job.model is None or job.latents is None:
            raise RuntimeError("the sample stage has not run yet")
        with blaming_files(job.model, job.refiner):
            pixels = last_vae(job).decode(job.latents, job.check)
        return to_uint8(pixels[0])


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(H, W, 3) in 0..1 → (H, W, 3) uint8, rounded to the nearest."""
    return pixels.float().mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).cpu().numpy()
