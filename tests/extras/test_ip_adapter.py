"""IP-Adapter files, pictures and the patched network, on small real networks."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from extras import ip_adapter, ip_store
from extras.ip_attention import own_sites, site_width
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from tests.support.tiny_ip_adapter import (
    SD1_WIDTHS,
    SDXL_WIDTHS,
    filled,
    layer_shapes,
    plain_shapes,
    plus_shapes,
    write_adapter,
    write_negative,
    write_vision,
)
from tests.support.unet_oracle import make_unet

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
TEXT = 32
CONFIG = UNetConfig(
    model_channels=32,
    num_res_blocks=(1, 1, 1),
    transformer_depth=(0, 1, 2),
    transformer_depth_middle=2,
    transformer_depth_output=(2, 2, 1, 1, 0, 0),
    context_dim=TEXT,
    num_classes=None,
    time_embed_dim=128,
    num_head_channels=32,
)
WIDTHS = [site_width(CONFIG, site) for site in own_sites(CONFIG)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = make_unet(CONFIG)


def picture(seed: int, size=(40, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ipadapter")
    return {
        "tower": write_vision(folder / "tower.safetensors"),
        "negative": write_negative(folder / "negative.safetensors"),
        "plus": write_adapter(folder / "plus.safetensors", WIDTHS, TEXT),
        "plain": write_adapter(folder / "plain.bin", WIDTHS, TEXT, plus=False, features=48,
                               nested=True),
    }  # fmt: skip


@pytest.fixture
def store(files):
    store = ip_adapter.IPAdapterStore(POLICY)
    store.load_ip_adapter(files["tower"], files["negative"], files["plus"])
    return store


@pytest.fixture(scope="module")
def model():
    return ModelPatcher(Model())


def call(patcher, t: float = 999.0, halves=(0, 1)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 7, TEXT, generator=generator)
    options = {**patcher.model_options["transformer_options"], "cond_or_uncond": list(halves)}
    network = patcher.model.diffusion_model
    with torch.inference_mode():
        return network(x, torch.full((2,), t), context, transformer_options=options).clone()


# --- Networks and files -----------------------------------------------------------------------


def test_the_tables_are_those_of_the_released_files():
    twice = [width for width in SDXL_WIDTHS for _ in "kv"]
    assert twice == ip_adapter.SD_XL_CHANNELS
    assert [width for width in SD1_WIDTHS for _ in "kv"] == ip_adapter.SD_V12_CHANNELS


@pytest.mark.parametrize(
    ("text", "widths", "dim", "plus"),
    [
        (768, SD1_WIDTHS, 768, True),
        (768, SD1_WIDTHS, 0, False),
        (2048, SDXL_WIDTHS, 1280, True),
        (2048, SDXL_WIDTHS, 0, False),
    ],
)
def test_released_shapes_fill_the_model_exactly(text, widths, dim, plus):
    tokens, features = (16, 1280) if plus else (4, 1024)
    proj = plus_shapes(dim, 4, 16, 1280, text) if plus else plain_shapes(4, 1024, text)
    layers = layer_shapes(widths, text)
    with torch.device("meta"):
        parts = {
            "image_proj": {name: torch.empty(shape) for name, shape in proj.items()},
            "ip_adapter": {name: torch.empty(shape) for name, shape in layers.items()},
        }
    model = ip_adapter.IPAdapterModel(parts, plus, text, features, tokens, plus and text == 2048)
    own = {n: tuple(w.shape) for n, w in model.image_proj_model.state_dict().items()}
    assert own == proj
    assert [layer.weight.shape[0] for layer in model.ip_layers.to_kvs[::2]] == widths
    assert not any(p.requires_grad for p in model.parameters())


def test_keys_and_values_are_loaded_in_the_order_of_the_layers():
    weights = filled(layer_shapes(SD1_WIDTHS, 768))
    shuffled = dict(sorted(weights.items(), reverse=True))
    layers = ip_adapter.To_KV(768)
    layers.load_state_dict_ordered(shuffled)
    assert torch.equal(layers.to_kvs[4].weight, weights["5.to_k_ip.weight"])
    assert torch.equal(layers.to_kvs[31].weight, weights["31.to_v_ip.weight"])
    tokens = torch.randn(1, 4, 768)
    made = layers(tokens)
    torch.testing.assert_close(made[1].detach(), tokens @ weights["1.to_v_ip.weight"].T)


def test_other_networks_give_their_own_widths():
    layers = ip_adapter.To_KV(TEXT)
    layers.load_state_dict_ordered(filled(layer_shapes(WIDTHS, TEXT)))
    assert [layer.weight.shape[0] for layer in layers.to_kvs[::2]] == WIDTHS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("31.to_v_ip.weight"), "layer 31 has no values"),
        (lambda w: [w.pop(f"31.to_{k}_ip.weight") for k in "kv"], "30 matrices.*SD 1 needs 32"),
        (
            lambda w: w.update({"5.to_k_ip.weight": torch.zeros(320, 768)}),
            r"keys of layer 2 .*\(320, 768\).*\(640, 768\)",
        ),
        (
            lambda w: w.update({"1.to_v_ip.weight": torch.zeros(320, 700)}),
            r"values of layer 0 .*\(320, 700\).*\(320, 768\)",
        ),
        (dict.clear, "0 matrices"),
    ],
)
def test_wrong_weights_name_what_was_expected_and_found(change, message):
    weights = {n: torch.zeros(s) for n, s in layer_shapes(SD1_WIDTHS, 768).items()}
    change(weights)
    with pytest.raises(CorruptModelFile, match=message):
        ip_adapter.To_KV(768).load_state_dict_ordered(weights)


def test_image_projection():
    model = ip_adapter.ImageProjModel(16, 8, 3)
    out = model(torch.randn(2, 8))
    assert out.shape == (2, 3, 16)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_the_wrong_tower_is_named(tmp_path, files):
    store = ip_adapter.IPAdapterStore(POLICY)
    other = write_vision(tmp_path / "other.safetensors", width=128, projection=40)
    with pytest.raises(UnsupportedModel, match="hidden states 64 wide.*other.*gives 128"):
        store.load_ip_adapter(other, None, files["plus"])
    with pytest.raises(UnsupportedModel, match="embeddings 48 wide.*gives 40"):
        store.load_ip_adapter(other, None, files["plain"])
    with pytest.raises(UnsupportedModel, match="needs an image encoder"):
        ip_adapter.IPAdapterStore(POLICY).load_ip_adapter(None, None, files["plus"])


def test_other_files_are_refused_in_words(tmp_path, files):
    store = ip_adapter.IPAdapterStore(POLICY)
    with pytest.raises(UnsupportedModel, match="looks like a CLIP image encoder"):
        store.load_ip_adapter(files["tower"], None, files["tower"])
    face_id = {"image_proj": {"proj.0.weight": torch.ones(2, 2)}}
    face_id["ip_adapter"] = {"0.to_q_lora.down.weight": torch.ones(2, 2)}
    torch.save(face_id, tmp_path / "faceid.bin")
    with pytest.raises(UnsupportedModel, match="FaceID"):
        store.load_ip_adapter(files["tower"], None, tmp_path / "faceid.bin")
    with pytest.raises(UnsupportedModel, match="negative image embedding"):
        store.load_ip_adapter(files["tower"], files["plus"], None)


# --- Pictures ---------------------------------------------------------------------------------


def test_clip_preprocess_numbers():
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    image = torch.rand(2, 224, 224, 3)
    out = ip_adapter.clip_preprocess(image)
    assert out.shape == (2, 3, 224, 224)
    torch.testing.assert_close(out.movedim(1, -1), (image - mean) / std)
    with pytest.raises(ip_adapter.WrongImageSize, match="224 × 224 pixels, got 224 × 200"):
        ip_adapter.clip_preprocess(image[:, :200])


@pytest.mark.parametrize("kind", ["plus", "plain"])
def test_preprocess_is_the_chain_of_its_parts(files, kind):
    store = ip_adapter.IPAdapterStore(POLICY)
    store.load_ip_adapter(files["tower"], files["negative"], files[kind])
    image = picture(0, (28, 28))
    conds, unconds = store.preprocess(image, files[kind])
    entry, tower = store._adapters[str(files[kind])], store._towers[str(files["tower"])][1]
    pixels = ip_adapter.clip_preprocess(torch.from_numpy(image)[None] / 255.0, 28)
    out = tower.encode(pixels)
    features = out.penultimate_hidden_states if kind == "plus" else out.image_embeds
    tokens = entry.ip_adapter.image_proj_model(features)
    for index, width in enumerate(WIDTHS):
        for half in (0, 1):
            weight = entry.ip_adapter.ip_layers.to_kvs[2 * index + half].weight
            assert conds[2 * index + half].shape == (1, 4, width)
            torch.testing.assert_close(conds[2 * index + half], tokens @ weight.T)
    negative = entry.ip_adapter.ip_layers(entry.negative)
    assert all(torch.equal(a, b) for a, b in zip(unconds, negative, strict=True))


def test_without_a_fitting_negative_the_adapter_s_own_is_used(files, tmp_path):
    other = write_negative(tmp_path / "wide.safetensors", tokens=4, text=TEXT * 2)
    for negative in (other, None):
        store = ip_adapter.IPAdapterStore(POLICY)
        store.load_ip_adapter(files["tower"], negative, files["plain"])
        conds, unconds = store.preprocess(picture(0), files["plain"])
        assert unconds[0].shape == conds[0].shape
        tokens = store._adapters[str(files["plain"])].ip_adapter.image_proj_model(
            torch.zeros(1, 48)
        )
        layers = store._adapters[str(files["plain"])].ip_adapter.ip_layers
        torch.testing.assert_close(unconds[0], layers(tokens)[0])
        store.load_ip_adapter(files["tower"], negative, files["plain"])
        assert store._adapters[str(files["plain"])].ip_adapter.ip_layers is layers


def test_without_a_negative_a_plus_adapter_looks_at_a_picture_of_zeros(files):
    store = ip_adapter.IPAdapterStore(POLICY)
    store.load_ip_adapter(files["tower"], None, files["plus"])
    unconds = store.preprocess(picture(0), files["plus"])[1]
    entry = store._adapters[str(files["plus"])]
    tower = store._towers[str(files["tower"])][1]
    seen = tower.encode(
        torch.zeros(1, 3, tower.config.image_size, tower.config.image_size)
    ).penultimate_hidden_states
    expected = entry.ip_adapter.ip_layers(entry.ip_adapter.image_proj_model(seen))
    for found, wanted in zip(unconds, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)])
def test_a_picture_of_any_shape_has_keys_and_values(store, files, size):
    conds, _ = store.preprocess(picture(4, size), files["plus"])
    assert all(bool(tensor.isfinite().all()) for tensor in conds)
    other, _ = store.preprocess(255 - picture(4, size), files["plus"])
    assert not torch.allclose(conds[0], other[0])


def test_keys_and_values_have_the_network_s_precision(files):
    policy = DevicePolicy(DeviceFlags(always_cpu=True, unet_in_bf16=True))
    store = ip_adapter.IPAdapterStore(policy)
    store.load_ip_adapter(files["tower"], files["negative"], files["plus"])
    conds, unconds = store.preprocess(picture(0), files["plus"])
    assert {tensor.dtype for tensor in (*conds, *unconds)} == {policy.unet_compute_dtype}
    assert policy.unet_compute_dtype is torch.bfloat16


def test_the_same_picture_runs_nothing_again(store, files):
    first = store.preprocess(picture(0), files["plus"])
    assert store.runs == 1
    store.load_ip_adapter(files["tower"], files["negative"], files["plus"])
    again = store.preprocess(picture(0).copy(), files["plus"])
    assert store.runs == 1
    assert first[0] is again[0]
    assert first[1] is again[1]
    assert not torch.equal(store.preprocess(picture(1), files["plus"])[0][0], first[0][0])
    assert store.runs == 2


def test_few_pictures_are_kept(files):
    store = ip_adapter.IPAdapterStore(POLICY, pictures_kept=2)
    store.load_ip_adapter(files["tower"], None, files["plus"])
    for seed in range(5):
        store.preprocess(picture(seed), files["plus"])
    assert len(store._pictures) == 2


def test_few_files_are_kept_and_the_large_ones_are_told_before_they_are_read(files, tmp_path):
    store = ip_adapter.IPAdapterStore(POLICY)
    towers = [str(write_vision(tmp_path / f"tower{n}.safetensors", seed=n)) for n in range(3)]
    adapters = [
        str(write_adapter(tmp_path / f"a{n}.safetensors", WIDTHS, TEXT, seed=n)) for n in range(6)
    ]
    told: list[str] = []
    for adapter in adapters:
        store.load_ip_adapter(towers[0], files["negative"], adapter, on_reading=told.append)
        assert store.preprocess(picture(0), adapter)
    assert told == [towers[0], *adapters]
    assert list(store._adapters) == adapters[-ip_store.ADAPTERS_KEPT :]
    assert {path for path, _ in store._pictures} == set(store._adapters)
    for tower in towers[1:]:
        store.load_ip_adapter(tower, None, None)
    assert list(store._towers) == towers[-ip_store.TOWERS_KEPT :]
    assert not store._adapters  # their encoder is gone


def test_a_changed_file_is_read_again(files, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", WIDTHS, TEXT)
    store = ip_adapter.IPAdapterStore(POLICY)
    store.load_ip_adapter(files["tower"], files["negative"], path)
    before = store.preprocess(picture(0), path)[0][0].clone()
    path.unlink()
    write_adapter(path, WIDTHS, TEXT, seed=77)
    store.load_ip_adapter(files["tower"], files["negative"], path)
    assert not torch.equal(store.preprocess(picture(0), path)[0][0], before)


def test_a_changed_image_encoder_looks_again(files, tmp_path):
    tower = write_vision(tmp_path / "tower.safetensors")
    store = ip_adapter.IPAdapterStore(POLICY)
    store.load_ip_adapter(tower, files["negative"], files["plus"])
    before = store.preprocess(picture(0), files["plus"])[0][0].clone()
    tower.unlink()
    status = write_vision(tower, seed=77).stat()
    os.utime(tower, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    store.load_ip_adapter(tower, files["negative"], files["plus"])
    assert not torch.equal(store.preprocess(picture(0), files["plus"])[0][0], before)


def test_a_layer_s_number_can_be_anything(files, tmp_path):
    path = tmp_path / "deep.safetensors"
    save_file(load_file(files["plus"]) | {"image_proj.layers.99999999.x": torch.zeros(1)}, path)
    with pytest.raises(CorruptModelFile, match=r"deep\.safetensors is damaged"):
        ip_adapter.IPAdapterStore(POLICY).load_ip_adapter(files["tower"], None, path)


# --- The patched network ----------------------------------------------------------------------


@pytest.fixture
def task(store, files):
    return store.preprocess(picture(0), files["plus"]), 0.5, 20.0


@pytest.mark.parametrize("mode", ["joint", "decoupled"])
def test_the_clone_sees_the_picture_and_the_original_is_as_it_was(model, task, mode):
    weights = {name: w.clone() for name, w in model.model.state_dict().items()}
    before = call(model)
    patched = ip_adapter.patch_model(model, [task], mode=mode)
    seen = call(patched)
    assert (seen - before).abs().mean() > 1e-3
    keys = set(patched.model_options["transformer_options"]["patches_replace"]["attn2"])
    assert keys == set(own_sites(CONFIG))
    del patched
    assert model.model_options == {"transformer_options": {}}
    assert torch.equal(call(model), before)
    assert all(torch.equal(w, weights[name]) for name, w in model.model.state_dict().items())


def test_it_stops_where_it_was_told(model, task):
    patched = ip_adapter.patch_model(model, [task])
    plain = {t: call(model, t) for t in (999.0, 520.0, 499.0, 0.0)}
    changed = {t: bool((call(patched, t) - plain[t]).abs().max() > 1e-4) for t in plain}
    assert changed == {999.0: True, 520.0: True, 499.0: False, 0.0: False}


def test_halves_get_their_own_keys(model, task):
    (conds, unconds), stop, weight = task
    patched = ip_adapter.patch_model(model, [task])
    both = call(patched, halves=(0, 1))
    swapped = ip_adapter.patch_model(model, [((unconds, conds), stop, weight)])
    torch.testing.assert_close(both, call(swapped, halves=(1, 0)))
    positive = call(patched, halves=(0, 0))
    torch.testing.assert_close(both[0], positive[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[1], positive[1], atol=1e-3)


def test_weight_fades_the_picture(model, store, files):
    conds = store.preprocess(picture(0), files["plus"])
    plain = call(model)
    far = [
        float((call(ip_adapter.patch_model(model, [(conds, 1.0, w)])) - plain).norm())
        for w in (5.0, 15.0, 30.0)
    ]
    assert far == sorted(far)


def test_any_object_with_the_named_parts_can_be_patched():
    class Network:
        current_step = torch.tensor(0.25)

    class Plain:
        def __init__(self) -> None:
            self.model_options = {"transformer_options": {}}
            self.model = self
            self.diffusion_model = Network()

        def clone(self) -> "Plain":
            other = Plain()
            other.model_options = self.model_options  # a clone that shares too much
            return other

    kv = [torch.randn(1, 4, w) for w in SDXL_WIDTHS for _ in "kv"]
    original = Plain()
    patched = ip_adapter.patch_model(original, [((kv, kv), 0.5, 0.6), ((kv, kv), 0.2, 0.6)])
    assert original.model_options == {"transformer_options": {}}
    table = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert len(table) == 70
    q, k = torch.randn(2, 6, 640), torch.randn(2, 77, 640)
    options = {"n_heads": 10, "cond_or_uncond": [0, 1]}
    assert table["input", 4, 0](q.half(), k.half(), k.half(), options).dtype == torch.float16
    again = ip_adapter.patch_model(patched, [((kv, kv), 0.5, 0.6)])
    newer = again.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert newer["middle", 0, 9] is table["middle", 0, 9]


def test_nothing_to_patch_and_unknown_modes(model):
    assert ip_adapter.patch_model(model, []).model_options == model.model_options
    with pytest.raises(ValueError, match="joint or decoupled"):
        ip_adapter.patch_model(model, [], mode="both")


def test_the_functions_share_one_store(files, monkeypatch):
    ip_adapter.default_store.cache_clear()
    monkeypatch.setenv("EASEL_ALWAYS_CPU", "1")
    monkeypatch.setenv("EASEL_ALL_IN_FP32", "1")
    tower, negative, plus = (str(files[name]) for name in ("tower", "negative", "plus"))
    ip_adapter.load_ip_adapter(tower, negative, plus)
    ip_adapter.load_ip_adapter(None, None, None)  # paths that are none are left out
    conds, unconds = ip_adapter.preprocess(picture(0), plus)
    assert len(conds) == len(unconds) == 2 * len(WIDTHS)
    assert ip_adapter.default_store().runs == 1
    ip_adapter.default_store.cache_clear()
