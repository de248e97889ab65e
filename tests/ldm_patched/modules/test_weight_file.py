"""Weight files: sound ones give their tensors, bad ones one clear sentence and nothing else."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import utils, weight_file
from ldm_patched.modules.errors import CorruptModelFile, UnsafeModelFile, UnsupportedModel
from ldm_patched.modules.weight_file import LazyWeights, open_weights

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float16).view(3, 4),
    "b.weight": torch.arange(36, dtype=torch.float32).view(1, 4, 3, 3) / 7,
    "wide": torch.arange(180, dtype=torch.float32).view(5, 4, 3, 3) / 3,
    "c": torch.tensor(2.5, dtype=torch.bfloat16),
    "ids": torch.arange(77)[None],
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.safetensors"
    save_file(TENSORS, str(path), metadata={"easel.area": "65536"})
    return path


def write_safetensors(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(shape=(2,), start=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


# --- Sound files ------------------------------------------------------------------------------


def test_a_sound_file_gives_its_tensors(sound):
    found = utils.load_torch_file(sound)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert utils.load_metadata(sound) == {"easel.area": "65536"}


def test_the_extension_does_not_matter(sound, tmp_path):
    wrong = sound.rename(tmp_path / "model.ckpt")
    assert utils.load_torch_file(wrong).keys() == TENSORS.keys()
    torch.save({"state_dict": {"x": torch.ones(2)}, "epoch": 3}, tmp_path / "p.safetensors")
    assert list(utils.load_torch_file(tmp_path / "p.safetensors")) == ["x"]


@pytest.mark.parametrize("new_format", [True, False])
def test_both_pickle_formats_are_read(tmp_path, new_format):
    path = tmp_path / "x.pt"
    content = {"w": torch.arange(6.0).view(2, 3), "b": torch.nn.Parameter(torch.ones(2))}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    found = utils.load_torch_file(path)
    torch.testing.assert_close(found["w"], content["w"])
    assert not found["b"].requires_grad


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(sound):
    before = sound.read_bytes()
    utils.load_torch_file(sound)["a.weight"].fill_(9)
    assert sound.read_bytes() == before


def test_loading_casts_and_lays_out(sound):
    file = open_weights(sound)
    loaded = file.load("b.weight", torch.bfloat16, torch.channels_last)
    assert loaded.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(loaded, TENSORS["b.weight"].bfloat16())
    assert file.load("ids", torch.bfloat16).dtype == torch.int64


def test_the_same_precision_is_mapped_and_another_is_not(sound):
    file = open_weights(sound)
    mapped = file.load("a.weight", torch.float16).untyped_storage().data_ptr()
    assert mapped == file.mapped("b.weight").untyped_storage().data_ptr()
    assert file.load("a.weight", torch.float32).untyped_storage().nbytes() == 12 * 4


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_large_tensor_is_read_some_rows_at_a_time(sound, monkeypatch, form):
    for size in (1, 40, 10**6):
        monkeypatch.setattr(weight_file, "AT_A_TIME", size)
        file = open_weights(sound)
        for name in ("a.weight", "b.weight", "wide", "c", "empty"):
            loaded = file.load(name, torch.float64, form)
            torch.testing.assert_close(loaded, TENSORS[name].double(), rtol=0, atol=0)
            assert loaded.ndim < 4 or loaded.is_contiguous(memory_format=form)


def test_tensors_that_are_misaligned_for_their_type_are_read(tmp_path):
    data = b"\x01" + struct.pack("<2f", 1.5, -2.0)
    header = {"a": entry((1,), 0, 1, "U8"), "b": entry((2,), 1, 9)}
    found = utils.load_torch_file(write_safetensors(tmp_path / "x", header, data))
    assert found["b"].tolist() == [1.5, -2.0]


def test_shape_and_kind_are_told_without_reading(sound, monkeypatch):
    file = open_weights(sound)
    monkeypatch.setattr(weight_file.SafetensorsFile, "_map", None)
    monkeypatch.setattr(weight_file.SafetensorsFile, "_read", None)
    for name, tensor in TENSORS.items():
        told = weight_file.outline_of(file, name)
        assert (told.shape, told.dtype) == (tensor.shape, tensor.dtype)
    assert weight_file.outline_of(TENSORS, "c") is TENSORS["c"]


def test_lazy_weights_can_be_taken_one_by_one(sound):
    lazy = LazyWeights(open_weights(sound), prefix="a", dtype=torch.float32)
    assert list(lazy) == ["a.weight"]
    assert lazy.pop("a.weight").dtype == torch.float32
    assert len(lazy) == 0
    with pytest.raises(KeyError):
        lazy["a.weight"]


def test_there_is_no_unsafe_way(sound):
    with pytest.raises(ValueError, match="safe"):
        utils.load_torch_file(sound, safe_load=False)


# --- Bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 3, 8, 9, 60, 0.5, 0.99, -1])
def test_a_truncated_file_is_corrupt(sound, keep):
    data = sound.read_bytes()
    sound.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptModelFile, match=r"sound\.safetensors") as caught:
        utils.load_torch_file(sound)
    assert str(sound.parent) not in str(caught.value)
    assert sound.exists()


@pytest.mark.parametrize("keep", [10, 0.3, 0.9])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_pickle_is_corrupt(tmp_path, keep, new_format):
    path = tmp_path / "cut.ckpt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptModelFile, match="cut.ckpt"):
        utils.load_torch_file(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x00" * 4096, "not a model"),
        (bytes(range(256)) * 16, "not a model"),
        (b"<!DOCTYPE html><html>Please log in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"PK\x03\x04" + b"\x00" * 100, "cut short or is not a weight file"),
    ],
)
def test_garbage_is_named_for_what_it_is(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptModelFile, match=says):
        utils.load_torch_file(path)


def test_a_gguf_file_is_unsupported(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03" + b"\x00" * 100)
    with pytest.raises(UnsupportedModel, match="GGUF"):
        utils.load_torch_file(path)


def test_a_zip_without_weights_is_corrupt(tmp_path):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CorruptModelFile):
        utils.load_torch_file(path)


BAD_HEADERS = {
    "not json": b"{" + b"x" * 40,
    "a list": b"{}[]",
    "not utf-8": b'{"\xff\xfe": 1}',
    "deep": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "repeated name": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "dunder": {"__class__": entry()},
    "polluting": {"a.__init__.__globals__": entry()},
    "dunder in the middle": {"a.__dict__.b": entry()},
    "nothing but underscores": {"a.___": entry()},
    "a line break": {"a b\n": entry()},
    "an order to the terminal": {"a\x1b[2J": entry()},
    "letters that turn the line around": {"a\u202eb": entry()},
    "half a letter": b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "a dunder in strange company": {"a *.__class__": entry()},
    "empty name": {"": entry()},
    "long name": {"a" * 257: entry()},
    "unknown type": {"a": entry(dtype="F4")},
    "type is a list": {"a": entry(dtype=["F32"])},
    "negative shape": {"a": entry(shape=(-2,))},
    "huge shape": {"a": entry(shape=(2**62, 2**62))},
    "float shape": {"a": entry(shape=(2.0,))},
    "boolean shape": {"a": entry(shape=(True, 2))},
    "nine dimensions": {"a": entry(shape=(1,) * 8 + (2,))},
    "wrong size": {"a": entry(shape=(3,))},
    "beyond the end": {"a": entry(shape=(200,), end=800)},
    "starts late": {"a": entry(start=4, end=12)},
    "hole": {"a": entry((1,), 0, 4), "b": entry((1,), 8, 12)},
    "overlap": {"a": entry(), "b": entry()},
    "trailing bytes": {"a": entry((1,), 0, 4)},
    "extra field": {"a": entry() | {"code": "x"}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "metadata is a list": {"a": entry(), "__metadata__": ["x"]},
    "metadata of numbers": {"a": entry(), "__metadata__": {"x": 1}},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_refused(tmp_path, header):
    path = write_safetensors(tmp_path / "bad.safetensors", header, b"\x00" * 8)
    with pytest.raises(CorruptModelFile, match="bad.safetensors"):
        utils.load_torch_file(path)


def test_two_underscores_within_a_name_are_nothing_special(tmp_path):
    names = ["lora_unet__blocks_0_attn_q.lora_up.weight", "a__b", "__a.b__", "_a_.alpha"]
    header = {name: entry((1,), 4 * n, 4 * n + 4) for n, name in enumerate(names)}
    path = write_safetensors(tmp_path / "x.safetensors", header, b"\x00" * 16)
    assert list(utils.load_torch_file(path)) == names


@pytest.mark.parametrize(
    "name",
    ["bundle_emb.my word.string_to_param.*", "a (x).weight", "a+b,c", "größe.日本", "<👩\u200d🚀>"],
)
def test_any_printable_text_is_a_name(tmp_path, name):
    path = write_safetensors(tmp_path / "x.safetensors", {name: entry()}, b"\x00" * 8)
    assert list(utils.load_torch_file(path)) == [name]


REFUSALS = """
import resource, sys, time
from ldm_patched.modules import utils
from ldm_patched.modules.errors import CorruptModelFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    started = time.perf_counter()
    try:
        utils.load_torch_file(path)
    except CorruptModelFile:
        print(time.perf_counter() - started)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="counts memory with the resource module")
