"""Every way gives PyTorch's numbers, in the memory it promises."""

import math
import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_patched.ldm.modules import attention_kernels
from ldm_patched.ldm.modules.attention import optimized_attention
from ldm_patched.ldm.modules.attention_kernels import (
    ATTENTION_WAYS,
    attend,
    attention_way,
    set_attention_way,
)
from ldm_patched.ldm.modules.diffusionmodules.model import AttnBlock
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.sd1_clip import ClipTextConfig, ClipTextModel
from tests.support import engine_report

LESS = ["split", "quad"]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(attention_kernels, "SCORE_BYTES", 4 * 2 * 3 * 700)


def inputs(n: int, m: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + m)
    made = [torch.randn(2, 3, length, 8, generator=g).to(dtype) for length in (n, m, m)]
    return made[0], made[1], made[2]


def mask_of(kind: str, n: int, m: int) -> Tensor | None:
    g = torch.Generator().manual_seed(5)
    if kind == "none":
        return None
    if kind == "float":
        return torch.randn(2, 1, n, m, generator=g)
    mask = torch.rand((2, 3, n, m) if kind == "bool" else (2, 1, 1, m), generator=g) > 0.4
    mask[..., 0] = True
    if m > 40:
        mask[..., 1:40] = False  # whole slices of keys are not seen
    return mask


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["none", "float", "bool", "row"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 77), (100, 100), (130, 61)])
@pytest.mark.parametrize("name", LESS)
def test_slices_give_the_same_numbers(name, n, m, kind, dtype, request):
    q, k, v = inputs(n, m, dtype)
    mask = mask_of(kind, n, m)
    mask = mask.to(dtype) if kind == "float" else mask
    wanted = attend(q, k, v, mask)
    with attention_way(name):
        found = attend(q, k, v, mask)
    difference = float((found - wanted).abs().max())
    engine_report.record(
        "attention", name, request.node.nodeid, f"PyTorch's, {dtype}", difference, TOLERANCE[dtype]
    )
    assert found.dtype == dtype
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize(("n", "m"), [(16, 77), (128, 128)])
def test_what_few_tokens_teach_is_what_pytorch_s_kernel_teaches(n, m, dtype, tolerance):
    results = []
    for kind, way in ((dtype, attend), (torch.float32, F.scaled_dot_product_attention)):
        # Rounded the same for both; scaled so that some scores are far above the others.
        q, k, v = (part.to(kind) for part in inputs(n, m, dtype))
        parts = [part.requires_grad_() for part in (4 * q, k, v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            out = way(*parts)
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), parts)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours.float() - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("learns", ["q", "k", "v"])
def test_few_tokens_go_back_without_the_fused_kernel(monkeypatch, learns):
    monkeypatch.setattr(attention_kernels.F, "scaled_dot_product_attention", None)
    parts = dict(zip("qkv", inputs(128, 128), strict=True))
    parts[learns].requires_grad_()
    attend(**parts).square().sum().backward()
    assert parts[learns].grad is not None
    assert bool(parts[learns].grad.any())
    for others in (inputs(128, 129), inputs(16, 77)):  # too many scores; and nothing to learn
        with pytest.raises(TypeError):  # the kernel that is not there
            attend(others[0].requires_grad_(len(others[1][0, 0]) == 129), *others[1:])


@pytest.mark.parametrize("n", [1, 77, 154])
@pytest.mark.parametrize("name", LESS)
def test_causal_slices_give_the_same_numbers(name, n):
    q, k, v = inputs(n, n)
    wanted = attend(q, k, v, causal=True)
    with attention_way(name):
        torch.testing.assert_close(attend(q, k, v, causal=True), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", LESS)
def test_large_scores_do_not_overflow(name):
    q, k, v = (t * 100 for t in inputs(70, 90))
    wanted = attend(q, k, v)
    with attention_way(name):
        torch.testing.assert_close(attend(q, k, v), wanted, rtol=1e-4, atol=1e-3)


def largest_scores(monkeypatch, name: str, tokens: int) -> int:
    """Bytes of the largest score matrix in the course of an attention."""
    sizes = []

    def watched(function):
        def wrapper(q, k, v, attn_mask=None, is_causal=False):
            sizes.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * 4)
            return function(q, k, v, attn_mask, 0.0, is_causal)

        return wrapper

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention_kernels.F, "scaled_dot_product_attention", watched(sdpa))
    amax = torch.Tensor.amax
    monkeypatch.setattr(
        torch.Tensor, "amax", lambda t, *a, **k: sizes.append(t.numel() * 4) or amax(t, *a, **k)
    )
    with attention_way(name):
        attend(*inputs(tokens, tokens))
    monkeypatch.undo()
    return max(sizes)


