"""Image prompts in cross-attention, against other renderings of the same description."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from extras import ip_attention
from extras.ip_attention import ImagePrompt, ImagePromptAttention, own_sites, region_weights
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.errors import UnsupportedModel
from tests.support.engine_report import agree
from tests.support.tiny_ip_adapter import SD1_WIDTHS, SDXL_WIDTHS

HEADS, WIDTH = 2, 32


class Step:
    """A network of which only the progress is known."""

    def __init__(self, step: float = 0.0) -> None:
        self.current_step = step


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, stop: float = 1.0, weight: float = 0.7, region=None, tokens=3) -> ImagePrompt:
    conds = tuple(
        [numbers(1, tokens, WIDTH, seed=seed + 10 * c + i) for i in (0, 1)] for c in (0, 1)
    )
    return ImagePrompt(conds, stop, weight, region)


def text(batch: int = 4, queries: int = 6, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    lengths = zip((queries, tokens, tokens), (1, 2, 3), strict=True)
    return tuple(numbers(batch, n, WIDTH, seed=s) for n, s in lengths)


def options(halves=(0, 0, 1, 1), **more) -> dict:
    return {"n_heads": HEADS, "cond_or_uncond": list(halves), **more}


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def written_out(q, k, v, prompts, halves, step) -> np.ndarray:
    """The joint mode in float64, sample by sample and head by head, from its description."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    out, size = np.empty_like(q), WIDTH // HEADS
    for sample in range(len(q)):
        keys, values = [k[sample]], [v[sample]]
        half = halves[sample * len(halves) // len(q)]
        for p in prompts:
            if not step < p.stop:
                continue
            ik, iv = (x[0].double().numpy() for x in p.conds[half])
            penalty = p.weight * WIDTH / 1280
            mean = iv.mean(axis=0)
            keys.append(ik * penalty)
            values.append(iv - mean + mean * penalty)
        keys, values = np.concatenate(keys), np.concatenate(values)
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = q[sample][:, part] @ keys[:, part].T / math.sqrt(size)
            out[sample][:, part] = softmax(scores) @ values[:, part]
    return out


@pytest.mark.parametrize("halves", [(0, 1), (0, 0, 1, 1), (1,), (1, 0)])
@pytest.mark.parametrize("step", [0.0, 0.5, 0.9])
def test_joint_is_its_description(halves, step):
    prompts = [prompt(100, stop=0.5, weight=0.6), prompt(200, stop=0.9, weight=40.0, tokens=2)]
    q, k, v = text()
    replace = ImagePromptAttention(Step(step), prompts).at(0)
    out = replace(q, k, v, options(halves))
    expected = written_out(q, k, v, prompts, halves, step)
    expected = torch.from_numpy(expected)
    agree("adapter", "IP-Adapter, joint", "its description in float64", out, expected, 1e-5)


def test_after_its_stop_a_prompt_leaves_text_alone():
    q, k, v = text()
    replace = ImagePromptAttention(Step(0.5), [prompt(100, stop=0.5)]).at(0)
    assert torch.equal(replace(q, k, v, options()), ip_attention.sdp(q, k, v, options()))


@pytest.mark.parametrize("has_region", [False, True])
def test_texts_that_are_repeated_to_one_length_weigh_as_they_do_alone(has_region):
    region = torch.zeros(4, 4)
    region[:, :2] = 1.0
    pictures = [prompt(100, weight=30.0), prompt(300, weight=30.0, tokens=2)]
    if has_region:
        pictures[1] = pictures[1]._replace(region=region)
    replace = ImagePromptAttention(Step(), pictures).at(0)
    q, k, v = text(queries=16, tokens=3)
    shape = {"original_shape": [4, 4, 4, 4]}
    alone, keys, values = [], [], []
    for half, tokens in ((0, 2), (1, 3)):
        rows = slice(2 * half, 2 * half + 2)
        own = k[rows, :tokens], v[rows, :tokens]
        alone.append(replace(q[rows], *own, options((half,), **shape)))
        keys.append(own[0].repeat(1, 6 // tokens, 1))
        values.append(own[1].repeat(1, 6 // tokens, 1))
    k, v = torch.cat(keys), torch.cat(values)

    def told(*repeats: int) -> Tensor:
        return replace(q, k, v, options((0, 1), text_repeats=repeats, **shape))

    torch.testing.assert_close(told(3, 2), torch.cat(alone), atol=1e-5, rtol=0)
    for wrong in ((1, 1), (2, 3)):
        assert (told(*wrong) - told(3, 2)).abs().max() > 0.01


@pytest.mark.parametrize("mode", ip_attention.MODES)
def test_nothing_is_joined_again_for_the_same_text(mode, monkeypatch):
    q, k, v = text()
    replace = ImagePromptAttention(Step(), [prompt(100), prompt(300)], mode).at(0)
    first = replace(q, k, v, options())
    monkeypatch.setattr(torch, "cat", lambda *_, **__: pytest.fail("joined again"))
    assert torch.equal(first, replace(q, k, v, options()))


def test_each_prompt_has_its_own_way_and_its_own_start():
    q, k, v = text()
    one, two = prompt(100), prompt(300)

    def out(*prompts: ImagePrompt, step: float = 0.0, mode: ip_attention.Mode = "joint") -> Tensor:
        return ImagePromptAttention(Step(step), prompts, mode).at(0)(q, k, v, options())

    words, apart = out(), two._replace(mode="decoupled")
    assert torch.equal(out(apart), out(two, mode="decoupled"))
    assert not torch.allclose(out(apart), out(two))
    torch.testing.assert_close(out(one, apart), out(one) + out(apart) - words)
    late = one._replace(start=0.5)
    assert torch.equal(out(late, step=0.4), words)
    assert torch.equal(out(late, step=0.5), out(one, step=0.5))


def test_a_changed_text_is_seen():
    q, k, v = text()
    attention = ImagePromptAttention(Step(), [prompt(100)])
    replace = attention.at(0)
    first = replace(q, k, v, options())
    k.mul_(2.0)
    again = replace(q, k, v, options())
    assert not torch.allclose(first, again)
    assert torch.equal(again, attention.at(0)(q, k, v, options()))


def diffusers_attention(prompts, context_width: int):
    """diffusers' attention with its IP-Adapter processor and random weights."""
    processors = pytest.importorskip("diffusers.models.attention_processor")
    torch.manual_seed(0)
    layer = processors.Attention(WIDTH, context_width, heads=HEADS, dim_head=WIDTH // HEADS)
    tokens = [3] * len(prompts)
    scales = [p.weight for p in prompts]
    processor = processors.IPAdapterAttnProcessor2_0(WIDTH, context_width, tokens, scales)
    layer.set_processor(processor)
    return layer.requires_grad_(False).eval(), processor


def test_decoupled_is_diffusers_ip_adapter():
    weights, context_width = (0.6, 1.1), 24
    blank = [ImagePrompt(([], []), 1.0, w) for w in weights]
    layer, processor = diffusers_attention(blank, context_width)
    x, context = numbers(4, 6, WIDTH, seed=5), numbers(4, 5, context_width, seed=6)
    # Two prompts, their tokens for the conditional half and for the other.
    tokens = [[numbers(1, 3, context_width, seed=10 * i + c) for c in (0, 1)] for i in (1, 2)]
    prompts = [
        ImagePrompt(
            tuple([processor.to_k_ip[i](t), processor.to_v_ip[i](t)] for t in tokens[i]),
            1.0,
            weights[i],
        )
        for i in (0, 1)
    ]
    batch = [torch.cat([t[0], t[0], t[1], t[1]])[:, None] for t in tokens]
    expected = layer(x, encoder_hidden_states=(context, batch))
    replace = ImagePromptAttention(Step(), prompts, "decoupled").at(0)
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    out = layer.to_out[0](replace(q, k, v, options()))
    assert expected.std() > 0.01
    agree("adapter", "IP-Adapter, decoupled", "diffusers", out, expected, 1e-5)
    plain = layer.to_out[0](ip_attention.sdp(q, k, v, options()))
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("mode", ip_attention.MODES)
def test_a_region_confines_a_prompt(mode):
    region = torch.zeros(8, 8)
    region[:, 4:] = 1.0
    shape = [2, 4, 8, 8]
    q, k, v = text(batch=2, queries=16)
    more = {"original_shape": shape}
    strong = prompt(100, weight=30.0, region=region)
    with_region = ImagePromptAttention(Step(), [strong], mode).at(0)(
        q, k, v, options((0, 1), **more)
    )
    whole = ImagePromptAttention(Step(), [strong._replace(region=None)], mode).at(0)
    everywhere, nowhere = whole(q, k, v, options((0, 1))), ip_attention.sdp(q, k, v, options())
    grid = [x.view(2, 4, 4, WIDTH) for x in (with_region, everywhere, nowhere)]
    torch.testing.assert_close(grid[0][:, :, 2:], grid[1][:, :, 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grid[0][:, :, :2], grid[2][:, :, :2], atol=1e-5, rtol=1e-5)
    assert (everywhere - nowhere).abs().mean() > 0.05


def test_each_region_acts_on_its_own_prompt():
    left = torch.zeros(4, 4)
    left[:, :2] = 1.0
    prompts = [prompt(100, weight=30.0, region=left), prompt(300, weight=30.0, region=1.0 - left)]
    q, k, v = text(batch=1, queries=16)
    more = options((0,), original_shape=[1, 4, 4, 4])
    out = ImagePromptAttention(Step(), prompts).at(0)(q, k, v, more).view(4, 4, WIDTH)
    for p, columns in zip(prompts, (slice(0, 2), slice(2, 4)), strict=True):
        alone = ImagePromptAttention(Step(), [p._replace(region=None)]).at(0)(q, k, v, more)
        alone = alone.view(4, 4, WIDTH)[:, columns]
        torch.testing.assert_close(out[:, columns], alone, atol=1e-5, rtol=1e-5)


def test_a_half_painted_pixel_counts_by_its_share():
    region = torch.zeros(4, 4)
    region[:2, :] = 1.0
    assert region_weights(region, 4, [1, 4, 4, 4]).tolist() == [1.0, 1.0, 0.0, 0.0]
    region[2] = 1.0
    assert region_weights(region, 4, [1, 4, 4, 4]).tolist() == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("tokens", "shape", "expected"),
    [(6, (3, 2), (3, 2)), (12, (7, 5), (4, 3)), (4, (7, 5), (2, 2)), (9, None, (3, 3))],
)
def test_feature_maps_are_recognised(tokens, shape, expected):
    assert ip_attention.grid_of(tokens, shape) == expected


def test_tables_of_layers():
    sdxl, sd1 = ip_attention.SDXL_SITES, ip_attention.SD1_SITES
    assert (len(sdxl), len(set(sdxl)), len(sd1), len(set(sd1))) == (70, 70, 16, 16)
    assert own_sites(UNetConfig()) == sdxl  # whose defaults are SDXL's dimensions
    config = UNetConfig()
    assert [ip_attention.site_width(config, site) for site in sdxl] == SDXL_WIDTHS
    sd15 = UNetConfig(
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(1, 1, 1, 1, 1, 1, 0, 0),
        transformer_depth_middle=1,
        transformer_depth_output=(0, 0, 0, *[1] * 9),
        context_dim=768,
        num_classes=None,
    )
    assert own_sites(sd15) == sd1
    assert [ip_attention.site_width(sd15, site) for site in sd1] == SD1_WIDTHS


def test_an_adapter_of_another_family_is_refused():
    class Network:
        config = UNetConfig()

    with pytest.raises(UnsupportedModel, match="16 layers.*needs 70"):
        ip_attention.sites_for(Network(), SD1_WIDTHS)
    with pytest.raises(UnsupportedModel, match="Layer 69 .* 640 wide.*needs 1280"):
        ip_attention.sites_for(Network(), [*SDXL_WIDTHS[:-1], 640])
    with pytest.raises(UnsupportedModel, match="3 layers; SDXL needs 70"):
        ip_attention.sites_for(Step(), [320, 320, 640])


@pytest.fixture
def joined(monkeypatch):
    """Weak references to all that torch.cat makes."""
    made: list[weakref.ref[Tensor]] = []
    cat = torch.cat

    def watched(*args, **keywords):
        out = cat(*args, **keywords)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(torch, "cat", watched)
    return made


BOTH_WAYS = [prompt(100), prompt(300)._replace(mode="decoupled")]


def test_what_was_joined_goes_with_the_text_that_it_was_joined_for(joined):
    replace = ImagePromptAttention(Step(), BOTH_WAYS).at(0)
    for _ in range(3):
        q, k, v = text()
        replace(q, k, v, options())
    assert any(made() is not None for made in joined)
    del q, k, v
    assert not [made for made in joined if made() is not None]


def test_what_was_joined_goes_with_its_layer_at_once(joined):
    replace = ImagePromptAttention(Step(), BOTH_WAYS).at(0)
    q, k, v = text()  # stays
    gc.disable()
    try:
        replace(q, k, v, options())
        assert any(made() is not None for made in joined)
        del replace
        assert not [made for made in joined if made() is not None]
    finally:
        gc.enable()