def test_a_header_of_very_many_tensors_is_refused_quickly(tmp_path):
    """One longer than any may be, and one of the most tensors that a header of that length takes;
    in a process of their own, whose peak memory they share."""
    paths = []
    for count in (1_300_000, 250_000):
        one = b'"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        raw = b"{" + b",".join(one % index for index in range(count)) + b"}"
        paths.append(write_safetensors(tmp_path / f"{count}.safetensors", raw))
    out = subprocess.run(
        [sys.executable, "-c", REFUSALS, *map(str, paths)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    *seconds, megabytes = map(float, out.split())
    assert len(seconds) == 2
    assert max(seconds) < 1
    assert megabytes < 200


def test_a_pickle_that_grows_when_it_is_read_is_refused(tmp_path):
    torch.save({"w": torch.ones(2), "notes": "x" * 2**22}, tmp_path / "plain.pt")
    path = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 2**16
    with pytest.raises(CorruptModelFile, match=r"bomb\.ckpt.*unpacks"):
        open_weights(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_larger_than_their_file_are_refused(tmp_path, new_format):
    path = tmp_path / "wide.pt"
    content = {"w": torch.ones(1).expand(10**12)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CorruptModelFile, match=r"wide\.pt.*larger than the file"):
        open_weights(path)
    ones = torch.ones(2**16)
    shared = {"w": ones, "same": ones, "turned": ones.view(256, 256).t()}
    torch.save(shared, path, _use_new_zipfile_serialization=new_format)
    assert open_weights(path).keys() == shared.keys()


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("extension", ["ckpt", "pt", "pth", "bin", "safetensors", "sft"])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw", "protocol 0"])
def test_a_pickle_with_code_in_it_is_never_executed(tmp_path, extension, form):
    marker = tmp_path / "marker"
    path = tmp_path / f"evil.{extension}"
    content = {"state_dict": {"w": torch.ones(2)}, "callback": Malicious(marker)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content["callback"], protocol=4 if form == "raw" else 0))
    before = path.read_bytes()
    with pytest.raises((UnsafeModelFile, CorruptModelFile)) as caught:
        utils.load_torch_file(path)
    if form in ("zip", "legacy"):
        assert isinstance(caught.value, UnsafeModelFile)
        assert "safetensors" in str(caught.value)
    time.sleep(0.05)
    assert not marker.exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("legacy", [False, True])
def test_what_old_trainers_leave_beside_the_weights_is_passed_over(tmp_path, legacy):
    # The published Stable Diffusion 1 files name a class of PyTorch Lightning in a dictionary.
    name = "pytorch_lightning.callbacks.model_checkpoint"
    parts = [name.rsplit(".", n)[0] for n in (2, 1)] + [name]
    modules = {part: types.ModuleType(part) for part in parts}
    callback = type("ModelCheckpoint", (), {"__module__": name})
    modules[name].ModelCheckpoint = callback
    sys.modules |= modules
    try:
        content = {
            "state_dict": {"w": torch.ones(2)},
            "callbacks": {callback: {"best": np.float64(3)}},
        }
        path = tmp_path / "old.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    finally:
        for part in modules:
            del sys.modules[part]
    weights = utils.load_torch_file(path)
    assert weights.keys() == {"w"}
    torch.testing.assert_close(weights["w"], torch.ones(2))


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        utils.load_torch_file(tmp_path / "gone.safetensors")


def test_a_file_that_goes_or_shrinks_before_it_is_mapped(sound):
    gone, short = open_weights(sound), open_weights(sound)
    sound.write_bytes(sound.read_bytes()[:-8])
    with pytest.raises(CorruptModelFile, match=r"^sound\.safetensors changed while it was read"):
        short["wide"]
    sound.unlink()
    with pytest.raises(FileNotFoundError):
        gone["wide"]
