"""Adapter files: every naming finds its weights, deltas agree with diffusers, errors are words."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm_patched.modules import sd
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.lora import read_lora
from ldm_patched.modules.lora_names import KeyMap, split_key
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.weight_file import open_weights
from tests.support.clip_oracle import library_config
from tests.support.engine_report import agree
from tests.support.lora_files import (
    deltas,
    kohya_file,
    layers_of,
    low_rank,
    lycoris_file,
    peft_file,
    with_added,
    without,
)
from tests.support.tiny_checkpoint import write_tiny_sdxl
from tests.support.unet_oracle import call_diffusers, diffusers_unet

CONTEXT, POOLED = 192, 128
SIZES = [64, 64, 0, 0, 64, 64]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny.safetensors", seed=2)
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
    return sd.load_checkpoint_guess_config(str(path), policy=policy)


@pytest.fixture
def model(loaded):
    yield loaded[0]
    loaded[0].unpatch_model()


@pytest.fixture
def clip(loaded):
    yield loaded[1]
    loaded[1].patcher.unpatch_model()


@pytest.fixture(scope="module")
def diffusers_layers(loaded):
    return layers_of(diffusers_unet(loaded[0].model.diffusion_model))


def snapshot(module: nn.Module):
    return {
        name: (t.data_ptr(), t.contiguous().view(torch.uint8).numpy().tobytes())
        for name, t in module.state_dict().items()
    }


def unet_output(model, seed=5):
    g = torch.Generator().manual_seed(seed)
    x, context = torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 77, CONTEXT, generator=g)
    pooled = torch.randn(1, POOLED, generator=g)
    t = torch.tensor([500.0])
    unet = model.patch_model().diffusion_model
    with torch.inference_mode():
        y = model.model.encode_adm(pooled, 64, 64)
        return unet(x, t, context=context, y=y), (x, t, context, pooled)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "module", "part"),
    [
        ("lora_unet_a_b.lora_up.weight", "lora_unet_a_b", "up"),
        ("lora_unet_a_b.alpha", "lora_unet_a_b", "alpha"),
        ("lora_unet_a_b.lora_mid.weight", "lora_unet_a_b", "middle"),
        ("unet.a.attn1.to_q.lora_A.weight", "unet.a.attn1.to_q", "down"),
        ("unet.a.attn1.to_q.lora_A.default.weight", "unet.a.attn1.to_q", "down"),
        ("unet.a.attn1.to_q.lora.down.weight", "unet.a.attn1.to_q", "down"),
        ("unet.a.attn1.processor.to_out_lora.up.weight", "unet.a.attn1.to_out.0", "up"),
        ("unet.a.attn1.processor.to_q_lora.down.weight", "unet.a.attn1.to_q", "down"),
        ("text_encoder.x.q_proj.lora_linear_layer.up.weight", "text_encoder.x.q_proj", "up"),
        ("unet.a.lora_magnitude_vector", "unet.a", "magnitude"),
        ("lora_unet_a.dora_scale", "lora_unet_a", "dora_scale"),
        ("lora_unet_a.hada_w1_a", "lora_unet_a", "w1_a"),
        ("lora_unet_a.lokr_w2_b", "lora_unet_a", "kron_w2_b"),
        ("lora_unet_a.a1.weight", "lora_unet_a", "a1"),
        ("lora_unet_a.w_norm", "lora_unet_a", "diff"),
        ("lora_unet_a.diff_b", "lora_unet_a", "bias"),
    ],
)
def test_names_split_into_module_and_part(key, module, part):
    assert split_key(key) == (module, part)


def test_a_name_that_ends_in_no_known_way_is_none():
    assert split_key("emb_params") is None
    assert split_key("lora_unet_a.oft_blocks") is None
    assert split_key("alpha") is None


def test_every_layer_of_the_unet_is_found_under_the_names_of_diffusers(model, diffusers_layers):
    keys = KeyMap(model)
    shapes = {n: tuple(w.shape) for n, w in keys.weights["unet"].items()}
    for name, weight in diffusers_layers.items():
        for written in (f"unet.{name}", name, f"lora_unet_{name.replace('.', '_')}"):
            part, module = keys.find(written)
            assert (part, shapes[f"{module}.weight"]) == ("unet", tuple(weight.shape))
    places = {keys.find(f"unet.{name}") for name in diffusers_layers}
    assert len(places) == len(diffusers_layers)


# --- against diffusers --------------------------------------------------------------------------


def check_against_hand_made(model, file, added, strength, form):
    """The patched UNet gives what diffusers' UNet gives with the deltas added by hand."""
    oracle = diffusers_unet(model.model.diffusion_model)
    scaled = {name: strength * delta for name, delta in added.items()}
    oracle.load_state_dict(with_added(oracle.state_dict(), scaled), strict=True, assign=True)
    plain, _ = unet_output(model)
    patched, clip = sd.load_lora_for_models(model, None, file, strength, 0.0)
    assert clip is None
    found, (x, t, context, pooled) = unet_output(patched)
    with torch.inference_mode():
        expected = call_diffusers(oracle, x, t, context, pooled, SIZES)
    assert (expected - plain).abs().max() > 0.05  # it does change the picture
    name, reference = f"LoRA file, {form}", "diffusers' UNet with the deltas added by hand"
    agree("adapter", name, reference, found, expected, 2e-4)


