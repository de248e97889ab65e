"""LoRA files for Stable Diffusion 1 and 2: UNet and text encoder, every layer, by both namings."""

import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import sd
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.lora import read_lora
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.weight_file import open_weights
from tests.support.engine_report import agree
from tests.support.lora_files import deltas, kohya_file, layers_of, peft_file
from tests.support.tiny_checkpoint import TINY_SD1, TINY_SD2, tiny_sdxl_state_dict
from tests.support.unet_oracle import diffusers_name, diffusers_unet

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
FAMILIES = {"SD 1.x": (TINY_SD1, "clip_l"), "SD 2.x": (TINY_SD2, "clip_h")}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, UNet's patcher, text encoder, the encoder's name)."""
    sizes, encoder = FAMILIES[request.param]
    path = tmp_path_factory.mktemp("family") / "x.safetensors"
    save_file(tiny_sdxl_state_dict(3, torch.float32, sizes), str(path))
    model, clip, _, _ = sd.load_checkpoint_guess_config(str(path), policy=POLICY)
    return request.param, model, clip, encoder


def check_deltas(name, before, after, wanted):
    """Record and check the largest error of what each weight has changed by.

    before, after: by name; wanted: name → delta, of the weights that shall have changed.
    """
    worst = None
    for key, old in before.items():
        if key not in wanted:
            assert torch.equal(after[key], old), key
            continue
        pair = (after[key] - old).flatten(), wanted[key].flatten()
        error = float((pair[0] - pair[1]).abs().max())
        worst = max(worst or (error, *pair), (error, *pair), key=lambda p: p[0])
    agree("adapter", name, "the deltas by hand", *worst[1:], 1e-5)


def copies(module):
    return {k: v.clone() for k, v in module.named_parameters()}


@pytest.mark.parametrize("naming", ["kohya", "PEFT"])
def test_every_layer_of_the_unet_takes_its_delta(family, naming):
    name, model, _, _ = family
    layers = layers_of(diffusers_unet(model.model.diffusion_model))
    make = {"kohya": lambda: kohya_file(layers, "lora_unet_", alpha=3.0),
            "PEFT": lambda: peft_file(layers, "unet.")}  # fmt: skip
    patched, _ = sd.load_lora_for_models(model, None, make[naming](), 0.7, 0.0)
    lora = read_lora(make[naming](), model)
    assert (lora.coverage, len(lora.unet)) == (1.0, len(layers))
    added, config = deltas(layers, 0.7), model.model.diffusion_model.config
    before = copies(model.model.diffusion_model)
    theirs = {ours: diffusers_name(config, ours).removesuffix(".weight") for ours in before}
    wanted = {ours: added[name] for ours, name in theirs.items() if name in added}
    after = dict(patched.patch_model().diffusion_model.named_parameters())
    check_deltas(f"LoRA file ({name}), {naming}", before, after, wanted)
    patched.unpatch_model()
    now = dict(model.model.diffusion_model.named_parameters())
    assert all(torch.equal(now[k], v) for k, v in before.items())


def test_the_text_encoder_takes_its_part(family):
    name, _, clip, encoder = family
    own = {n.removeprefix(f"{encoder}."): w for n, w in layers_of(clip.cond_stage_model).items()}
    own.pop("text_projection", None)
    file = kohya_file(own, "lora_te_", alpha=3.0)
    lora = read_lora(file, None, clip)
    assert (lora.coverage, len(lora.clip)) == (1.0, len(own)), name
    wanted = {f"{encoder}.{layer}.weight": delta for layer, delta in deltas(own, 0.7).items()}
    assert set(lora.clip) == wanted.keys()
    before, plain = copies(clip.cond_stage_model), clip.encode("a boat")
    _, patched = sd.load_lora_for_models(None, clip, file, 0.0, 0.7)
    assert not torch.allclose(patched.encode("a boat"), plain)
    check_deltas(f"LoRA file ({name}), text encoder", before, copies(clip.cond_stage_model), wanted)
    assert torch.equal(clip.encode("a boat"), plain)  # the one without patches takes them out
    now = dict(clip.cond_stage_model.named_parameters())
    assert all(torch.equal(now[k], v) for k, v in before.items())


def test_one_of_sdxl_is_refused_with_its_family_s_name(family, tmp_path):
    name, model, _, _ = family
    path = tmp_path / "xl.safetensors"
    width = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048)}
    layers = {n.removeprefix("lora_unet_"): torch.empty(s) for n, s in width.items()}
    save_file(kohya_file(layers, "lora_unet_", alpha=1.0), str(path))
    with pytest.raises(UnsupportedModel, match="SDXL"):
        read_lora(open_weights(path), model)
