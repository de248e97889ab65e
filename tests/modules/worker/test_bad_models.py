"""Every way in which a model file can be wrong: one sentence, and the last model still paints.

Each is tried on a checkpoint, on a VAE and on a text encoder in files of their own, and on a part
of a model folder."""

import gc
import json
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.weight_file import SafetensorsFile
from modules.settings.presets import ModelFolder
from modules.spec.errors import StudioError
from modules.spec.flags import TaskState
from tests.modules.worker.test_image_prompts import put, put_adapter, run
from tests.modules.worker.test_model_parts import ROOTS
from tests.modules.worker.test_prompts import paint, pixels
from tests.modules.worker.test_refining import put_refiner
from tests.support.tiny_checkpoint import TINY, TINY_SD1
from tests.support.tiny_ip_adapter import write_negative
from tests.support.wrong_files import vanish_while_read

PLACES = {
    "checkpoint": "checkpoints/bad.safetensors",
    "VAE": "vae/bad.safetensors",
    "text encoder": "text_encoders/clip_l.safetensors",
    "folder": "checkpoints/set/unet/diffusion_pytorch_model.safetensors",
}
FIRST = {
    "checkpoint": "model.diffusion_model.time_embed.0.weight",
    "VAE": "decoder.conv_in.weight",
    "text encoder": "text_model.embeddings.token_embedding.weight",
    "folder": "time_embed.0.weight",
}


@pytest.fixture
def request_of(studio, sound_files):
    """Sound files for each kind of place: {kind: (path of the file to spoil, fields of a request)}.

    They are links, so a file must be unlinked before it is written to.
    """
    models = studio.settings.models_path
    for file in sound_files.rglob("*.*"):
        place = models / file.relative_to(sound_files)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, place)
    fields = {
        "checkpoint": {"checkpoint": "bad.safetensors"},
        "VAE": {"vae": "bad.safetensors", "checkpoint": "tiny.safetensors"},
        "text encoder": {"checkpoint": "bare.safetensors"},
        "folder": {"checkpoint": "set"},
    }
    size = {"width": 64, "height": 64, "steps": 1}
    return {kind: (models / PLACES[kind], fields[kind] | size) for kind in PLACES}


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory, tiny_checkpoint):
    """A models folder without a fault."""
    models = tmp_path_factory.mktemp("sound")
    weights = load_file(str(tiny_checkpoint))
    part = {
        name: {k.removeprefix(root): v for k, v in weights.items() if k.startswith(root)}
        for name, (root, _) in ROOTS.items()
    }

    def save(name, content):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(content, str(models / name))

    save("checkpoints/bad.safetensors", weights)
    save("checkpoints/bare.safetensors", part["unet"])
    save("text_encoders/clip_l.safetensors", part["clip_l"])
    save("text_encoders/clip_g.safetensors", part["clip_g"])
    save("vae/bad.safetensors", part["vae"])
    save(PLACES["folder"], part["unet"])
    save("checkpoints/set/vae/diffusion_pytorch_model.safetensors", part["vae"])
    for name, folder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        save(f"checkpoints/set/{folder}/model.safetensors", part[name])
    (models / "checkpoints/set/model_index.json").write_text(json.dumps({"_class_name": "X"}))
    return models


def edited(path, change):
    weights = load_file(str(path))
    change(weights)
    path.unlink()
    save_file(weights, str(path))


def first_is_nan(path, weight):
    edited(path, lambda weights: weights[weight].view(-1)[:1].fill_(float("nan")))