def test_a_kohya_file_agrees_with_deltas_added_by_hand(model, diffusers_layers):
    file = kohya_file(diffusers_layers, "lora_unet_", alpha=1.5)
    added = deltas(diffusers_layers, scale=0.5)
    check_against_hand_made(model, file, added, 0.8, "kohya's names")


def test_a_peft_file_agrees_with_deltas_added_by_hand(model, diffusers_layers):
    check_against_hand_made(
        model, peft_file(diffusers_layers, "unet."), deltas(diffusers_layers), -0.5, "PEFT's names"
    )


def test_a_lycoris_file_agrees_with_deltas_added_by_hand(model, diffusers_layers):
    file, added = lycoris_file(diffusers_layers)
    assert len(added) == len(diffusers_layers)
    assert read_lora(file, model).coverage == 1.0
    check_against_hand_made(model, file, added, 0.6, "LyCORIS: LoHa, LoKr, LoCon, full in turn")


def test_a_file_in_the_checkpoint_s_names_changes_the_same_weights(model):
    own = layers_of(model.model.diffusion_model)
    for prefix, flat in (("lora_unet_", True), ("diffusion_model.", False)):
        file = kohya_file(own, prefix, 1.0) if flat else peft_file(own, prefix)
        found = read_lora(file, model)
        assert found.coverage == 1.0
        assert set(found.unet) == {f"diffusion_model.{name}.weight" for name in own}


def test_peft_itself_writes_files_that_agree(model, tmp_path):
    """diffusers and PEFT add an adapter, run it and save it; we load their file."""
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    oracle = diffusers_unet(model.model.diffusion_model)
    targets = ["to_q", "to_v", "to_out.0", "ff.net.2", "conv1", "proj_in"]
    patterns = {"attn2.to_q": 13, "to_q": 3}
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_dora=True, alpha_pattern=patterns
    )
    with torch.no_grad():
        oracle.add_adapter(config)
        for name, p in oracle.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
            elif "magnitude" in name:
                p.mul_(1.1)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(oracle))
    layers = {name: t.detach().clone().contiguous() for name, t in layers.items()}
    metadata = {"unet": {"r": 4, "lora_alpha": 6, "alpha_pattern": patterns}}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata["unet"]
    )
    (path,) = tmp_path.glob("*.safetensors")
    file = open_weights(path)
    assert json.loads(file.metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 6
    lora = read_lora(file, model)
    assert lora.unmatched == ()
    patched, _ = sd.load_lora_for_models(model, None, file, 1.0, 1.0)
    found, (x, t, context, pooled) = unet_output(patched)
    with torch.no_grad():
        expected = call_diffusers(oracle, x, t, context, pooled, SIZES)
    name, reference = "LoRA file with DoRA, written by PEFT", "diffusers and PEFT"
    agree("adapter", name, reference, found, expected, 2e-4)


def test_alphas_by_the_ends_of_names_are_literal(model, tmp_path):
    path = tmp_path / "x.safetensors"
    told = {
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"o_q": 1, "attn1.to.q": 2, "attn1.to_q": 3, "to_q": 4},
    }
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {f"{module}.lora_B.weight": of_shape(128, 2),
               f"{module}.lora_A.weight": of_shape(2, 128)}  # fmt: skip
    save_file(weights, str(path), metadata={"lora_adapter_metadata": json.dumps(told)})
    ((_, parts),) = read_lora(open_weights(path), model).unet.values()
    assert parts[2] == 3.0


