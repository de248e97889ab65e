"""Weights that come and go: bit by bit the same network wherever its weights are."""

import pytest
import torch
from torch import Tensor

from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_base import BaseModel
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.weight_stream import plan_stream, stream_units
from tests.support import engine_report
from tests.support.counting_transfer import CountingTransfer, _Storages
from tests.support.tiny_checkpoint import tiny_sdxl_state_dict

WORK = 2**18
"""Bytes; what merging a LoRA into a weight takes here."""


@pytest.fixture(autouse=True)
def every_block_streams(monkeypatch):
    monkeypatch.setattr("ldm_patched.modules.weight_stream.SMALL_UNIT", 2**12)


@pytest.fixture
def model() -> BaseModel:
    weights = tiny_sdxl_state_dict()
    config = require_model_config(weights)
    config.set_inference_dtype(torch.float32)
    made = config.get_model(weights, device="meta")
    made.load_model_weights(weights, memory_format=torch.channels_last)
    return made.eval()


def run(model: BaseModel, steps: int = 2) -> Tensor:
    """Some steps with the same text, as a sampler takes them."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=g)
    context = torch.randn(2, 77, 192, generator=g)
    y = model.encode_adm(torch.randn(2, 128, generator=g))
    with torch.inference_mode():
        for sigma in range(steps, 0, -1):
            x = model.apply_model(x, torch.full((2,), float(sigma)), c_crossattn=context, y=y)
    return x


def hosts(model: BaseModel) -> dict[str, tuple[int, int]]:
    return {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("copies_ahead", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_streamed_unet_gives_the_very_numbers(model, share, copies_ahead, request):
    wanted, before = run(model), hosts(model)
    transfer = CountingTransfer(copies_ahead=copies_ahead)
    residence = Residence(model, transfer)
    residence.load(int(share * residence.size) if share < 1 else None)
    assert residence.is_streaming == (share < 1)
    found = run(model)
    difference = float((found - wanted).abs().max())
    engine_report.record(
        "memory", f"streaming {share}", request.node.nodeid, "resident UNet", difference, 0.0
    )
    assert torch.equal(found, wanted)
    residence.offload()
    assert hosts(model) == before
    assert transfer.used == 0
    assert torch.equal(run(model), wanted)


def test_what_was_kept_of_texts_leaves_with_the_weights(model):
    residence = Residence(model, CountingTransfer())
    residence.load()
    run(model)
    assert len(model.diffusion_model._contexts)
    residence.offload()
    assert not len(model.diffusion_model._contexts)


def test_the_allowance_is_kept_to(model):
    units = stream_units(model)
    floor = plan_floor(model)
    whole = sum(unit.size for unit in units)
    for allowance in range(floor, whole, (whole - floor) // 9):
        transfer = CountingTransfer()
        residence = Residence(model, transfer)
        residence.load(allowance)
        run(model)
        assert transfer.peak <= allowance
        assert transfer.peak >= 0.7 * allowance  # and made use of
        residence.offload()


def plan_floor(model: BaseModel) -> int:
    """Bytes on the device with all blocks streaming."""
    transfer = CountingTransfer()
    residence = Residence(model, transfer)
    residence.load(0)
    run(model)
    residence.offload()
    return transfer.peak


def test_the_next_block_is_fetched_while_one_computes(model):
    transfer = CountingTransfer()
    residence = Residence(model, transfer)
    residence.load(0)
    units = plan_stream(model, 0, transfer)
    ahead = []
    inner = units[3].module
    inner.register_forward_pre_hook(lambda *_: ahead.append(list(transfer.copies)))
    run(model, steps=1)
    assert ahead[0][-2:] == [inner, units[4].module]
    order = [unit.module for unit in units]
    assert transfer.copies == [*order, order[0]]  # each once, and the first for the next step
    copied = len(transfer.copies)
    run(model, steps=1)
    assert len(transfer.copies) == copied + len(order)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_is_interrupted_gives_its_weights_back(model, error):
    wanted, before = run(model), hosts(model)
    residence = Residence(model, CountingTransfer())
    residence.load(0)
    block = model.diffusion_model.middle_block[1].transformer_blocks[0]

    def fail(*_):
        raise error

    handle = block.ff.register_forward_pre_hook(fail)
    with pytest.raises(error):
        run(model)
    handle.remove()
    assert torch.equal(run(model), wanted)
    residence.offload()
    assert hosts(model) == before


def test_a_network_that_does_not_fit_is_whole_afterwards(model):
    wanted, before = run(model), hosts(model)
    transfer = CountingTransfer()
    residence = Residence(model, transfer)
    transfer.capacity = residence.size // 2
    with pytest.raises(torch.OutOfMemoryError):
        residence.load()
    assert transfer.used == 0
    assert hosts(model) == before
    assert torch.equal(run(model), wanted)
    transfer.capacity = 2**40
    residence.load()
    assert torch.equal(run(model), wanted)


def test_weights_without_copies_on_the_host_come_back_the_same(model):
    wanted = run(model)
    transfer = CountingTransfer()
    residence = Residence(model, transfer, keeps_host=False)
    residence.load()
    residence.offload()
    assert transfer.used == 0
    assert torch.equal(run(model), wanted)


# --- With patches ---------------------------------------------------------------------------------


def patched(model: BaseModel, transfer: CountingTransfer) -> tuple[ModelPatcher, ModelPatcher]:
    """The model's patcher, and a clone with a LoRA on every attention."""
    budget = MemoryBudget("normal", transfer.free, transfer=transfer, reserve=0)
    plain = ModelPatcher(model, "cuda", "cpu", budget=budget)
    clone = plain.clone()
    g = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith("to_k.weight"):
            up, down = (torch.randn(s, generator=g) for s in ((p.shape[0], 4), (4, p.shape[1])))
            clone.add_patches({name: ("lora", (up, down, 0.5))})
    return plain, clone


