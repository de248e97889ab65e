"""Text encoders against transformers' on the same random weights, and how prompts are cut."""

import os

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm_patched.modules import sd1_clip
from ldm_patched.modules.clip_tokenizer import END_TOKEN, START_TOKEN
from ldm_patched.modules.sd1_clip import (
    ClipTextModel,
    SD1ClipModel,
    SDTokenizer,
    SingleTokenizer,
    detect_clip_config,
)
from ldm_patched.modules.sd2_clip import SD2ClipModel
from ldm_patched.modules.sdxl_clip import SDXLClipModel, SDXLRefinerClipModel, SDXLTokenizer
from tests.support.clip_oracle import library_config, openclip_to_library
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import clip_g_shapes, clip_l_shapes, jittered_weights

PROMPTS = ("", "a cat on a mat", "🎨 حصان", "word " * 100)


def shapes_of(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def l_weights():
    weights = jittered_weights(clip_l_shapes(128, 3), seed=5)
    return {f"text_model.{k}": v for k, v in weights.items() if "position_ids" not in k}


@pytest.fixture(scope="module")
def g_weights():
    return jittered_weights(clip_g_shapes(128, 4), seed=6)


@pytest.fixture(scope="module")
def clip_l(l_weights):
    model = ClipTextModel(detect_clip_config(shapes_of(l_weights)))
    model.load_state_dict(l_weights)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def clip_g(g_weights):
    model = ClipTextModel(detect_clip_config(shapes_of(g_weights), "gelu"))
    weights = sd1_clip.from_openclip(dict(g_weights))
    weights.pop("logit_scale")
    model.load_state_dict(weights)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def library_l(l_weights):
    model = CLIPTextModel(library_config(128, 3, "quick_gelu")).eval().requires_grad_(False)
    names = set(model.state_dict())
    fitted = {k if k in names else k.removeprefix("text_model."): v for k, v in l_weights.items()}
    missing, unexpected = model.load_state_dict(fitted, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model


@pytest.fixture(scope="module")
def library_g(g_weights):
    config = library_config(128, 4, "gelu", projection=128)
    model = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    missing, unexpected = model.load_state_dict(openclip_to_library(g_weights), strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model


def ids_of(chunks):
    return torch.tensor([[token for token, _ in chunk] for chunk in chunks])


def note(name, difference):
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("text encoder", name, where, "transformers CLIPTextModel", difference, 1e-4)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_clip_l_equals_the_library(clip_l, library_l, prompt):
    ids = ids_of(SDTokenizer().tokenize_with_weights(prompt))
    expected = library_l(ids, output_hidden_states=True)
    hidden, pooled = clip_l(ids)
    difference = relative_error(hidden, expected.hidden_states[-2])
    difference = max(difference, relative_error(pooled, expected.pooler_output))
    note("SDXL, first encoder (CLIP-L)", difference)
    assert difference <= 1e-4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_second_encoder_equals_the_library(clip_g, library_g, prompt):
    ids = ids_of(SDTokenizer(pad=0).tokenize_with_weights(prompt))
    expected = library_g(ids, output_hidden_states=True)
    hidden, pooled = clip_g(ids)
    difference = relative_error(hidden, expected.hidden_states[-2])
    difference = max(difference, relative_error(pooled, expected.text_embeds))
    note("SDXL, second encoder (CLIP-G)", difference)
    assert difference <= 1e-4


def test_the_last_layer_with_the_final_norm_is_the_librarys_last_hidden_state(clip_l, library_l):
    ids = ids_of(SDTokenizer().tokenize_with_weights("a house"))
    hidden, _ = clip_l(ids, -1, final_norm=True)
    assert relative_error(hidden, library_l(ids).last_hidden_state) <= 1e-4


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_the_encoder_of_stable_diffusion_1_is_normed_at_every_layer(clip_l, library_l, skip):
    tokens = SingleTokenizer().tokenize_with_weights("a house by the sea")
    expected = library_l(ids_of(tokens["l"]), output_hidden_states=True)
    wanted = clip_l.text_model.final_layer_norm(expected.hidden_states[-skip])
    cond, pooled = SD1ClipModel(clip_l).encode_token_weights(tokens, None if skip == 1 else -skip)
    difference = relative_error(cond, expected.last_hidden_state if skip == 1 else wanted)
    note("SD 1.5", difference)
    assert difference <= 1e-4
    assert relative_error(pooled, expected.pooler_output) <= 1e-4


def test_the_encoder_of_stable_diffusion_2_is_read_before_its_last_layer(clip_g, library_g):
    tokens = SingleTokenizer("h", 0).tokenize_with_weights("a house by the sea")
    ids = ids_of(tokens["h"])
    expected = library_g(ids, output_hidden_states=True).hidden_states[-2]
    wanted = clip_g.text_model.final_layer_norm(expected)
    difference = relative_error(SD2ClipModel(clip_g).encode_token_weights(tokens)[0], wanted)
    note("SD 2.x", difference)
    assert difference <= 1e-4


def test_an_encoder_without_its_last_layer_gives_the_same(clip_g, g_weights):
    tokens = SingleTokenizer("h", 0).tokenize_with_weights("a house by the sea")
    short = {k: v for k, v in g_weights.items() if "resblocks.3." not in k and k != "logit_scale"}
    cut = ClipTextModel(detect_clip_config(shapes_of(short), "gelu"))
    cut.load_state_dict(sd1_clip.from_openclip(short))
    whole, shortened = SD2ClipModel(clip_g), SD2ClipModel(cut, cut=1)
    for layer in (None, -2, -3, -99):
        wanted, _ = whole.encode_token_weights(tokens, layer)
        found, _ = shortened.encode_token_weights(tokens, layer)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_refiner_reads_the_second_encoder_alone(clip_g):
    tokens = SingleTokenizer("g", 0).tokenize_with_weights("a house by the sea")
    cond, pooled = SDXLRefinerClipModel(clip_g).encode_token_weights(tokens)
    hidden, wanted = clip_g(ids_of(tokens["g"]))
    torch.testing.assert_close(cond, hidden)
    torch.testing.assert_close(pooled, wanted)


def test_both_encoders_side_by_side_make_the_conditioning(clip_l, clip_g):
    tokens = SDXLTokenizer().tokenize_with_weights("a house by the sea")
    cond, pooled = SDXLClipModel(clip_l, clip_g).encode_token_weights(tokens)
    assert cond.shape == (1, 77, 256)
    torch.testing.assert_close(cond[..., :128], clip_l(ids_of(tokens["l"]))[0])
    torch.testing.assert_close(cond[..., 128:], clip_g(ids_of(tokens["g"]))[0])
    torch.testing.assert_close(pooled, clip_g(ids_of(tokens["g"]))[1])


def test_a_long_prompt_is_encoded_chunk_by_chunk(clip_l, clip_g):
    tokens = SDXLTokenizer().tokenize_with_weights("word " * 100)
    model = SDXLClipModel(clip_l, clip_g)
    cond, pooled = model.encode_token_weights(tokens)
    first, first_pooled = model.encode_token_weights({k: v[:1] for k, v in tokens.items()})
    second, _ = model.encode_token_weights({k: v[1:] for k, v in tokens.items()})
    torch.testing.assert_close(cond, torch.cat([first, second], dim=1))
    torch.testing.assert_close(pooled, first_pooled)


def by_the_formula(model, text, pad):
    """Emphasis in float64, chunk by chunk: z' = e + w (z - e), scaled to the mean of z."""
    rows = []
    empty = model(ids_of([SDTokenizer(pad).frame(())]))[0][0].double()
    for chunk in SDTokenizer(pad).tokenize_with_weights(text):
        hidden = model(ids_of([chunk]))[0][0].double()
        weights = torch.tensor([weight for _, weight in chunk], dtype=torch.float64)
        weighted = empty + weights[:, None] * (hidden - empty)
        rows.append(weighted * (hidden.mean() / weighted.mean()))
    return torch.cat(rows)[None]


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.5) cat",
        "a (red) cat on ((a mat)) (far away:0.6)",
        "(everything:1.3)",
        "plain " * 80 + "(loud:1.4)",
        "(loud:1.4) BREAK plain BREAK (soft:0.7)",
    ],
)
def test_emphasis_is_the_mean_preserving_rule(clip_l, clip_g, text):
    for model, pad in ((clip_l, END_TOKEN), (clip_g, 0)):
        chunks = SDTokenizer(pad).tokenize_with_weights(text)
        found, _ = sd1_clip.encode_chunks(model, chunks, pad=pad)
        expected = by_the_formula(model, text, pad)
        assert relative_error(found.double(), expected) <= 1e-5