# --- text encoders ------------------------------------------------------------------------------


def test_both_text_encoders_take_their_own_part(model, clip):
    own = layers_of(clip.cond_stage_model)
    file = {}
    for encoder, kohya in (("clip_l", "lora_te1_"), ("clip_g", "lora_te2_")):
        mine = {n.removeprefix(f"{encoder}."): w for n, w in own.items() if n.startswith(encoder)}
        file |= kohya_file(mine, kohya, alpha=3.0)
    names = [[(i, 1.0) for i in [49406, 320, 1125, *[49407] * 74]]]
    tokens = {"l": names, "g": names}
    plain, pooled = clip.encode_from_tokens(tokens)
    same_model, patched = sd.load_lora_for_models(None, clip, file, 1.0, 0.5)
    assert same_model is None
    cond, new_pooled = patched.encode_from_tokens(tokens)
    assert (cond[..., :64] - plain[..., :64]).abs().max() > 1e-3
    assert (cond[..., 64:] - plain[..., 64:]).abs().max() > 1e-3
    assert (new_pooled - pooled).abs().max() > 1e-3
    name = "clip_g.text_model.encoder.layers.1.mlp.fc2"
    mine = [n for n in own if n.startswith("clip_g")]
    up, down = low_rank(own[name], mine.index(name))
    patched.patcher.unpatch_model()
    before = clip.cond_stage_model.get_parameter(f"{name}.weight").clone()
    patched.patcher.patch_model()
    after = clip.cond_stage_model.get_parameter(f"{name}.weight")
    name, reference = "LoRA file, both text encoders", "the deltas by hand"
    agree("adapter", name, reference, after - before, 0.5 * up @ down, 1e-5)
    again, _ = clip.encode_from_tokens(tokens)  # the one without patches takes them out
    assert torch.equal(again, plain)


def adapter_of_peft(encoder):
    """An adapter's tensors as diffusers' training scripts hand them over to be saved."""
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "out_proj"])
    with torch.no_grad():
        encoder.add_adapter(config)
        for name, p in encoder.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(encoder))
    return {name: t.detach().clone().contiguous() for name, t in layers.items()}


def test_adapters_of_text_encoders_that_peft_writes_fit(clip, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    one = CLIPTextModel(library_config(64, 2, "quick_gelu"))
    two = CLIPTextModelWithProjection(library_config(128, 3, "gelu", projection=128))
    given = {"text_encoder": adapter_of_peft(one), "text_encoder_2": adapter_of_peft(two)}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, **{f"{name}_lora_layers": layers for name, layers in given.items()}
    )
    (path,) = tmp_path.glob("*.safetensors")
    lora = read_lora(open_weights(path), None, clip)
    assert lora.unmatched == ()
    for layers, place, count in (
        (given["text_encoder"], "clip_l", 2),
        (given["text_encoder_2"], "clip_g", 3),
    ):
        mine = {name: patch for name, patch in lora.clip.items() if name.startswith(place)}
        assert len(mine) == 2 * count
        (_, (up, *_)) = mine[f"{place}.text_model.encoder.layers.1.self_attn.q_proj.weight"]
        (theirs,) = (t for n, t in layers.items() if "layers.1.self_attn.q_proj" in n and "up" in n)
        assert torch.equal(up, theirs)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "clip_l"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "clip_l"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "clip_l"),
        ("clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "clip_l"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "clip_g"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "clip_g"),
        ("text_encoder.encoder.layers.0.mlp.fc1", "clip_l"),
        ("lora_te1_encoder_layers_0_mlp_fc1", "clip_l"),
        ("text_encoder_2.encoder.layers.0.mlp.fc1", "clip_g"),
    ],
)
def test_text_encoders_are_known_by_these_names(clip, name, place):
    expected = f"{place}.text_model.encoder.layers.0.mlp.fc1"
    assert KeyMap(None, clip).find(name) == ("clip", expected)


