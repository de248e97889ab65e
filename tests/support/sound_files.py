"""A small sound file for every loader, what loads it and what uses it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from extras.ip_adapter import IPAdapterStore
from ldm_patched.controlnet.cldm import ControlNet
from ldm_patched.modules import clip_vision, sd
from ldm_patched.modules.control_base import ControlBase
from ldm_patched.modules.controlnet import load_controlnet
from ldm_patched.modules.embeddings import EmbeddingFolder
from ldm_patched.modules.interposer import load_interposer
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.weight_file import open_weights
from ldm_patched.t2ia.adapter import Adapter, AdapterConfig
from ldm_patched.taesd.taesd import load_taesd, make_decoder
from tests.support.control_oracle import control_lora_file, write
from tests.support.tiny_checkpoint import (
    TINY_SD1,
    UNET_PREFIX,
    VAE_PREFIX,
    tiny_sdxl_state_dict,
)
from tests.support.tiny_interposer import interposer_weights
from tests.support.tiny_ip_adapter import (
    filled,
    layer_shapes,
    plus_shapes,
    vision_shapes,
    write_adapter,
    write_vision,
)
from tests.support.unet_oracle import randomise

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
TEXT_PREFIX = "cond_stage_model.transformer."
TEXT, WIDTHS = 32, [64, 96]
NAME = "such-a-file"


@dataclass(frozen=True)
class Loader:
    """One loader. weight: the name of one that it cannot do without.

    load: from a path to something, or None for a file that it passes over. use: numbers that come
    out of what was loaded. place: of the file below a folder. beside: other files of that folder.
    """

    weights: dict[str, Tensor]
    weight: str
    load: Callable[[Path], Any]
    use: Callable[[Any], Tensor]
    place: str = f"{NAME}.safetensors"
    beside: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path, content: bytes | None = None) -> Path:
        """The file in `folder`, with what else belongs there; content: None is the sound one."""
        path = folder / self.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(self.weights) if content is None else content)
        for name, text in self.beside.items():
            (folder / name).write_text(text, encoding="utf-8")
        return path


def _of(module: nn.Module) -> dict[str, Tensor]:
    randomise(module, 3)
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def make_loaders(folder: Path) -> dict[str, Loader]:
    """Every loader by what users call its file. folder: for the files that they need besides."""
    whole = tiny_sdxl_state_dict(1, torch.float16, TINY_SD1)
    parts = {
        root: {k.removeprefix(root): w for k, w in whole.items() if k.startswith(root)}
        for root in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX)
    }
    bare = write(folder / "bare.safetensors", parts[UNET_PREFIX])
    model = _load(write(folder / "whole.safetensors", whole))[0]
    unet_weight = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    return {
        "checkpoint": Loader(whole, UNET_PREFIX + unet_weight, _load, lambda made: _run(made[0])),
        "diffusers folder": Loader(
            parts[UNET_PREFIX],
            unet_weight,
            lambda path: _load(path.parents[1]),
            lambda made: _run(made[0]),
            f"{NAME}/unet/diffusion_pytorch_model.safetensors",
            {f"{NAME}/model_index.json": '{"_class_name": "StableDiffusionPipeline"}'},
        ),
        "VAE": Loader(
            parts[VAE_PREFIX],
            "decoder.mid.block_1.conv1.weight",
            lambda path: sd.load_vae(path, POLICY),
            lambda vae: vae.decode(_draw(1, 4, 4, 4)),
        ),
        "text encoder": Loader(
            parts[TEXT_PREFIX],
            "text_model.encoder.layers.0.mlp.fc1.weight",
            lambda path: _load(bare, text_encoder_paths=[path])[1],
            lambda clip: clip.encode("a boat"),
        ),
        **_adapters(model),
        **_controls(model),
        **_of_pictures(folder),
        "tiny decoder": Loader(
            _of(make_decoder()),
            "8.conv.2.weight",
            load_taesd,
            lambda made: made.decode(_draw(1, 4, 2, 2)),
        ),
        "latent interposer": Loader(
            interposer_weights(8, 2),
            "core.2.long.2.weight",
            load_interposer,
            lambda net: net(_draw(1, 4, 4, 4)),
        ),
    }


def _load(path: Path, **options: Any) -> tuple[Any, ...]:
    return sd.load_checkpoint_guess_config(path, policy=POLICY, **options)


@torch.inference_mode()
def _run(patcher: ModelPatcher) -> Tensor:
    context = _draw(1, 77, TINY_SD1.context)
    model = patcher.patch_model()
    return model.apply_model(_draw(1, 4, 8, 8), torch.tensor([3.0]), c_crossattn=context).clone()


def _adapters(model: ModelPatcher) -> dict[str, Loader]:
    """Files that change weights, or words."""
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = model.model.diffusion_model.config.model_channels * 4
    lora = {
        f"{module}.lora_up.weight": _draw(width, 2),
        f"{module}.lora_down.weight": _draw(2, width),
    }

    def patched(path: Path) -> ModelPatcher:
        return sd.load_lora_for_models(model, None, open_weights(path), 1.0, 1.0)[0]

    def run(one: ModelPatcher) -> Tensor:
        found = _run(one)
        one.unpatch_model()
        return found

    def embedding(path: Path) -> EmbeddingFolder:
        words = EmbeddingFolder(path.parent, {"l": 768})
        words.vectors(path.stem, "l")
        return words

    return {
        "LoRA": Loader(lora, f"{module}.lora_up.weight", patched, run),
        "embedding": Loader(
            {"emb_params": _draw(2, 768)},
            "emb_params",
            embedding,
            lambda words: words.vectors(NAME, "l"),
        ),
    }


def _controls(model: ModelPatcher) -> dict[str, Loader]:
    unet = model.model.diffusion_model
    network = ControlNet(unet.config)
    weights = _of(network)
    lora = {name: w.detach() for name, w in control_lora_file(network, unet)[0].items()}
    adapter = Adapter(AdapterConfig(channels=(32, 64, 128, 128)))

    def load(path: Path) -> ControlBase:
        return load_controlnet(path, model, policy=POLICY)

    @torch.inference_mode()
    def use(control: ControlBase) -> Tensor:
        own = control.copy().set_cond_hint(_draw(1, 3, 64, 64).sigmoid())
        own.pre_run(model.model)
        cond = {"c_crossattn": _draw(1, 77, TINY_SD1.context), "transformer_options": {}}
        made = own.get_control(_draw(1, 4, 8, 8), torch.tensor([3.0]), cond, 1)
        own.cleanup()
        return torch.cat([t.flatten() for ts in (made or {}).values() for t in ts if t is not None])

    return {
        "ControlNet": Loader(weights, "zero_convs.3.0.weight", load, use),
        "control-LoRA": Loader(lora, "input_hint_block.0.weight", load, use),
        "T2I-Adapter": Loader(_of(adapter), "body.2.resnets.1.block1.weight", load, use),
    }


def _of_pictures(folder: Path) -> dict[str, Loader]:
    """Image encoders and what goes with them."""
    tower = write_vision(folder / "tower.safetensors")
    known = write_adapter(folder / "known.safetensors", WIDTHS, TEXT)
    store = IPAdapterStore(POLICY)
    store.load_ip_adapter(tower, None, known)
    shapes = {f"image_proj.{k}": s for k, s in plus_shapes(64, 2, 4, 64, TEXT).items()}
    shapes |= {f"ip_adapter.{k}": s for k, s in layer_shapes(WIDTHS, TEXT).items()}

    def adapter(path: Path) -> Path:
        store.load_ip_adapter(tower, None, path)
        see(path, 0)  # its numbers are looked at before what comes of them is kept
        return path

    def negative(path: Path) -> Path:
        store.load_ip_adapter(tower, path, known)
        return known

    def encoder(path: Path) -> clip_vision.ClipVisionModel:
        made = clip_vision.load(path, POLICY)
        made.encode(_draw(1, 3, 28, 28))  # as of the adapter
        return made

    def see(path: Path, half: int) -> Tensor:
        picture = np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3)
        store._pictures.clear()  # so that it looks again
        return torch.cat([t.flatten() for t in store.preprocess(picture, path)[half]])

    return {
        "image encoder": Loader(
            filled(vision_shapes(64, 2, 48, size=28), 1),
            "vision_model.encoder.layers.1.mlp.fc2.weight",
            encoder,
            lambda made: made.encode(_draw(1, 3, 28, 28)).image_embeds,
        ),
        "IP-Adapter": Loader(
            filled(shapes, 2),
            "ip_adapter.3.to_v_ip.weight",
            adapter,
            lambda path: see(path, 0),
        ),
        "negative of an IP-Adapter": Loader(
            {"data": _draw(1, 4, TEXT)}, "data", negative, lambda path: see(path, 1)
        ),
    }
