"""Who is on the device, who leaves, who streams: decided by counted bytes."""

import gc

import pytest
import torch
from torch import nn

from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.residence import Residence
from tests.support.counting_transfer import CountingTransfer

MB = 2**20


class Block(nn.Linear):
    streams_as_one = True


def linear(megabytes: int) -> nn.Module:
    return nn.Linear(1024, 256 * megabytes, bias=False).requires_grad_(False)


def blocks(count: int) -> nn.Module:
    """A network of blocks of 4 MB each."""
    layers = [Block(1024, 1024, bias=False).requires_grad_(False) for _ in range(count)]
    return nn.Sequential(*layers)


class Machine:
    """A device of so many megabytes, with a text encoder of 10, a UNet of 40 and a VAE of 4."""

    def __init__(self, megabytes: int, mode: str = "normal") -> None:
        self.transfer = CountingTransfer(megabytes * MB)
        self.budget = MemoryBudget(mode, self.transfer.free, transfer=self.transfer, reserve=0)
        self.clip, self.unet, self.vae = (
            Residence(model, self.transfer, budget=self.budget)
            for model in (linear(10), blocks(10), linear(4))
        )

    def picture(self) -> None:
        self.clip.enter(1 * MB)
        self.unet.enter(6 * MB)
        self.vae.enter(8 * MB)

    def on_device(self) -> dict[str, int]:
        names = ("clip", "unet", "vae")
        return {name: getattr(self, name).device_bytes // MB for name in names}


def test_what_fits_stays():
    machine = Machine(80)
    machine.picture()
    sent = machine.transfer.sent_bytes
    machine.picture()
    assert machine.on_device() == {"clip": 10, "unet": 40, "vae": 4}
    assert machine.transfer.sent_bytes == sent == 54 * MB
    states = {line.state for line in machine.budget.account()}
    assert states == {"loaded"}


def test_the_text_encoder_leaves_before_sampling_when_it_is_tight():
    machine = Machine(54)
    machine.clip.enter(1 * MB)
    assert machine.on_device() == {"clip": 10, "unet": 0, "vae": 0}
    machine.unet.enter(6 * MB)
    assert machine.on_device() == {"clip": 0, "unet": 40, "vae": 0}
    assert not machine.unet.is_streaming
    machine.vae.enter(8 * MB)
    assert machine.on_device() == {"clip": 0, "unet": 40, "vae": 4}


def test_the_one_used_longest_ago_leaves_first():
    machine = Machine(100)
    other = Residence(linear(30), machine.transfer, budget=machine.budget)
    machine.picture()
    other.enter()
    machine.vae.enter()
    third = Residence(linear(20), machine.transfer, budget=machine.budget)
    third.enter()  # 84 + 20: the text encoder is the oldest, and enough
    assert machine.on_device() == {"clip": 0, "unet": 40, "vae": 4}
    third.enter(10 * MB)  # now the UNet is
    assert machine.on_device() == {"clip": 0, "unet": 0, "vae": 4}
    assert other.device_bytes == 30 * MB


def test_who_computes_is_not_sent_away():
    machine = Machine(54)
    machine.unet.enter()
    control = Residence(linear(20), machine.transfer, budget=machine.budget)
    with machine.unet.busy(), pytest.raises(torch.OutOfMemoryError):
        control.enter()
    assert machine.on_device()["unet"] == 40
    assert control.device_bytes == 0
    control.enter()
    assert machine.on_device()["unet"] == 0


def test_a_network_larger_than_the_device_streams_and_stays_within_it():
    machine = Machine(40)
    machine.picture()
    machine.unet.enter(6 * MB)
    assert machine.unet.is_streaming
    assert 20 * MB < machine.unet.device_bytes <= (40 - 6) * MB
    assert machine.transfer.peak <= 40 * MB
    held = machine.unet.device_bytes
    sent = machine.transfer.sent_bytes
    machine.unet.enter(6 * MB)  # again, with nothing changed: nothing is moved
    assert (machine.unet.device_bytes, machine.transfer.sent_bytes) == (held, sent)
    machine.transfer.capacity = 100 * MB
    machine.unet.enter(6 * MB)
    assert not machine.unet.is_streaming
    assert machine.on_device()["unet"] == 40


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("always", {"clip": 10, "unet": 40, "vae": 4}),
        ("high", {"clip": 10, "unet": 40, "vae": 4}),
        ("normal", {"clip": 10, "unet": 40, "vae": 4}),
        ("low", {"clip": 0, "unet": 0, "vae": 4}),
        ("no", {"clip": 0, "unet": 0, "vae": 4}),
    ],
)
def test_modes_on_a_large_device(mode, wanted):
    machine = Machine(200, mode)
    machine.picture()
    assert machine.on_device() == wanted
    machine.unet.enter()
    assert machine.unet.is_streaming == (mode == "no")
    if mode == "no":
        assert machine.on_device()["unet"] == 8  # this block and the next


def test_always_keeps_everything_and_runs_out():
    machine = Machine(52, "always")
    machine.clip.enter()
    machine.unet.enter()
    with pytest.raises(torch.OutOfMemoryError):
        machine.vae.enter()
    assert machine.on_device() == {"clip": 10, "unet": 40, "vae": 0}


@pytest.mark.parametrize("mode", ["high", "normal"])
def test_a_probe_that_promises_too_much_is_survived(mode):
    """Fragmented memory: what is free is not there in one piece."""
    for megabytes, on_device in ((45, 40), (35, 8)):
        machine = Machine(megabytes, mode)
        machine.clip.enter()
        machine.budget.free_bytes = lambda: 2**40
        machine.unet.enter()  # 10 + 40 do not fit: the text encoder goes
        assert machine.on_device() == {"clip": 0, "unet": on_device, "vae": 0}
        assert machine.unet.is_streaming == (on_device < 40)


def test_sparing_takes_as_little_as_it_can():
    machine = Machine(200)
    machine.picture()
    with machine.budget.sparing():
        machine.unet.enter(6 * MB)
        assert machine.on_device()["unet"] == 8
        assert machine.budget.working_bytes() == 0
    machine.unet.enter(6 * MB)
    assert machine.on_device()["unet"] == 40
    assert machine.budget.working_bytes() > 0


def test_the_account_forgets_who_is_gone():
    machine = Machine(200)
    machine.picture()
    assert [line.size // MB for line in machine.budget.account()] == [10, 40, 4]
    del machine.unet
    gc.collect()
    assert [line.size // MB for line in machine.budget.account()] == [10, 4]
    assert machine.transfer.used == 14 * MB


def test_high_vram_on_a_card_that_is_a_little_too_small_keeps_most_of_it_there():
    machine = Machine(38, "high")
    machine.unet.enter(2 * MB)
    assert machine.unet.is_streaming
    assert 20 * MB < machine.unet.device_bytes <= 38 * MB - 2 * MB


def test_what_comes_to_stay_is_left_free_once_and_work_space_twice():
    machine = Machine(40)
    machine.unet.enter(2 * MB, 8 * MB)
    assert machine.unet.is_streaming
    assert machine.on_device()["unet"] == 28  # of blocks of 4
    machine = Machine(50)
    machine.unet.enter(2 * MB, 8 * MB)
    assert not machine.unet.is_streaming
    machine.unet.enter(2 * MB, 9 * MB)
    assert machine.unet.is_streaming