# --- forms in files -----------------------------------------------------------------------------

KEY = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
WEIGHT = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
NORM = "lora_unet_middle_block_1_norm"


def of_shape(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"hada_w1_a": (128, 2), "hada_w1_b": (2, 128)}, None),
        (
            {n: (128, 2) if n[-1] == "a" else (2, 128) for n in
             ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
            "loha",
        ),
        ({"lokr_w1": (4, 4), "lokr_w2": (32, 32)}, "lokr"),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (32, 2)}, None),
        (
            {"a1.weight": (128, 2), "a2.weight": (2, 128), "b1.weight": (128, 2),
             "b2.weight": (2, 128)},
            "glora",
        ),
        ({"diff": (128, 128)}, "diff"),
        ({"lora_up.weight": (128, 2), "lora_down.weight": (2, 128), "dora_scale": (128, 1)},
         "dora"),
        ({"lora_up.weight": (128, 2)}, None),
    ],
)  # fmt: skip
def test_forms_are_known_by_their_parts(model, parts, kind):
    file = {f"{KEY}.{part}": of_shape(*shape) for part, shape in parts.items()}
    if kind is None:
        with pytest.raises(CorruptModelFile, match="is missing"):
            read_lora(file, model)
        return
    patch = read_lora(file, model).unet[WEIGHT]
    assert patch[0] == kind


def test_norms_and_biases_take_differences(model):
    file = {f"{NORM}.w_norm": of_shape(128), f"{NORM}.b_norm": of_shape(128)}
    patched, _ = sd.load_lora_for_models(model, None, file, 0.5, 0.0)
    norm = model.model.diffusion_model.middle_block[1].norm
    before = norm.weight.clone(), norm.bias.clone()
    patched.patch_model()
    for name, own, old in zip(("norm", "bias"), (norm.weight, norm.bias), before, strict=True):
        wanted = old.double() + 0.5 * of_shape(128).double()
        agree("adapter", f"{name} difference", "the formula in float64", own, wanted, 1e-5)


def test_a_bias_where_the_model_has_none_is_told(model):
    lora = read_lora({f"{KEY}.diff": of_shape(128, 128), f"{KEY}.diff_b": of_shape(128)}, model)
    assert lora.unmatched == (f"{KEY}.diff_b",)


@pytest.mark.parametrize(
    ("extra", "used"),
    [
        ({"diff": (128, 128)}, {"lora_up.weight", "lora_down.weight", "alpha"}),
        ({"dora_scale": (128, 1), "lora_magnitude_vector": (128,)},
         {"lora_up.weight", "lora_down.weight", "alpha", "lora_magnitude_vector"}),
        ({"diff_b": (128,)}, {"lora_up.weight", "lora_down.weight", "alpha"}),
    ],
)  # fmt: skip
def test_parts_that_no_patch_takes_are_told(model, extra, used):
    shapes = {"lora_up.weight": (128, 2), "lora_down.weight": (2, 128), "alpha": (1,), **extra}
    file = {f"{KEY}.{part}": of_shape(*shape) for part, shape in shapes.items()}
    lora = read_lora(file, model)
    assert set(lora.unet) == {WEIGHT}
    assert set(lora.unmatched) == {f"{KEY}.{part}" for part in shapes.keys() - used}
    assert (lora.used, lora.coverage) == (0, 0.0)


@pytest.mark.parametrize("part", ["alpha", "dora_scale", "lora_magnitude_vector"])
def test_a_module_with_nothing_to_add_does_not_fit(model, part):
    alone = {f"{NORM}.{part}": torch.ones(1)}
    with pytest.raises(UnsupportedModel, match="fits no part"):
        read_lora(alone, model)
    lora = read_lora(alone | {f"{KEY}.diff": of_shape(128, 128)}, model)
    assert lora.unmatched == tuple(alone)
    assert (lora.used, lora.modules) == (1, 2)


