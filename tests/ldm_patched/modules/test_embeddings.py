"""Learned words: every kind of file, their place among the tokens, agreement with transformers."""

import itertools
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm_patched.modules import sd
from ldm_patched.modules.clip_tokenizer import END_TOKEN, START_TOKEN, clip_tokenizer
from ldm_patched.modules.embedding_names import readings, references, split_references
from ldm_patched.modules.embeddings import EmbeddingFolder
from ldm_patched.modules.errors import (
    EmbeddingMissing,
    UnsupportedModel,
)
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.sd1_clip import (
    ClipTextModel,
    SD1ClipModel,
    SDTokenizer,
    SingleTokenizer,
    detect_clip_config,
)
from ldm_patched.modules.sdxl_clip import SDXLTokenizer
from tests.support.clip_oracle import library_config, openclip_to_library
from tests.support.engine_report import agree
from tests.support.tiny_checkpoint import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    TINY,
    clip_l_shapes,
    jittered_weights,
    write_tiny_sdxl,
)

TOLERANCE = 1e-5
POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
SD1, XL = {"l": 768}, {"l": 768, "g": 1280}


def rows(count, width, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def folder_of(tmp_path, widths=SD1):
    return EmbeddingFolder(tmp_path, widths)


# --- files ------------------------------------------------------------------------------------


def a1111(vectors):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors)},
        "name": "word",
        "step": 500,
        "sd_checkpoint": None,
    }


def test_the_parameter_dictionary_of_older_files_is_read(tmp_path):
    vectors = rows(2, 768)
    content = a1111(vectors)
    content["string_to_param"] = torch.nn.ParameterDict(content["string_to_param"])
    torch.save(content, tmp_path / "word.pt")
    torch.testing.assert_close(folder_of(tmp_path).vectors("word", "l"), vectors)


def test_every_layout_of_stable_diffusion_1_is_read(tmp_path):
    vectors = rows(3, 768)
    torch.save(a1111(vectors), tmp_path / "one.pt")
    torch.save({"<word>": vectors[0]}, tmp_path / "two.bin")
    save_file({"emb_params": vectors.half()}, str(tmp_path / "three.safetensors"))
    save_file({"<ein-Wort:ü>": vectors}, str(tmp_path / "four.safetensors"))
    folder = folder_of(tmp_path)
    assert torch.equal(folder.vectors("one", "l"), vectors)
    assert torch.equal(folder.vectors("two", "l"), vectors[:1])
    assert torch.equal(folder.vectors("three", "l"), vectors.half().float())
    assert torch.equal(folder.vectors("four", "l"), vectors)


def test_an_sdxl_pair_has_vectors_for_both_encoders(tmp_path):
    pair = {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}
    save_file(pair, str(tmp_path / "pair.safetensors"))
    folder = folder_of(tmp_path, XL)
    assert torch.equal(folder.vectors("pair", "l"), pair["clip_l"])
    assert torch.equal(folder.vectors("pair", "g"), pair["clip_g"])


@pytest.mark.parametrize("name", ["Word", "word", "word.safetensors", "sub/word", "SUB/Word"])
def test_a_name_may_leave_out_ending_and_folder(tmp_path, name):
    (tmp_path / "sub").mkdir()
    save_file({"emb_params": rows(1, 768)}, str(tmp_path / "sub" / "Word.safetensors"))
    assert folder_of(tmp_path).vectors(name, "l").shape == (1, 768)


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "word.safetensors"
    folder = folder_of(tmp_path)
    save_file({"emb_params": rows(1, 768)}, str(path))
    before = folder.stamps("a embedding:word b")
    assert folder.vectors("word", "l").shape == (1, 768)
    save_file({"emb_params": rows(4, 768)}, str(path))
    assert folder.vectors("word", "l").shape == (4, 768)
    assert folder.stamps("a embedding:word b") != before
    assert folder.stamps("no learned word") == ()


