"""The names and shapes of published files go through our loaders, none missing and none left over.

The lists lie beside a checkout; each is written out as a file of zeros that takes no room.
"""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from extras.ip_adapter import IPAdapterStore
from ldm_patched.modules import clip_vision, sd
from ldm_patched.modules.controlnet import ControlNet, load_controlnet
from ldm_patched.modules.file_kinds import IGNORED
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.taesd.taesd import load_taesd
from tests.support.tiny_checkpoint import Shapes, write_zeros

MANIFESTS = Path(__file__).resolve().parents[1].parent / "shared" / "manifests"
CHECKPOINTS = {
    "sd15": "Stable Diffusion 1",
    "sd21": "Stable Diffusion 2",
    "sdxl_base": "SDXL",
    "sdxl_refiner": "SDXL refiner",
}
IP_ADAPTERS = (
    "ip-adapter_sd15",
    "ip-adapter-plus_sd15",
    "ip-adapter_sdxl_vit-h",
    "ip-adapter-plus_sdxl_vit-h",
)
OTHERS = ("clip_vision_vit_h", "controlnet_sdxl", "taesd_decoder", "taesd_encoder")


def shapes_of(name: str) -> Shapes:
    """Of a published file; parts in a dictionary each have the part's name before theirs."""
    path = MANIFESTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    content = json.loads(path.read_text(encoding="utf-8"))
    found: Shapes = {}
    for key, value in content.items():
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else None
        found |= {k: tuple(s) for k, s in (inner or {key: value}).items()}
    return found


def numbers_in(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def policy() -> DevicePolicy:
    """In float16 throughout, weights stay in the file's memory: nothing of it is read."""
    made = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp16=True), Hardware(kind="cpu"))
    made.memory_format = torch.contiguous_format
    return made


def test_no_list_is_without_a_test():
    if not MANIFESTS.is_dir():
        pytest.skip("the lists are not beside this checkout")
    assert {path.stem for path in MANIFESTS.glob("*.json")} == {
        *CHECKPOINTS,
        *IP_ADAPTERS,
        *OTHERS,
    }


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_loads_in_full(name, policy, tmp_path, caplog):
    shapes = shapes_of(name)
    # Saying what the network predicts spares asking it.
    path = write_zeros(tmp_path / f"{name}.safetensors", shapes | {"v_pred": ()})
    with caplog.at_level(logging.WARNING):
        model, clip, vae, _ = sd.load_checkpoint_guess_config(path, policy=policy)
    path.unlink()
    assert not caplog.records
    assert model.model.model_config.name == CHECKPOINTS[name]
    for part in (model.model, clip, vae):
        assert part.load_report.missing == part.load_report.unexpected == ()
    parts = (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    used = sum(math.prod(s) for k, s in shapes.items() if not IGNORED.search(k))
    assert numbers_in(*parts) == used


def load_controls(path: Path, policy: DevicePolicy) -> tuple[nn.Module, ...]:
    control = load_controlnet(path, policy=policy)
    assert isinstance(control, ControlNet)
    return (control.network,)


def load_tiny(path: Path, _policy: DevicePolicy) -> tuple[nn.Module, ...]:
    return (load_taesd(path, dtype=torch.float16),)


def load_tower(path: Path, policy: DevicePolicy) -> tuple[nn.Module, ...]:
    return (clip_vision.load(path, policy).model,)


LOAD = {"controlnet_sdxl": load_controls, "clip_vision_vit_h": load_tower}


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_of_its_own_loads_in_full(name, policy, tmp_path, caplog):
    shapes = shapes_of(name)
    path = write_zeros(tmp_path / f"{name}.safetensors", shapes)
    with caplog.at_level(logging.WARNING):
        networks = LOAD.get(name, load_tiny)(path, policy)
    assert not caplog.records  # weights that are missing are an error
    assert numbers_in(*networks) == sum(math.prod(s) for s in shapes.values())


@pytest.fixture(scope="module")
def store(policy, tmp_path_factory) -> tuple[IPAdapterStore, Path]:
    """With the released image encoder."""
    path = tmp_path_factory.mktemp("tower") / "clip_vision_vit_h.safetensors"
    write_zeros(path, shapes_of("clip_vision_vit_h"))
    return IPAdapterStore(policy), path


@pytest.mark.parametrize("name", IP_ADAPTERS)
def test_an_ip_adapter_loads_in_full(name, store, tmp_path):
    shapes = shapes_of(name)
    kept, tower = store
    path = write_zeros(tmp_path / f"{name}.safetensors", shapes)
    kept.load_ip_adapter(tower, None, path)
    adapter = kept._adapters[str(path)].ip_adapter
    own = {f"image_proj.{k}": w for k, w in adapter.image_proj_model.state_dict().items()}
    assert {k: tuple(w.shape) for k, w in own.items()} == {
        k: s for k, s in shapes.items() if k.startswith("image_proj.")
    }
    assert numbers_in(adapter) == sum(math.prod(s) for s in shapes.values())
    assert adapter.plus == ("plus" in name)
    kept._forget(str(path))