def test_an_oft_is_refused_by_its_name_and_told_beside_others(model):
    oft = {f"{NORM}.oft_blocks": torch.zeros(4, 8, 8), f"{NORM}.alpha": torch.tensor(1.0)}
    with pytest.raises(UnsupportedModel, match="is an OFT, a kind of adapter that Easel does not"):
        read_lora(oft, model)
    lora = read_lora(oft | {f"{KEY}.diff": of_shape(128, 128)}, model)
    assert set(lora.unmatched) == set(oft)
    assert lora.coverage == 0.5


# --- reversal -----------------------------------------------------------------------------------


def test_adapters_come_off_byte_by_byte(model, clip, diffusers_layers):
    unet_before, clip_before = snapshot(model.model), snapshot(clip.cond_stage_model)
    file = kohya_file(diffusers_layers, "lora_unet_", 1.0)
    own = layers_of(clip.cond_stage_model.clip_l)
    file |= kohya_file(own, "lora_te1_", 1.0)
    one, one_clip = sd.load_lora_for_models(model, clip, file, 0.7, 0.7)
    two, two_clip = sd.load_lora_for_models(one, one_clip, file, -1.3, 0.2)
    assert model.patches == {}
    for patched, text in ((one, one_clip), (two, two_clip), (one, one_clip)):
        patched.patch_model()
        text.patcher.patch_model()
        assert snapshot(model.model) != unet_before
        assert snapshot(clip.cond_stage_model) != clip_before
    model.patch_model()
    clip.patcher.patch_model()
    assert snapshot(model.model) == unet_before
    assert snapshot(clip.cond_stage_model) == clip_before


@pytest.mark.parametrize(
    ("module", "parts", "changed"),
    [
        (KEY, {n: (128, 2) if n[-1] == "a" else (2, 128) for n in
               ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}, {"weight"}),
        (KEY, {"lokr_w1": (4, 4), "lokr_w2": (32, 32)}, {"weight"}),
        (KEY, {"a1.weight": (128, 2), "a2.weight": (2, 128), "b1.weight": (128, 2),
               "b2.weight": (2, 128)}, {"weight"}),
        (KEY, {"diff": (128, 128)}, {"weight"}),
        (KEY, {"lora_up.weight": (128, 2), "lora_down.weight": (2, 128), "dora_scale": (128, 1)},
         {"weight"}),
        (NORM, {"w_norm": (128,), "b_norm": (128,)}, {"weight", "bias"}),
    ],
    ids=["LoHa", "LoKr", "GLoRA", "difference", "DoRA", "norm"],
)  # fmt: skip
def test_every_form_comes_off_byte_by_byte(model, module, parts, changed):
    before = snapshot(model.model)
    file = {f"{module}.{part}": of_shape(*shape) for part, shape in parts.items()}
    patched, _ = sd.load_lora_for_models(model, None, file, 0.7, 0.0)
    patched.patch_model()
    found = {n for n, (_, content) in snapshot(model.model).items() if content != before[n][1]}
    assert {name.rpartition(".")[2] for name in found} == changed
    assert len(found) == len(changed)
    patched.unpatch_model()
    assert snapshot(model.model) == before


# --- errors -------------------------------------------------------------------------------------


def sd1_file() -> dict[str, torch.Tensor]:
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {
        f"{module}.lora_up.weight": torch.zeros(640, 4),
        f"{module}.lora_down.weight": torch.zeros(4, 768),
        f"{module}.alpha": torch.tensor(4.0),
    }