def header(path, change):
    """Rewrite the text of the header, keeping what follows it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = change(raw[8 : 8 + length].rstrip())
    path.unlink()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def one_more(name):
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return lambda text: b'{"' + name.encode() + b'":' + entry + b"," + text[1:]


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def many(text):
    one = b'"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % index for index in range(200_000)) + b"," + text[1:]


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[100] ^= 0x40
    replaced(path, bytes(raw))


def replaced(path, content):
    path.unlink()
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path, kind: replaced(path, path.read_bytes()[:-1000]),
    "bit-flipped": lambda path, kind: flipped(path),
    "empty": lambda path, kind: replaced(path, b""),
    "another kind": lambda path, kind: (
        path.unlink(),
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, str(path)),
    ),
    "wrong rank": lambda path, kind: edited(
        path, lambda w: w.update({FIRST[kind]: w[FIRST[kind]].flatten()})
    ),
    "wrong width": lambda path, kind: edited(
        path, lambda w: w.update({FIRST[kind]: w[FIRST[kind]][:, :-1].contiguous()})
    ),
    "no width": lambda path, kind: edited(
        path, lambda w: w.update({FIRST[kind]: w[FIRST[kind]][:0].contiguous()})
    ),
    "very many tensors": lambda path, kind: header(path, many),
    "attribute names": lambda path, kind: header(path, one_more("a.__class__.__init__")),
    "a name twice": lambda path, kind: header(path, one_more(FIRST[kind])),
    "a pickle": lambda path, kind: replaced(path, pickle.dumps(Runs(str(path) + ".ran"))),
    "a directory": lambda path, kind: (path.unlink(), path.mkdir()),
}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# A checkpoint in every way; the others where they have code of their own.
ONLY = {
    "VAE": ("truncated", "another kind", "wrong rank", "wrong width", "a directory"),
    "text encoder": ("truncated", "wrong width", "no width"),
    "folder": ("truncated", "bit-flipped", "a directory"),
}
CASES = [(kind, how) for kind in PLACES for how in ONLY.get(kind, DAMAGE)]
REMEDY = re.compile(r"\. (Download|Choose|Load|Put)|; (choose|put)|, or choose")


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_a_bad_file_is_one_sentence_and_costs_nothing(studio, request_of, kind, how):
    path, fields = request_of[kind]
    good = {"checkpoint": "tiny.safetensors", "width": 64, "height": 64, "steps": 1}
    before = paint(studio, **good)
    kept = list(studio.pipeline._models.values())
    DAMAGE[how](path, kind)
    bad = paint(studio, **fields)
    assert bad.state is TaskState.FAILED
    assert bad.code.startswith("E_MODEL_"), bad.message
    name = {"folder": "set", "text encoder": "bare.safetensors"}.get(kind, "bad.safetensors")
    assert name in bad.message or path.name in bad.message
    assert bad.message.endswith(".")
    assert REMEDY.search(bad.message), bad.message
    assert str(studio.settings.root) not in bad.message
    assert not os.path.exists(str(path) + ".ran")
    after = paint(studio, **good)
    assert np.array_equal(pixels(studio, after), pixels(studio, before))
    if how in ("truncated", "bit-flipped", "empty", "another kind") and kind != "text encoder":
        assert list(studio.pipeline._models.values()) == kept  # it was never let go


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("checkpoint", "model.diffusion_model.out.2.weight"),
        ("checkpoint", "first_stage_model.decoder.conv_out.weight"),
        ("checkpoint", "conditioner.embedders.1.model.ln_final.weight"),
        ("VAE", "decoder.conv_out.weight"),
        ("text encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("folder", "out.2.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_the_files_fault(studio, request_of, kind, weight):
    path, fields = request_of[kind]
    first_is_nan(path, weight)
    bad = paint(studio, **fields)
    assert (bad.state, bad.code) == (TaskState.FAILED, "E_MODEL_CORRUPT")
    name = {"folder": "set", "text encoder": "clip_l.safetensors"}.get(kind, "bad.safetensors")
    assert f"{name} is damaged: weights of its" in bad.message
    assert paint(studio, checkpoint="tiny.safetensors").state is TaskState.DONE


def test_a_vae_that_was_taken_unasked_is_named(studio, request_of):
    first_is_nan(request_of["VAE"][0], "decoder.conv_out.weight")
    bad = paint(studio, **request_of["text encoder"][1])
    assert bad.code == "E_MODEL_CORRUPT"
    assert "bad.safetensors is damaged: weights of its VAE" in bad.message


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("model.diffusion_model.out.2.weight", "diffusion network"),
        ("first_stage_model.decoder.conv_out.weight", "VAE"),
    ],
)
def test_a_refiner_whose_weights_are_no_numbers_is_named(studio, weight, part):
    values = put_refiner(studio, "z-refiner.safetensors", TINY_SD1)
    first_is_nan(studio.settings.models_path / "checkpoints" / "z-refiner.safetensors", weight)
    bad = paint(studio, refiner_method="vae", width=64, height=64, **values)
    assert (bad.state, bad.code) == (TaskState.FAILED, "E_MODEL_CORRUPT")
    assert f"z-refiner.safetensors is damaged: weights of its {part}" in bad.message


@pytest.fixture
def seen(studio):
    """Image prompts, and the files that they need."""
    put_adapter(studio)
    folder = studio.settings.models_path / "ipadapter"
    write_negative(folder / "fooocus_ip_negative.safetensors", text=TINY.context)
    return [{"image": put(studio), "type": "image_prompt"}]


@pytest.mark.parametrize(
    ("place", "weight"),
    [
        ("clip_vision/tower.safetensors", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("ipadapter/ip-adapter-tiny.safetensors", "image_proj.proj_in.weight"),
        ("ipadapter/ip-adapter-tiny.safetensors", "ip_adapter.1.to_k_ip.weight"),
        ("ipadapter/fooocus_ip_negative.safetensors", "data"),
    ],
)
def test_what_an_image_prompt_needs_is_named_if_it_holds_no_numbers(studio, seen, place, weight):
    path = studio.settings.models_path / place
    sound = path.read_bytes()
    assert run(studio, seen).state is TaskState.DONE
    first_is_nan(path, weight)
    for _ in range(2):
        bad = run(studio, seen)
        assert (bad.state, bad.code) == (TaskState.FAILED, "E_MODEL_CORRUPT")
        assert f"{path.name} is damaged: weights of its" in bad.message
    replaced(path, sound)
    assert run(studio, seen).state is TaskState.DONE


@pytest.mark.parametrize("kind", ["checkpoint", "VAE", "folder"])
def test_a_file_that_goes_while_it_is_read_is_missing(studio, request_of, kind, monkeypatch):
    path, fields = request_of[kind]
    load, calls = SafetensorsFile.load, []

    def vanishing(self, *arguments, **options):
        calls.append(self.name)
        if len(calls) == 5:
            path.unlink()
        return load(self, *arguments, **options)

    monkeypatch.setattr(SafetensorsFile, "load", vanishing)
    bad = paint(studio, **fields)
    monkeypatch.undo()
    assert (bad.state, bad.code) == (TaskState.FAILED, "E_MODEL_MISSING")
    assert "gone now" in bad.message
    assert paint(studio, checkpoint="tiny.safetensors").state is TaskState.DONE


@pytest.mark.parametrize(
    "place",
    [
        PLACES["text encoder"],
        "clip_vision/tower.safetensors",
        "ipadapter/ip-adapter-tiny.safetensors",
        "ipadapter/fooocus_ip_negative.safetensors",
    ],
)
def test_of_several_files_the_one_that_goes_is_named(studio, request_of, seen, place, monkeypatch):
    path = studio.settings.models_path / place
    vanish_while_read(path, monkeypatch)
    fields = request_of["text encoder"][1] if place == PLACES["text encoder"] else {}
    bad = run(studio, seen, **fields)
    assert (bad.state, bad.code) == (TaskState.FAILED, "E_MODEL_MISSING")
    assert bad.message.startswith(f"{path.name} was there a moment ago")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_load_that_fails_late_gives_its_memory_back(fresh_studio, request_of):
    path, _ = request_of["checkpoint"]

    def without_the_last(weights):
        del weights["first_stage_model.decoder.conv_out.bias"]

    edited(path, without_the_last)
    file = fresh_studio.catalog.find_checkpoint("bad.safetensors")
    sizes = []
    for _ in range(6):
        with pytest.raises((EngineError, StudioError)):
            fresh_studio.pipeline.refresh(file)
        gc.collect()
        sizes.append(resident())
    assert max(sizes[2:]) - sizes[1] < 0.2 * path.stat().st_size
    assert fresh_studio.catalog.find(ModelFolder.VAE, "bad.safetensors")
