"""How wide the texts are that a checkpoint reads, from whatever its file holds."""

import json

import pytest

from modules.library.catalog import ModelFile
from modules.library.text_width import TextWidth, text_width
from modules.settings.presets import ModelFolder
from tests.modules.library.test_model_sizes import checkpoint


def test_the_width_of_texts_is_that_of_the_first_layer_that_reads_them(tmp_path):
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    entries = {name: {"dtype": "F16", "shape": [640, 2048], "data_offsets": [0, 2621440]}}
    file = checkpoint(tmp_path / "a.safetensors", json.dumps(entries).encode())
    assert text_width(file) == TextWidth(width=2048)  # SDXL's, but without its encoders
    folder = tmp_path / "b" / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"cross_attention_dim": 768}')
    file = ModelFile("b", folder.parent, 1, ModelFolder.CHECKPOINTS)
    assert text_width(file) == TextWidth(width=768, family="SD 1.x")
    (folder / "config.json").write_text('{"cross_attention_dim": [1024, 1024]}')
    assert text_width(file).width == 1024
    (folder / "config.json").write_text('{"cross_attention_dim": []}')
    assert text_width(file) == TextWidth()


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"nonsense", b'{"model.diffusion_model.attn2.to_k.weight": []}',
     b'{"model.diffusion_model.a.attn2.to_k.weight": {"shape": [1]}}', b'{"a": {}}'],
)  # fmt: skip
def test_the_width_of_texts_of_other_files_is_not_known(tmp_path, header):
    assert text_width(checkpoint(tmp_path / "a.safetensors", header)) == TextWidth()
    gone = ModelFile("b", tmp_path / "b", 1, ModelFolder.CHECKPOINTS)
    assert text_width(gone) == TextWidth()