def flux_file() -> dict[str, torch.Tensor]:
    module = "lora_unet_double_blocks_0_img_attn_proj"
    return {
        f"{module}.lora_up.weight": torch.zeros(8, 4),
        f"{module}.lora_down.weight": torch.zeros(4, 8),
    }


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (sd1_file(), "looks like a LoRA for Stable Diffusion 1.*Choose a LoRA made for SDXL"),
        (flux_file(), "looks like a LoRA for Flux.*Choose a LoRA made for SDXL"),
        ({"control_model.x.weight": torch.zeros(1)}, "looks like a ControlNet"),
        ({"whatever": torch.zeros(1)}, "fits no part of this model"),
        ({}, "fits no part of this model"),
    ],
)
def test_a_file_for_something_else_is_named(model, clip, file, words):
    with pytest.raises(UnsupportedModel, match=words):
        read_lora(file, model, clip)


def test_wrong_widths_are_refused_before_anything_changes(model, diffusers_layers):
    file = kohya_file(diffusers_layers, "lora_unet_", 1.0)
    last = list(file)[-3]
    file[last] = torch.zeros(7, 3)
    before = snapshot(model.model)
    with pytest.raises(UnsupportedModel, match="does not fit"):
        sd.load_lora_for_models(model, None, file, 1.0, 1.0)
    assert snapshot(model.model) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_invalid_numbers_are_refused_with_the_file_s_name(model, tmp_path, bad, dtype):
    up = of_shape(128, 2).to(dtype)
    up[5, 1] = bad
    path = tmp_path / "odd.safetensors"
    weights = {f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": of_shape(2, 128)}
    save_file(weights, str(path))
    with pytest.raises(CorruptModelFile, match=r"odd\.safetensors holds invalid numbers"):
        read_lora(open_weights(path), model)


def test_a_file_that_fits_in_part_says_what_is_left(model, clip, diffusers_layers, caplog):
    file = kohya_file(diffusers_layers, "lora_unet_", 1.0)
    file |= kohya_file({"no.such.layer": torch.zeros(4, 4)}, "lora_unet_", 1.0)
    lora = read_lora(file, model, clip)
    assert len(lora.unmatched) == 3
    assert lora.modules == len(diffusers_layers) + 1
    assert lora.coverage == pytest.approx(1 - 1 / lora.modules)
    assert "3 of" in caplog.text


def test_eight_bit_files_are_read(model):
    low = {k: v.to(torch.float8_e4m3fn) for k, v in
           {f"{KEY}.lora_up.weight": of_shape(128, 2),
            f"{KEY}.lora_down.weight": of_shape(2, 128)}.items()}  # fmt: skip
    assert set(read_lora(low, model).unet) == {WEIGHT}


def test_without_text_encoders_their_part_is_left_out(model, clip, diffusers_layers):
    file = kohya_file(diffusers_layers, "lora_unet_", 1.0)
    file |= kohya_file(layers_of(clip.cond_stage_model.clip_l), "lora_te1_", 1.0)
    lora = read_lora(file, model, None)
    assert lora.clip == {}
    assert len(lora.unet) == len(diffusers_layers)
    assert without(dict.fromkeys(lora.unmatched), ["lora_te1_"]) == {}


@pytest.mark.parametrize(
    "parts",
    [
        {n: (128, 0) if n[-1] == "a" else (0, 128) for n in
         ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
        {"lokr_w1": (4, 4), "lokr_w2_a": (32, 0), "lokr_w2_b": (0, 32)},
        {"a1.weight": (128, 0), "a2.weight": (0, 128), "b1.weight": (128, 0),
         "b2.weight": (0, 128)},
        {"lora_up.weight": (128, 0), "lora_down.weight": (0, 128)},
    ],
    ids=["loha", "lokr", "glora", "lora"],
)  # fmt: skip
def test_a_rank_of_nothing_is_refused(model, parts):
    file = {f"{KEY}.{part}": torch.zeros(shape) for part, shape in parts.items()}
    with pytest.raises(UnsupportedModel, match="does not fit"):
        read_lora(file | {f"{KEY}.alpha": torch.tensor(1.0)}, model)


def test_an_empty_alpha_is_damage(model):
    parts = {"lora_up.weight": (128, 2), "lora_down.weight": (2, 128), "alpha": (0,)}
    file = {f"{KEY}.{part}": torch.ones(shape) for part, shape in parts.items()}
    with pytest.raises(CorruptModelFile, match="alpha of .* is empty"):
        read_lora(file, model)
