"""How conditions are repeated, cropped and joined."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_patched.ldm.modules.attention import optimized_attention
from ldm_patched.modules.conds import (
    CONDConstant,
    CONDCrossAttn,
    CONDNoiseShape,
    CONDRegular,
    CONDTimed,
    repeat_to_batch_size,
)


def test_samples_are_repeated_in_turn_or_cut() -> None:
    x = torch.arange(3.0)[:, None]
    assert repeat_to_batch_size(x, 7).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert repeat_to_batch_size(x, 2).flatten().tolist() == [0, 1]
    assert repeat_to_batch_size(x[:1] + 5, 3).flatten().tolist() == [5, 5, 5]
    assert repeat_to_batch_size(x, 3) is x


def test_regular_conditions() -> None:
    one = CONDRegular(torch.ones(1, 4)).process_cond(batch_size=2, device="cpu", area=None)
    assert isinstance(one, CONDRegular)
    assert one.cond.shape == (2, 4)
    two = CONDRegular(torch.zeros(2, 4))
    assert one.can_concat(two)
    assert not one.can_concat(CONDRegular(torch.zeros(2, 5)))
    assert one.concat([two]).mean(dim=1).tolist() == [1, 1, 0, 0]


def test_conditions_of_the_picture_are_cropped() -> None:
    picture = torch.arange(48.0).reshape(1, 1, 6, 8)
    found = CONDNoiseShape(picture).process_cond(1, "cpu", area=(2, 3, 1, 4))
    assert torch.equal(found.cond, picture[:, :, 1:3, 4:7])
    assert CONDNoiseShape(picture).process_cond(2, "cpu").cond.shape == (2, 1, 6, 8)


def test_texts_of_unequal_length_are_joined_without_changing_attention() -> None:
    short, long = torch.randn(1, 77, 8), torch.randn(1, 154, 8)
    assert CONDCrossAttn(short).can_concat(CONDCrossAttn(long))
    joined = CONDCrossAttn(short).concat([CONDCrossAttn(long)])
    assert joined.shape == (2, 154, 8)
    q = torch.randn(2, 5, 8)
    found = optimized_attention(q, joined, joined, 2)
    for i, text in enumerate((short, long)):
        wanted = optimized_attention(q[i : i + 1], text, text, 2)
        torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 77, 8), True), ((1, 308, 8), True), ((1, 385, 8), False), ((1, 77, 9), False)],
)
def test_which_texts_may_be_joined(shape: tuple[int, ...], fits: bool) -> None:
    text = CONDCrossAttn(torch.zeros(1, 77, 8))
    assert text.can_concat(CONDCrossAttn(torch.zeros(shape))) == fits


def test_constants() -> None:
    a = CONDConstant(3)
    assert a.process_cond(batch_size=5, device="cpu").cond == 3
    assert a.can_concat(CONDConstant(3))
    assert not a.can_concat(CONDConstant(4))
    assert a.concat([CONDConstant(3)]) == 3


class Copies(TorchDispatchMode):
    """Counts copies between devices or precisions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "copy" in func.__name__
        return func(*args, **(kwargs or {}))


def test_timed_conditions_are_joined_without_a_copy_from_the_host() -> None:
    """Such a copy would wait for the device at each step."""
    first = CONDTimed(torch.zeros(1, 8, device="meta"), 0.3)
    with Copies() as copies:
        joined = first.concat([CONDTimed(torch.zeros(2, 8, device="meta"), 0.7)])
        joined.at(torch.zeros(3, device="meta"))
    assert copies.count == 0
    early = CONDTimed(torch.tensor([[1.0, 2.0]]), 0.3)
    late = CONDTimed(torch.tensor([[3.0, 4.0]]), 0.7)
    assert early.concat([late]).at(torch.tensor([0.5, 0.5])).tolist() == [[2.0], [3.0]]