def test_a_lora_on_a_streamed_unet_gives_the_very_numbers(model):
    plain_numbers = run(model)
    reference = ModelPatcher(model)
    _, clone = patched(model, CountingTransfer())
    reference.patches = clone.patches
    reference.patch_model()
    wanted = run(model)
    reference.unpatch_model()
    assert not torch.equal(wanted, plain_numbers)
    before = hosts(model)

    for capacity in (2**40, reference.model_size() // 2):
        transfer = CountingTransfer(capacity)
        plain, clone = patched(model, transfer)
        clone.patch_model("cuda", WORK)
        assert clone.residence.is_streaming == (capacity < 2**40)
        assert torch.equal(run(model), wanted)
        plain.patch_model("cuda", WORK)
        assert torch.equal(run(model), plain_numbers)
        clone.patch_model("cuda", WORK)
        assert torch.equal(run(model), wanted)
        assert transfer.peak <= capacity
        clone.unpatch_model("cpu")
        assert hosts(model) == before
        assert transfer.used == 0


class PinningTransfer(CountingTransfer):
    """Pinned memory is counted, too: copies of what was on the host."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.locked = _Storages()

    def pin(self, tensor: Tensor) -> Tensor:
        if self.locked.holds(tensor):
            return tensor
        copy = tensor.clone(memory_format=torch.preserve_format)
        self.locked.add(copy)
        return copy

    def unpin(self, tensor: Tensor) -> Tensor:
        if not self.locked.holds(tensor):
            return tensor
        return tensor.clone(memory_format=torch.preserve_format)


@pytest.mark.parametrize("first", ["plain", "patched"])
def test_host_memory_is_locked_for_what_streams_alone(model, first):
    transfer = PinningTransfer(sum(p.nbytes for p in model.parameters()) // 2)
    wanted = run(model)
    plain, clone = patched(model, transfer)
    for patcher in (plain, clone, plain) if first == "plain" else (clone, plain, clone):
        patcher.patch_model("cuda", WORK)
        found = run(model)
        units = plain.residence._streamer.units
        streamed = sum(owner._parameters[leaf].nbytes for u in units for owner, leaf in u.weights)
        assert transfer.locked.total() == streamed
        assert torch.equal(found, wanted) == (patcher is plain)
    clone.unpatch_model("cpu")
    assert torch.equal(run(model), wanted)


def test_what_a_lora_replaced_waits_on_the_host(model):
    transfer = CountingTransfer()
    plain, clone = patched(model, transfer)
    plain.patch_model("cuda")
    whole = transfer.used
    clone.patch_model("cuda")
    assert transfer.used == whole
    clone.unpatch_model("cpu")


def test_a_lora_leaves_with_its_unet_and_returns(model):
    transfer = CountingTransfer()
    _, clone = patched(model, transfer)
    clone.patch_model("cuda")
    wanted = run(model)
    clone.residence.offload()
    assert transfer.used == 0
    clone.patch_model("cuda")
    assert torch.equal(run(model), wanted)
    clone.unpatch_model("cpu")


@pytest.mark.parametrize("last", [0, 3])
def test_a_return_that_fails_midway_loses_no_weight(model, monkeypatch, last):
    wanted = run(model)
    transfer = CountingTransfer()
    _, clone = patched(model, transfer)
    clone.patch_model("cuda")
    calls = []

    def fails(_):
        calls.append(1)
        if len(calls) > last:
            raise torch.OutOfMemoryError("no room for an original")
        return CountingTransfer.to_device(transfer, _)

    with monkeypatch.context() as short:
        short.setattr(transfer, "to_device", fails)
        with pytest.raises(torch.OutOfMemoryError):
            clone.unpatch_model()
    assert len(calls) == last + 1
    assert not clone.is_patched
    clone.unpatch_model("cpu")
    assert torch.equal(run(model), wanted)
    clone.patch_model("cuda")
    assert not torch.equal(run(model), wanted)
    clone.unpatch_model("cpu")
    assert torch.equal(run(model), wanted)


def test_patches_change_on_a_streamed_network_in_inference_mode(model):
    wanted = run(model)
    transfer = CountingTransfer(ModelPatcher(model).model_size() // 2)
    transfer.pin = torch.Tensor.clone
    _, clone = patched(model, transfer)
    with torch.inference_mode():
        clone.patch_model("cuda", WORK)
        assert clone.residence.is_streaming
        assert not torch.equal(run(model), wanted)
        clone.unpatch_model()
    assert torch.equal(run(model), wanted)
    assert not any(p.data.is_inference() for p in model.parameters())


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_what_an_object_brings_along_is_there_from_the_first_run(model, share):
    transfer = CountingTransfer(int(share * ModelPatcher(model).model_size()))
    plain, clone = patched(model, transfer)
    plain.patch_model("cuda", WORK)
    assert plain.residence.is_streaming == (share < 1)
    sampling = type(model.model_sampling)()
    clone.add_object_patch("model_sampling", sampling)
    clone.patch_model("cuda", WORK)
    assert model.model_sampling is sampling
    assert transfer.is_here(sampling.sigmas.data)
    clone.unpatch_model()
    assert not transfer.is_here(sampling.sigmas.data)
    clone.unpatch_model("cpu")
    assert transfer.used == 0


def test_an_object_that_is_set_aside_leaves_the_device(model):
    transfer = CountingTransfer()
    plain, clone = patched(model, transfer)
    plain.patch_model("cuda")
    original = model.model_sampling
    assert transfer.is_here(original.sigmas.data)
    clone.add_object_patch("model_sampling", type(original)())
    clone.patch_model("cuda")
    assert not transfer.is_here(original.sigmas.data)
    plain.patch_model("cuda")
    assert model.model_sampling is original
    assert transfer.is_here(original.sigmas.data)
    plain.unpatch_model("cpu")


def test_a_merge_that_runs_out_of_memory_leaves_the_plain_model_on_the_host(model, monkeypatch):
    wanted, before = run(model), hosts(model)
    transfer = CountingTransfer()
    _, clone = patched(model, transfer)
    own, made = clone._patched, []

    def full(weight, patches):
        if len(made) == 2:  # and what was made for it is still held by the error
            monkeypatch.setattr(transfer, "capacity", 0)
            raise torch.OutOfMemoryError("no room to merge")
        made.append(1)
        return own(weight, patches)

    monkeypatch.setattr(clone, "_patched", full)
    with pytest.raises(torch.OutOfMemoryError, match="merge"):
        clone.patch_model("cuda")
    assert transfer.used == 0
    assert hosts(model) == before
    assert torch.equal(run(model), wanted)


class Nest(torch.nn.Module):
    """Its own weight counts after those of what is in it."""

    def __init__(self, transfer: CountingTransfer) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((4096,), 2.0), requires_grad=False)
        self.inner = torch.nn.Linear(64, 64).requires_grad_(False)
        self._transfer, self.seen = transfer, []

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        self.seen.append(self._transfer.is_here(self.scale.data))
        return x * self.scale[:64]


@pytest.mark.parametrize("copies_ahead", [True, False])
def test_a_weight_beside_blocks_is_there_after_them(copies_ahead):
    transfer = CountingTransfer(copies_ahead=copies_ahead)
    nest = Nest(transfer)
    network = torch.nn.Sequential(nest, torch.nn.Linear(64, 64).requires_grad_(False))
    residence = Residence(network, transfer)
    residence.load(0)
    assert residence.is_streaming
    network(torch.zeros(1, 64))
    assert nest.seen == [True]
    assert len(transfer.copies) >= 2  # the two layers come and go
