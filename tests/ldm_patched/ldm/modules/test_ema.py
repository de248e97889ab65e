"""The moving average against its recursion, written out."""

import pytest
import torch
from torch import nn

from ldm_patched.ldm.modules.ema import LitEma


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def make() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    fill(model, 0.0)
    return model


@pytest.mark.parametrize("warm", [True, False])
def test_average_and_warm_up(warm: bool) -> None:
    model = make()
    ema = LitEma(model, decay=0.5, use_num_updates=warm)
    wanted = 0.0
    for n, value in enumerate([1.0, 4.0, -2.0, 8.0, 3.0, 5.0, 7.0, 9.0, 1.0, 2.0, 6.0, 3.0], 1):
        fill(model, value)
        ema(model)
        decay = min(0.5, (1 + n) / (10 + n)) if warm else 0.5
        wanted = decay * wanted + (1 - decay) * value
    other = make()
    ema.copy_to(other)
    for p in other.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, wanted))
    assert int(ema.num_updates) == (12 if warm else -1)


def test_weights_are_stored_and_restored() -> None:
    model = make()
    ema = LitEma(model)
    fill(model, 3.0)
    ema.store(model.parameters())
    ema.copy_to(model)
    assert all(not p.any() for p in model.parameters())
    ema.restore(model.parameters())
    assert all(torch.all(p == 3.0) for p in model.parameters())
    assert ema.collected_params == []


def test_frozen_weights_are_left_out_and_the_state_is_saved() -> None:
    model = make()
    model[0].requires_grad_(False)
    ema = LitEma(model, decay=0.9)
    assert set(ema.state_dict()) == {"decay", "num_updates", "1weight", "1bias"}
    fill(model, 1.0)
    ema(model)
    again = LitEma(model, decay=0.1)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.state_dict()["1weight"], ema.state_dict()["1weight"])
    assert int(again.num_updates) == 1
    ema.reset_num_updates()
    assert int(ema.num_updates) == 0


def test_half_precision_is_averaged_in_full() -> None:
    model = make().to(torch.bfloat16)
    ema = LitEma(model, decay=0.9999, use_num_updates=False)
    fill(model, 1.0)
    for _ in range(10):
        ema(model)
    assert ema.state_dict()["0weight"][0, 0].item() == pytest.approx(1 - 0.9999**10, rel=1e-3)


def test_decay_has_a_range() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        LitEma(make(), decay=1.5)