@pytest.mark.parametrize(
    ("tensors", "widths", "words"),
    [
        ({"emb_params": (1, 768)}, XL, "made for Stable Diffusion 1, but .* of SDXL"),
        ({"emb_params": (1, 1024)}, SD1, "Stable Diffusion 2, but .* Stable Diffusion 1"),
        ({"emb_params": (1, 320)}, SD1, "text encoders of width 320"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, SD1, "made for SDXL, but .* Diffusion 1"),
        ({"clip_l": (1, 768), "clip_g": (1, 640)}, XL, "SDXL's plan with widths 768 and 640"),
        ({"clip_l": (1, 768)}, XL, "Stable Diffusion 1"),
        ({"emb_params": (1, 1, 768)}, SD1, "no embedding"),
        ({"clip_l": (1, 1, 768), "clip_g": (1, 1280)}, XL, "its vectors have the shape"),
        ({"a": (1, 768), "b": (1, 768)}, SD1, "holds 2"),
        ({"emb_params": (5000, 768)}, SD1, "no embedding"),
        ({"lora_unet_x.lora_up.weight": (2, 4)}, SD1, "no embedding"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tmp_path, tensors, widths, words):
    weights = {name: torch.zeros(shape) for name, shape in tensors.items()}
    save_file(weights, str(tmp_path / "word.safetensors"))
    with pytest.raises(UnsupportedModel, match=words) as caught:
        folder_of(tmp_path, widths).vectors("word", next(iter(widths)))
    assert "word.safetensors" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "../secret", "/etc/passwd", "x" * 500])
def test_an_unknown_name_is_reported_not_read_as_words(tmp_path, name):
    with pytest.raises(EmbeddingMissing, match="models/embeddings"):
        SDTokenizer().tokenize_with_weights(f"a embedding:{name} b", folder_of(tmp_path))


# --- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", None)]),
        ("embedding:x", [("", "x")]),
        ("a embedding:x, b", [("a ", None), ("", "x"), (", b", None)]),
        ("embedding:x embedding:y:1", [("", "x"), (" ", None), ("", "y"), (":1", None)]),
        ("embedding: x", [("embedding: x", None)]),
    ],
)
def test_references_are_found(text, parts):
    assert list(split_references(text, {"x", "y"}.__contains__)) == parts


PUNCTUATED = [
    ("embedding:three. A cat", ". A cat"),
    ("embedding:three; cat", "; cat"),
    ("embedding:three!", "!"),
    ("embedding:three...", "..."),
    ("embedding:three|cat", "|cat"),
    ("[embedding:three]", "]"),
    ("embedding:three|embedding:none.such", "|embedding:none.such"),
]


@pytest.mark.parametrize(("text", "rest"), PUNCTUATED)
def test_punctuation_after_a_name_belongs_to_the_words(text, rest):
    parts = list(split_references(text, {"three"}.__contains__))
    assert ("", "three") in parts
    assert "".join(f"embedding:{name}" if name else words for words, name in parts) == text
    assert text.endswith(rest)
    (named, *_) = references(text)
    assert "three" in readings(named)


def test_a_file_of_the_very_name_comes_first():
    there = {"a.", "a", "b"}.__contains__
    assert list(split_references("embedding:a. c", there)) == [("", "a."), (" c", None)]
    assert list(split_references("embedding:b.v2 c", there)) == [("", "b.v2"), (" c", None)]


def test_names_after_a_mark_are_found_too():
    text = "embedding:a|embedding:b] embedding:myembedding:1.2"
    assert list(references(text)) == ["a|embedding", "b]", "myembedding"]


@pytest.fixture
def words(tmp_path):
    save_file({"emb_params": rows(3, 768)}, str(tmp_path / "three.safetensors"))
    save_file({"emb_params": rows(100, 768)}, str(tmp_path / "hundred.safetensors"))
    return folder_of(tmp_path)


def kinds(chunk):
    return ["v" if isinstance(token, torch.Tensor) else token for token, _ in chunk]


