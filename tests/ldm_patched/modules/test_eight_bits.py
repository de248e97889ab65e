"""Weights stored in 8 bits: how near they are, and that adapters and streaming work on them."""

import pytest
import torch
from torch import Tensor

from ldm_patched.modules import ops
from ldm_patched.modules.model_base import BaseModel, set_weight
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.residence import Residence
from tests.support import engine_report
from tests.support.counting_transfer import CountingTransfer
from tests.support.tiny_checkpoint import tiny_sdxl_state_dict

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# e4m3 keeps 4 digits of a number, e5m2 3: a relative error of up to 1/16 and 1/8, about a third
# of it in the mean.
WEIGHT_ERROR = {E4M3: 0.03, E5M2: 0.06}
# A random network damps nothing: of 30 layers the errors add up. Measured 0.16 and 0.31.
OUTPUT_ERROR = {E4M3: 0.2, E5M2: 0.36}


def make(stored: torch.dtype, compute: torch.dtype = torch.float32) -> BaseModel:
    weights = tiny_sdxl_state_dict()
    config = require_model_config(weights)
    config.set_inference_dtype(stored, compute)
    model = config.get_model(weights, device="meta")
    model.load_model_weights(weights, memory_format=torch.channels_last)
    return model.eval()


def run(model: BaseModel) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(1, 4, 16, 16, generator=g), torch.tensor([3.0])
    context = torch.randn(1, 77, 192, generator=g)
    y = model.encode_adm(torch.randn(1, 128, generator=g))
    with torch.inference_mode():
        return x - model.apply_model(x, t, c_crossattn=context, y=y)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("size", [1e-4, 0.02, 3.0])
def test_any_size_of_weights_is_stored_as_well(dtype, size):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) * size
    stored = ops.compressed(weight, dtype)
    assert stored.dtype == dtype
    assert relative(ops.expanded(stored, torch.float32), weight) < WEIGHT_ERROR[dtype]


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_odd_weights(dtype):
    for odd in (torch.zeros(3, 3), torch.zeros(0, 3)):
        assert torch.equal(ops.expanded(ops.compressed(odd, dtype), torch.float32), odd)
    once = ops.compressed(torch.randn(32, 32), dtype)
    wide = ops.expanded(once, torch.float32)
    again = ops.expanded(ops.compressed(wide, dtype), torch.float32)
    assert torch.equal(again, wide)  # nothing is lost twice


def test_scaling_is_what_makes_e4m3_exact_enough():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(2)) * 0.005
    plain = relative(weight.to(E4M3).float(), weight)
    assert plain > 3 * relative(ops.expanded(ops.compressed(weight, E4M3), torch.float32), weight)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_the_network_is_near_the_one_in_full_precision(dtype, compute, request):
    wanted = run(make(compute, None))
    model = make(dtype, compute)
    layer = model.diffusion_model.middle_block[1]
    assert layer.proj_in.weight.dtype == dtype
    assert layer.norm.weight.dtype == compute
    difference = relative(run(model), wanted)
    engine_report.record(
        "memory",
        f"UNet stored in {dtype}",
        request.node.nodeid,
        f"stored in {compute}, relative",
        difference,
        OUTPUT_ERROR[dtype],
    )
    assert 1e-4 < difference < OUTPUT_ERROR[dtype]


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_a_lora_goes_on_top_and_comes_off_byte_by_byte(dtype):
    full, low = make(torch.float32), make(dtype, torch.float32)
    before = {n: p.detach().clone() for n, p in low.named_parameters()}
    g = torch.Generator().manual_seed(3)
    patches = {
        name: ("diff", (0.7 * p.std() * torch.randn(p.shape, generator=g),))
        for name, p in full.named_parameters()
        if p.ndim > 1
    }
    patchers = [ModelPatcher(full), ModelPatcher(low)]
    plain = run(full)
    for patcher in patchers:
        assert len(patcher.add_patches(patches, 0.8)) == len(patches) > 20
        patcher.patch_model()
    wanted, found = run(full), run(low)
    moved = relative(plain, wanted)
    assert relative(found, wanted) < 0.5 * moved
    theirs, own = dict(full.named_parameters()), dict(low.named_parameters())
    for name in patches:
        weight = ops.expanded(own[name], torch.float32)
        assert relative(weight, theirs[name]) < 1.5 * WEIGHT_ERROR[dtype]  # rounded twice
    assert low.diffusion_model.middle_block[1].proj_in.weight.dtype == dtype
    patchers[1].unpatch_model()
    after = dict(low.named_parameters())
    for name, p in before.items():
        assert torch.equal(after[name].view(torch.uint8), p.view(torch.uint8))


def test_eight_bits_stream(monkeypatch):
    monkeypatch.setattr("ldm_patched.modules.weight_stream.SMALL_UNIT", 2**12)
    model = make(E4M3, torch.float32)
    wanted = run(model)
    transfer = CountingTransfer()
    residence = Residence(model, transfer)
    residence.load(0)
    assert torch.equal(run(model), wanted)
    assert transfer.copies
    assert residence.size < 0.3 * Residence(make(torch.float32)).size


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_rows_of_a_table_are_expanded_like_any_weight(dtype):
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(3)) * 0.01
    table = ops.manual_cast.Embedding(20, 64)
    set_weight(table, "weight", ops.compressed(rows, dtype))
    ids = torch.tensor([3, 19])
    assert relative(table(ids), rows[ids]) < WEIGHT_ERROR[dtype]
