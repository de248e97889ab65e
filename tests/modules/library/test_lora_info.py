"""What a LoRA's header says, and what a broken one does not do."""

import json
from pathlib import Path

import pytest

from modules.library import safetensors_head as module
from modules.library.catalog import ModelFile
from modules.library.lora_info import lora_info
from modules.settings.presets import ModelFolder


def lora(path: Path, header: object, **metadata: str) -> ModelFile:
    raw = header if isinstance(header, bytes) else json.dumps(header)
    if metadata:
        names = {key.replace("__", "."): value for key, value in metadata.items()}
        raw = json.dumps({**header, "__metadata__": names})
    data = raw if isinstance(raw, bytes) else raw.encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + b"weights")
    return ModelFile(path.name, path, path.stat().st_size, ModelFolder.LORAS)


def text_layer(width: int, name: str = "lora_unet_x_attn2_to_k.lora_down.weight") -> dict:
    return {name: {"dtype": "F16", "shape": [4, width], "data_offsets": [0, 8]}}


def test_what_a_trainer_wrote_is_told(tmp_path):
    picture = "data:image/jpeg;base64,/9j/4AAQ="
    said = lora_info(
        lora(
            tmp_path / "ink.safetensors",
            {},
            modelspec__architecture="stable-diffusion-xl-v1-base/lora",
            modelspec__title="Ink\nand wash",
            modelspec__trigger_phrase="inkwash, brush  strokes,,",
            modelspec__thumbnail=picture,
        )
    )
    assert (said.family, said.title) == ("SDXL", "Ink and wash")
    assert said.triggers == ("inkwash", "brush strokes")
    assert said.picture == picture
    assert said.readable


def test_without_a_phrase_the_most_frequent_tags_are_the_trigger_words(tmp_path):
    tags = {"10_a": {"cat": 3, "inkwash": 20}, "5_b": {"cat": 4, "dog": 5}, "odd": 3}
    said = lora_info(
        lora(
            tmp_path / "a.safetensors",
            {},
            ss_base_model_version="sd_v1-5",
            ss_tag_frequency=json.dumps(tags),
            ss_output_name="a",
        )
    )
    assert said.triggers == ("inkwash", "cat", "dog")
    assert (said.family, said.title) == ("SD 1.x", "a")


@pytest.mark.parametrize(
    ("width", "family"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (5, "")]
)
@pytest.mark.parametrize(
    "name",
    ["lora_unet_x_attn2_to_k.lora_down.weight", "unet.x.attn2.to_v.lora_A.weight"],
)
def test_shapes_tell_the_family_where_the_file_does_not(tmp_path, width, family, name):
    assert lora_info(lora(tmp_path / "a.safetensors", text_layer(width, name))).family == family


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[" * 200_000, b"7", b"\xff\xfe", b'{"__metadata__": 3}', b'{"a": {"shape": 1}}'],
)
def test_broken_headers_say_nothing(tmp_path, header):
    said = lora_info(lora(tmp_path / "a.safetensors", header))
    assert (said.family, said.title, said.triggers, said.picture) == ("", "", (), "")


def test_a_header_longer_than_allowed_or_than_the_file_is_not_read(tmp_path, monkeypatch):
    file = lora(tmp_path / "a.safetensors", text_layer(768))
    assert lora_info(file).readable
    monkeypatch.setattr(module, "HEADER_BYTES", 20)
    assert not lora_info(lora(tmp_path / "b.safetensors", text_layer(768))).readable
    path = tmp_path / "c.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert not lora_info(ModelFile("c", path, 10, ModelFolder.LORAS)).readable


def test_hostile_entries_are_cut_and_cleaned(tmp_path):
    said = lora_info(
        lora(
            tmp_path / "a.safetensors",
            {},
            modelspec__title="x" * 10_000 + "\x00\x1b",
            modelspec__trigger_phrase=",".join(f"w{n}\u202e" for n in range(5_000)),
            modelspec__thumbnail="data:image/svg+xml;base64,PHN2Zz4=",
        )
    )
    assert len(said.title) == 80
    assert said.triggers[0] == "w0"
    assert len(said.triggers) == 12
    assert said.picture == ""


def test_a_changed_file_is_read_again_and_a_lost_one_is_said(tmp_path):
    path = tmp_path / "a.safetensors"
    assert lora_info(lora(path, text_layer(768))).family == "SD 1.x"
    file = lora(path, text_layer(2048), ss_output_name="longer")
    assert lora_info(file).family == "SDXL"
    path.unlink()
    assert not lora_info(file).readable


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"not read")
    said = lora_info(ModelFile("a.pt", path, 8, ModelFolder.LORAS))
    assert said.readable
    assert said.family == ""