@pytest.mark.parametrize("name", LESS)
def test_no_slice_takes_more_than_it_may(monkeypatch, name):
    limit = 2**16
    with monkeypatch.context() as patch:
        for tokens in (64, 512):
            patch.setattr(attention_kernels, "SCORE_BYTES", limit)
            assert largest_scores(patch, name, tokens) <= limit


def test_running_out_of_memory_leads_to_the_next_way(monkeypatch):
    q, k, v = inputs(90, 90)
    wanted, tried = attend(q, k, v), []

    def fails(*_):
        tried.append("fails")
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setitem(ATTENTION_WAYS, "pytorch", fails)
    torch.testing.assert_close(attend(q, k, v), wanted, rtol=0, atol=2e-6)
    monkeypatch.setitem(ATTENTION_WAYS, "split", fails)
    torch.testing.assert_close(attend(q, k, v), wanted, rtol=0, atol=2e-6)
    monkeypatch.setitem(ATTENTION_WAYS, "quad", fails)
    with pytest.raises(torch.OutOfMemoryError):
        attend(q, k, v)
    assert len(tried) == 1 + 2 + 3


def test_all_networks_use_it(monkeypatch):
    """UNet, VAE and text encoder: the way in force is asked each time."""
    calls = []

    def noted(*arguments):
        calls.append(arguments[0].shape)
        return attention_kernels.quad(*arguments)

    monkeypatch.setitem(ATTENTION_WAYS, "split", noted)
    config = ClipTextConfig(width=64, layers=2, vocabulary=100, length=77, intermediate=64)
    clip = ClipTextModel(config)
    for p in clip.parameters():
        torch.nn.init.normal_(p, std=0.1)
    vae = AttnBlock(32, operations=torch.nn)
    with torch.inference_mode(), attention_way("split"):
        optimized_attention(*(torch.randn(1, 5, 16) for _ in range(3)), heads=2)
        assert calls == [(1, 2, 5, 8)]
        vae(torch.randn(1, 32, 4, 4))
        assert calls[1:] == [(1, 1, 16, 32)]
        clip.text_model.encoder.layers[0].self_attn(torch.randn(1, 77, 64))
        assert len(calls) == 3


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [({}, "pytorch"), ({"attention-split": 1}, "split"), ({"attention_quad": True}, "quad")],
)
def test_the_flag_decides_in_every_thread(monkeypatch, flags, wanted):
    monkeypatch.setitem(attention_kernels._process, "way", "pytorch")
    policy = DevicePolicy(DeviceFlags.from_mapping(flags), Hardware())
    assert policy.attention == wanted
    thread = threading.Thread(target=policy.configure_process)
    thread.start()
    thread.join()
    assert attention_kernels._way_in_force() == wanted


def test_a_way_that_takes_more_is_not_gone_back_to():
    with attention_way("quad"), attention_way("split"):
        assert attention_kernels._way_in_force() == "quad"
    assert attention_kernels._way_in_force() == "pytorch"
    with pytest.raises(ValueError, match="no attention 'magic'"):
        set_attention_way("magic")


def test_nothing_seen_in_the_first_slice_is_no_nan():
    q, k, v = inputs(20, 100)
    mask = torch.full((20, 100), -math.inf)
    mask[:, 90:] = 0.0
    with attention_way("quad"):
        found = attend(q, k, v, mask)
    torch.testing.assert_close(found, attend(q, k, v, mask), rtol=0, atol=2e-6)


def test_a_compiler_takes_attention_in_one_piece():
    q, k, v = inputs(9, 7)
    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), attend(q, k, v))
    q.requires_grad_()
    assert torch.equal(compiled(q, k, v).detach(), attend(q, k, v).detach())