def test_each_encoder_is_weighed_against_its_own_empty_prompt(clip_l, clip_g):
    text = "a (red:1.5) cat"
    cond, _ = SDXLClipModel(clip_l, clip_g).encode_token_weights(
        SDXLTokenizer().tokenize_with_weights(text)
    )
    parts = [by_the_formula(clip_l, text, END_TOKEN), by_the_formula(clip_g, text, 0)]
    assert relative_error(cond.double(), torch.cat(parts, dim=-1)) <= 1e-5


def test_weights_leave_the_pooled_output_and_plain_chunks_alone(clip_g):
    tokenizer = SDTokenizer(pad=0)
    plain, pooled = sd1_clip.encode_chunks(
        clip_g, tokenizer.tokenize_with_weights("a red cat BREAK a dog"), pad=0
    )
    weighted, same = sd1_clip.encode_chunks(
        clip_g, tokenizer.tokenize_with_weights("a (red:1.5) cat BREAK a dog"), pad=0
    )
    torch.testing.assert_close(same, pooled)
    torch.testing.assert_close(weighted[:, 77:], plain[:, 77:])
    assert not torch.allclose(weighted[:, :77], plain[:, :77])


def test_a_mean_near_nought_scales_nothing_up():
    hidden = torch.tensor([[[1.0, -1.0], [2.0, 1.0]]])
    weights = torch.tensor([[-1.0, 1.0]])
    empty = torch.zeros(1, 2, 2)
    for weight in (-1.0, 0.0, 10.0, -10.0):
        weights[0, 1] = weight
        assert sd1_clip.emphasise(hidden, empty, weights).abs().max() <= 80


