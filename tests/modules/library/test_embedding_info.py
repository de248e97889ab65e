"""Tokens of an embedding out of its header."""

import json

import pytest

from modules.library.catalog import ModelFile
from modules.library.embedding_info import embedding_tokens, require_embeddings
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing


def embedding(path, **shapes):
    tensors = {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    header = json.dumps({"__metadata__": {"a": "b"}, **tensors}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return ModelFile(path.name, path, path.stat().st_size, ModelFolder.EMBEDDINGS)


@pytest.mark.parametrize(
    ("shapes", "tokens"),
    [
        ({"emb_params": [8, 768]}, 8),
        ({"<word>": [768]}, 1),
        ({"clip_l": [4, 768], "clip_g": [4, 1280], "other": [9, 9]}, 4),
        ({"a": [2, 768], "b": [3, 768]}, None),
        ({"emb_params": [8, 2, 768]}, None),
        ({"emb_params": ["x", 768]}, None),
        ({}, None),
    ],
)
def test_tokens_are_the_rows_of_the_vectors(tmp_path, shapes, tokens):
    assert embedding_tokens(embedding(tmp_path / "a.safetensors", **shapes)) == tokens


def test_files_without_a_header_do_not_say(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"pickle")
    assert embedding_tokens(ModelFile("a.pt", path, 6, ModelFolder.EMBEDDINGS)) is None
    gone = tmp_path / "b.safetensors"
    assert embedding_tokens(ModelFile("b", gone, 6, ModelFolder.EMBEDDINGS)) is None


def test_punctuation_after_a_name_is_no_part_of_it():
    class Catalog:
        def files(self, folder):
            return [ModelFile("sub/foo.pt", None, 1, folder)]

    require_embeddings(["foo", "foo.", "foo;", "foo!", "foo|b", "foo]", "sub/foo.pt."], Catalog())
    with pytest.raises(ModelMissing, match="'fo.'"):
        require_embeddings(["foo.", "fo."], Catalog())
