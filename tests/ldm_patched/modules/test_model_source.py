"""Model folders, and a file for each part, held against the libraries that write them."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm_patched.modules import latent_formats, sd
from ldm_patched.modules.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from ldm_patched.modules.model_base import ModelType
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from tests.support.clip_oracle import library_config
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    TINY,
    TINY_SD1,
    TINY_SD2,
    UNET_PREFIX,
    VAE_PREFIX,
    write_tiny_sdxl,
)
from tests.support.unet_oracle import diffusers_unet, randomise

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
FAMILIES = {
    "SD 1.5": replace(TINY_SD1, clip_l_layers=2),
    "SD 2.x": replace(TINY_SD2, clip_g_layers=3),
    "SDXL": TINY,
}
INDEX = {"SD 1.5": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}
TOLERANCE = 1e-4


def load(path, **options):
    return sd.load_checkpoint_guess_config(str(path), policy=POLICY, **options)


def text_model(cls, width, layers, activation, seed):
    config = library_config(width, layers, activation, width)
    model = cls(config).eval().requires_grad_(False)
    randomise(model, seed)
    return model


class Library:
    """diffusers' and transformers' parts of a small model, with random weights."""

    def __init__(self, name, folder):
        sizes = FAMILIES[name]
        path = write_tiny_sdxl(folder / "x.safetensors", dtype=torch.float32, sizes=sizes)
        unet = load(path, output_vae=False, output_clip=False)[0].model.diffusion_model
        randomise(unet, seed=7)
        self.unet = diffusers_unet(unet)
        self.vae = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=32,
        )
        randomise(self.vae, seed=8)
        self.vae.requires_grad_(False).eval()
        self.text = {}
        if name == "SDXL":
            self.text["text_encoder"] = text_model(CLIPTextModel, 64, 2, "quick_gelu", 9)
            self.text["text_encoder_2"] = text_model(
                CLIPTextModelWithProjection, 128, 3, "gelu", 10
            )
        elif name == "SD 1.5":
            self.text["text_encoder"] = text_model(CLIPTextModel, 64, 2, "quick_gelu", 9)
        else:  # the published folder has one layer less than the encoder was trained with
            self.text["text_encoder"] = text_model(CLIPTextModel, 128, 2, "gelu", 9)

    @property
    def parts(self):
        return {"unet": self.unet, "vae": self.vae, **self.text}

    def save(self, folder, index="StableDiffusionPipeline", scheduler=None, **how):
        for name, part in self.parts.items():
            part.save_pretrained(folder / name, **how)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": index}))
        (folder / "scheduler").mkdir(parents=True)
        config = {"prediction_type": "epsilon"} | (scheduler or {})
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        return folder

    def condition(self, tokens):
        """What the text encoders give for chunks of tokens by encoder."""
        hidden = []
        for encoder, chunks in zip(self.text.values(), tokens.values(), strict=True):
            ids = torch.tensor([[token for token, _ in chunk] for chunk in chunks])
            out = encoder(ids, output_hidden_states=True)
            is_last = len(self.text) == 1
            hidden.append(out.last_hidden_state if is_last else out.hidden_states[-2])
        return torch.cat(hidden, dim=-1)


@pytest.fixture(scope="module", params=FAMILIES)
def library(request, tmp_path_factory):
    made = Library(request.param, tmp_path_factory.mktemp("library"))
    made.name = request.param
    return made


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return Library("SDXL", tmp_path_factory.mktemp("sdxl"))


def largest_difference(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def differences(parts, library):
    """Of each part of what was loaded to the library's, relative."""
    model, clip, vae, _ = parts
    g = torch.Generator().manual_seed(3)
    unet = model.model.diffusion_model
    x = torch.randn(1, 4, 16, 16, generator=g)
    context = torch.randn(1, 77, unet.config.context_dim, generator=g)
    pooled = torch.randn(1, TINY.clip_g_width, generator=g)
    y = model.model.encode_adm(pooled_output=pooled, width=64, height=64)
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
    with torch.no_grad():
        ours = unet(x, torch.tensor([500]), context, y)
        theirs = library.unet(
            x,
            torch.tensor([500]),
            context,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
    tokens = clip.tokenize("a boat on a lake")
    pixels = library.vae.decode(x, return_dict=False)[0].movedim(1, -1)
    picture = torch.rand(1, 32, 32, 3, generator=g)
    latents = library.vae.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist.mean
    decoder = vae.first_stage_model.decode(x).movedim(1, -1)
    return {
        "unet": largest_difference(ours, theirs),
        "text": largest_difference(clip.encode_from_tokens(tokens)[0], library.condition(tokens)),
        "decoder": largest_difference(decoder, pixels),
        "encoder": largest_difference(vae.encode(picture), latents),
    }


WAYS = {
    "safetensors": {},
    "bin": {"safe_serialization": False},
    "fp16 names": {"variant": "fp16"},
    "shards": {"max_shard_size": "300KB"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_gives_what_its_library_gives(library, way, tmp_path):
    if way != "safetensors" and library.name != "SDXL":
        pytest.skip("one family is enough for the ways to write a folder")
    options = WAYS[way]
    folder = library.save(tmp_path / "my-model", **options)
    if way == "shards":
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    parts = load(folder)
    for part in (parts[0].model, parts[1], parts[2]):
        assert part.load_report.missing == part.load_report.unexpected == ()
    found = differences(parts, library)
    where = os.environ["PYTEST_CURRENT_TEST"]
    for part, difference in found.items():
        name = f"{library.name} folder, {part}"
        record("source", name, where, "diffusers and transformers", difference, TOLERANCE)
    assert max(found.values()) <= TOLERANCE, found


def test_the_scheduler_says_what_a_folder_predicts(sdxl, tmp_path):
    kinds = {
        "eps": ({}, ModelType.EPS, 14.6146),
        "v": ({"prediction_type": "v_prediction"}, ModelType.V_PREDICTION, 14.6146),
        "zero": (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            ModelType.V_PREDICTION,
            4518.76,
        ),
        "edm": ({"_class_name": "EDMDPMSolverMultistepScheduler"}, ModelType.EDM, 80.0),
    }
    folder = sdxl.save(tmp_path / "model")
    for change, kind, sigma_max in kinds.values():
        config = {"prediction_type": "epsilon"} | change
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        if kind is ModelType.EDM:
            statistics = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [5.0, 6.0, 7.0, 8.0]}
            (folder / "vae" / "config.json").write_text(json.dumps(statistics))
        model = load(folder, output_clip=False, output_vae=False)[0].model
        assert model.model_type is kind
        assert model.model_sampling.sigma_max.item() == pytest.approx(sigma_max, rel=1e-4)
    assert isinstance(model.latent_format, latent_formats.SDXL_Playground_2_5)
    assert model.latent_format.latents_std.flatten().tolist() == [5.0, 6.0, 7.0, 8.0]


# --- A file for each part ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A checkpoint and its parts in files of their own: {name: path}."""
    folder = tmp_path_factory.mktemp("apart")
    whole = write_tiny_sdxl(folder / "whole.safetensors", dtype=torch.float32)
    weights, paths = load_file(str(whole)), {"whole": whole}
    roots = {
        "unet": UNET_PREFIX,
        "vae": VAE_PREFIX,
        "clip_l": CLIP_L_PREFIX.removesuffix("text_model."),
        "clip_g": CLIP_G_PREFIX,
    }
    for name, root in roots.items():
        part = {k.removeprefix(root): v for k, v in weights.items() if k.startswith(root)}
        paths[name] = folder / f"{name}.safetensors"
        save_file(part, str(paths[name]))
    return paths


def test_parts_in_files_of_their_own_are_the_whole(apart):
    model, clip, vae, _ = load(
        apart["unet"], text_encoder_paths=[apart["vae"], apart["clip_g"], apart["clip_l"]]
    )
    assert vae is None
    vae = sd.load_vae(apart["vae"], POLICY)
    wanted = load(apart["whole"])
    for found, whole in (
        (model.model.diffusion_model, wanted[0].model.diffusion_model),
        (clip.cond_stage_model, wanted[1].cond_stage_model),
        (vae.first_stage_model, wanted[2].first_stage_model),
    ):
        whole = whole.state_dict()
        assert found.state_dict().keys() == whole.keys()
        for name, weight in found.state_dict().items():
            torch.testing.assert_close(weight, whole[name], rtol=0, atol=0)


def test_a_unet_of_diffusers_alone_is_read_too(sdxl, tmp_path):
    sdxl.unet.save_pretrained(tmp_path / "unet")
    model, clip, _, _ = load(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert clip is None
    assert model.model.load_report.unexpected == ()


@pytest.mark.parametrize("root", ["", "unet."])
def test_a_unet_alone_says_what_it_predicts(apart, tmp_path, root):
    weights = {root + key: value for key, value in load_file(str(apart["unet"])).items()}
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    save_file(weights | marks, str(tmp_path / "unet.safetensors"))
    model = load(tmp_path / "unet.safetensors")[0].model
    assert model.model_type is ModelType.V_PREDICTION
    assert model.model_sampling.sigma_max.item() > 1000
    assert model.load_report.unexpected == ()


def test_a_text_encoder_that_cannot_be_read_is_passed_over(apart, tmp_path):
    class Program:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"x": Program()}, tmp_path / "program.pt")
    others = [tmp_path / "program.pt", tmp_path / "gone.safetensors"]
    _, clip, _, _ = load(apart["whole"], text_encoder_paths=others)
    assert clip is not None
    encoders = [*others, apart["clip_l"], apart["clip_g"]]
    assert load(apart["unet"], text_encoder_paths=encoders)[1] is not None


def test_a_checkpoints_own_text_encoders_come_first(apart, tmp_path):
    other = {k: v + 1 for k, v in load_file(str(apart["clip_l"])).items() if v.is_floating_point()}
    save_file(other, str(tmp_path / "clip_l.safetensors"))
    _, clip, _, _ = load(apart["whole"], text_encoder_paths=[tmp_path / "clip_l.safetensors"])
    _, wanted, _, _ = load(apart["whole"])
    torch.testing.assert_close(clip.encode("a boat"), wanted.encode("a boat"), rtol=0, atol=0)


def test_encoders_of_another_width_are_left_alone(apart, tmp_path):
    wide = write_tiny_sdxl(
        tmp_path / "x.safetensors", sizes=replace(TINY, clip_l_width=192, clip_g_width=256)
    )
    _, clip, _, _ = load(apart["unet"], text_encoder_paths=[wide])
    assert clip is None


@pytest.mark.parametrize("way", ["checkpoint", "diffusers"])
def test_a_vae_loads_from_either_layout(sdxl, apart, tmp_path, way):
    if way == "diffusers":
        sdxl.vae.save_pretrained(tmp_path)
        path, wanted = tmp_path / "diffusion_pytorch_model.safetensors", sdxl.vae
        decode = lambda z: wanted.decode(z, return_dict=False)[0]  # noqa: E731
    else:
        path, wanted = apart["whole"], load(apart["whole"])[2].first_stage_model
        decode = wanted.decode
    vae = sd.load_vae(path, POLICY)
    assert vae.load_report.missing == vae.load_report.unexpected == ()
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert largest_difference(vae.first_stage_model.decode(z), decode(z)) <= TOLERANCE


# --- Wrong sources ----------------------------------------------------------------------------


def test_a_file_without_a_vae_is_named(apart):
    with pytest.raises(UnsupportedModel, match=r"clip_l\.safetensors holds no VAE.*text encoder"):
        sd.load_vae(apart["clip_l"], POLICY)


def test_another_folder_is_named(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UnsupportedModel, match=r"holiday is a folder.*model_index\.json"):
        load(tmp_path / "holiday")


def damage(folder, how):
    unet = folder / "unet"
    if how == "no UNet":
        for file in unet.glob("*.safetensors"):
            file.unlink()
    elif how == "a shard is missing":
        next(unet.glob("*-of-*.safetensors")).unlink()
    elif how == "scheduler":
        (folder / "scheduler" / "scheduler_config.json").write_text("[" * 100_000)
    elif how == "another kind":
        (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        unet.rename(folder / "transformer")
    else:
        (folder / "model_index.json").write_bytes(b"\xff{")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no UNet", "model .*without a UNet"),
        ("a shard is missing", r"model is incomplete: its unet has \d+ of \d+ files"),
        ("scheduler", "model is damaged: its scheduler/scheduler_config.json"),
        ("another kind", "FluxPipeline"),
        ("index", "model is damaged: its model_index.json"),
    ],
)
def test_a_broken_folder_is_one_sentence(sdxl, tmp_path, how, words):
    folder = sdxl.save(tmp_path / "model", **WAYS["shards" if "shard" in how else "safetensors"])
    damage(folder, how)
    with pytest.raises(ModelFileError, match=words) as caught:
        load(folder)
    assert str(tmp_path) not in str(caught.value)
    assert re.search(r"[.!]$", str(caught.value))
    assert issubclass(caught.type, CorruptModelFile | UnsupportedModel)