def test_vectors_stand_where_the_word_stands_with_its_weight(words):
    cat, dog = (clip_tokenizer().encode(text)[0] for text in ("cat", "dog"))
    (chunk,) = SDTokenizer().tokenize_with_weights("cat (embedding:three:1.3) dog", words)
    assert kinds(chunk)[:7] == [START_TOKEN, cat, "v", "v", "v", dog, END_TOKEN]
    assert [weight for _, weight in chunk[:6]] == pytest.approx([1.0, 1.0, 1.3, 1.3, 1.3, 1.0])
    assert len(chunk) == 77


@pytest.mark.parametrize(("text", "rest"), PUNCTUATED[:-1])
def test_punctuation_after_a_learned_word_is_encoded(words, text, rest):
    (chunk,) = SDTokenizer().tokenize_with_weights(text, words)
    found = kinds(chunk)
    last = max(place for place, kind in enumerate(found) if kind == "v")
    after = clip_tokenizer().encode(rest)
    assert found.count("v") == 3
    assert found[last + 1 : last + 2 + len(after)] == [*after, END_TOKEN]
    assert words.stamps(text) == words.stamps("embedding:three") != ()


def test_a_word_that_is_not_there_in_any_reading_is_missing_as_it_is_written(words):
    with pytest.raises(EmbeddingMissing, match="'none\\.'"):
        SDTokenizer().tokenize_with_weights("embedding:none. A cat", words)


def test_a_learned_word_is_not_cut_unless_it_is_longer_than_a_chunk(words):
    first, second = SDTokenizer().tokenize_with_weights("cat " * 74 + "embedding:three", words)
    assert kinds(first).count("v") == 0
    assert kinds(second)[1:4] == ["v", "v", "v"]
    first, second = SDTokenizer().tokenize_with_weights("embedding:hundred", words)
    assert (kinds(first).count("v"), kinds(second).count("v")) == (75, 25)


def test_without_a_folder_it_is_ordinary_text():
    (chunk,) = SDTokenizer().tokenize_with_weights("embedding:three")
    assert "v" not in kinds(chunk)


def test_each_encoder_of_sdxl_gets_its_own(tmp_path):
    pair = {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}
    save_file(pair, str(tmp_path / "pair.safetensors"))
    tokens = SDXLTokenizer().tokenize_with_weights("embedding:pair", folder_of(tmp_path, XL))
    assert torch.equal(tokens["l"][0][1][0], pair["clip_l"][0])
    assert torch.equal(tokens["g"][0][2][0], pair["clip_g"][1])


# --- encoding ---------------------------------------------------------------------------------


def test_encodes_what_transformers_encodes(tmp_path):
    width, vectors = 128, rows(3, 128, seed=4)
    save_file({"emb_params": vectors}, str(tmp_path / "word.safetensors"))
    weights = {
        f"text_model.{k}": v
        for k, v in jittered_weights(clip_l_shapes(width, 3), seed=5).items()
        if "position_ids" not in k
    }
    config = detect_clip_config({k: tuple(v.shape) for k, v in weights.items()})
    ours = ClipTextModel(config)
    ours.load_state_dict(weights)
    folder = folder_of(tmp_path, {"l": width})
    text = "a cat embedding:word on a mat " + "and on " * 40
    tokens = SingleTokenizer().tokenize_with_weights(text, folder)
    found, pooled = SD1ClipModel(ours).encode_token_weights(tokens)

    theirs = CLIPTextModel(library_config(width, 3, "quick_gelu")).eval()
    table = dict(weights)
    learned = "text_model.embeddings.token_embedding.weight"
    table[learned] = with_words(table[learned], vectors)
    names = theirs.state_dict().keys()
    theirs.load_state_dict({n if n in names else n.removeprefix("text_model."): w
                            for n, w in table.items()})  # fmt: skip
    with torch.no_grad():
        out = theirs(ids_with_words(tokens["l"]))
    wanted = out.last_hidden_state.reshape(1, -1, width)
    most = wanted.abs().max()
    agree("adapter", "textual inversion", "transformers", found / most, wanted / most, TOLERANCE)
    torch.testing.assert_close(pooled, out.pooler_output[:1], rtol=1e-4, atol=1e-5)