def test_tokens_carry_their_weights_and_breaks_begin_chunks():
    first, second = SDTokenizer().tokenize_with_weights("a (red cat:1.3) BREAK (dog)")
    assert [weight for _, weight in first[:6]] == [1, 1, 1.3, 1.3, 1, 1]
    assert [weight for _, weight in second[:4]] == [1, 1.1, 1, 1]
    assert len(SDTokenizer().tokenize_with_weights("BREAK BREAK")) == 1


def test_padding_differs_between_the_encoders():
    tokens = SDXLTokenizer().tokenize_with_weights("")
    assert [token for token, _ in tokens["l"][0]] == [START_TOKEN] + [END_TOKEN] * 76
    assert [token for token, _ in tokens["g"][0]] == [START_TOKEN, END_TOKEN] + [0] * 75


@pytest.mark.parametrize(("words", "chunks"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_hold_75_tokens(words, chunks):
    found = SDTokenizer().tokenize_with_weights("cat " * words)
    assert [len(chunk) for chunk in found] == [77] * chunks
    assert sum(token == 2368 for chunk in found for token, _ in chunk) == words


def test_a_word_is_not_cut_by_the_end_of_a_chunk():
    first, second = SDTokenizer().tokenize_with_weights("cat " * 74 + "photorealisticity")
    assert first[75][0] == END_TOKEN
    assert second[3][0] != END_TOKEN


def test_a_word_longer_than_a_chunk_loses_nothing():
    tokenizer = sd1_clip.clip_tokenizer()
    found = SDTokenizer(pad=0).tokenize_with_weights("q" + "xz" * 150)
    special = {0, START_TOKEN, END_TOKEN}
    kept = [token for chunk in found for token, _ in chunk if token not in special]
    assert kept == tokenizer.encode("q" + "xz" * 150)


def test_dimensions_are_read_from_either_layout():
    prefixed = {f"text_model.{k}": v for k, v in clip_l_shapes(768, 12).items()}
    config = detect_clip_config(prefixed)
    assert (config.width, config.layers, config.heads, config.projection) == (768, 12, 12, 0)
    config = detect_clip_config(clip_g_shapes(1280, 32))
    assert (config.width, config.layers, config.heads, config.projection) == (1280, 32, 20, 1280)
    assert detect_clip_config({"decoder.conv_in.weight": (4, 4, 3, 3)}) is None