def with_words(table, vectors):
    """A token table with vectors in the places 1000, 1001, …, which no text here names."""
    table = table.clone()
    table[1000 : 1000 + len(vectors)] = vectors
    return table


def ids_with_words(chunks):
    """Token ids for `with_words`, chunk by chunk."""
    places = itertools.count(1000)
    return torch.tensor(
        [[next(places) if isinstance(t, torch.Tensor) else t for t, _ in chunk] for chunk in chunks]
    )


def test_a_pair_of_sdxl_encodes_what_transformers_encodes(tmp_path):
    sizes = replace(TINY, clip_l_width=128)
    path = write_tiny_sdxl(tmp_path / "x.safetensors", dtype=torch.float32, sizes=sizes)
    words = tmp_path / "words"
    words.mkdir()
    pair = {"clip_l": rows(2, 128, seed=6) * 10, "clip_g": rows(3, 128, seed=7) * 10}
    save_file(pair, str(words / "word.safetensors"))
    _, clip, _, _ = sd.load_checkpoint_guess_config(
        path, embedding_directory=words, output_model=False, policy=POLICY
    )
    tokens = clip.tokenize("a cat embedding:word on a mat " + "and on " * 40)
    found, pooled = clip.encode_from_tokens(tokens)

    weights = load_file(str(path))
    wanted = []
    for encoder, prefix in (("l", CLIP_L_PREFIX), ("g", CLIP_G_PREFIX)):
        own = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
        is_l = encoder == "l"
        kind = CLIPTextModel if is_l else CLIPTextModelWithProjection
        named = {f"text_model.{k}": w for k, w in own.items() if "position_ids" not in k}
        named = named if is_l else openclip_to_library(own)
        table = "text_model.embeddings.token_embedding.weight"
        named[table] = with_words(named[table], pair[f"clip_{encoder}"])
        layers = sizes.clip_l_layers if is_l else sizes.clip_g_layers
        activation = "quick_gelu" if is_l else "gelu"
        theirs = kind(library_config(128, layers, activation, 128)).eval()
        fit = theirs.state_dict().keys()
        named = {k if k in fit else k.removeprefix("text_model."): w for k, w in named.items()}
        theirs.load_state_dict(named)
        with torch.no_grad():
            out = theirs(ids_with_words(tokens[encoder]), output_hidden_states=True)
        wanted.append(out.hidden_states[-2].reshape(1, -1, 128))
    both = torch.cat(wanted, dim=-1)
    name, reference = "textual inversion, SDXL pair", "transformers"
    agree("adapter", name, reference, found / both.abs().max(), both / both.abs().max(), TOLERANCE)
    torch.testing.assert_close(pooled, out.text_embeds[:1], rtol=1e-4, atol=1e-5)


def test_the_refiner_reads_its_half_of_a_pair(tmp_path):
    pair = {"clip_l": rows(2, 768), "clip_g": rows(2, 1280, seed=2)}
    save_file(pair, str(tmp_path / "word.safetensors"))
    found = folder_of(tmp_path, {"g": 1280}).vectors("word", "g")
    torch.testing.assert_close(found, pair["clip_g"])


@pytest.mark.parametrize(
    "text", ["a (embedding:word) b", "((embedding:word))", r"\(embedding:word, b"]
)
def test_a_word_in_brackets_is_known_by_its_file_too(tmp_path, text):
    save_file({"emb_params": rows(1, 768)}, str(tmp_path / "word.safetensors"))
    folder = folder_of(tmp_path)
    assert folder.stamps(text) == folder.stamps("embedding:word") != ()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "elsewhere").mkdir()
    save_file({"emb_params": rows(2, 768)}, str(tmp_path / "elsewhere" / "word.safetensors"))
    torch.save({"*": rows(3, 768)}, tmp_path / "elsewhere" / "other.pth")
    (tmp_path / "words" / "mine").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "words")
    folder = folder_of(tmp_path / "words")
    assert folder.vectors("mine/word", "l").shape == (2, 768)
    assert folder.vectors("other", "l").shape == (3, 768)
