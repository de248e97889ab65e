"""Checkpointed gradients against plain ones."""

import pytest
import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.util import CheckpointFunction, checkpoint


class Block(nn.Module):
    """Two outputs from a tensor, perhaps another, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.runs = 0

    def forward(self, x: Tensor, times: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        self.runs += 1
        h = torch.tanh(self.a(x)) * scale
        h = h if times is None else h * times
        return self.b(h), h.sum(dim=1)


def gradients(block: Block, x: Tensor, times: Tensor | None, flag: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    block.zero_grad()
    y, z = checkpoint(block, (x, times, 1.5), block.parameters(), flag)
    (y.square().sum() + 3 * z.sum()).backward()
    return [x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


@pytest.mark.parametrize("times", [None, torch.tensor([[2], [3]])])
def test_gradients_equal_the_plain_ones(times: Tensor | None) -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 4)
    plain = gradients(block, x, times, flag=False)
    assert block.runs == 1
    saved = gradients(block, x, times, flag=True)
    assert block.runs == 3  # once forward, once on the way back
    assert len(plain) == len(saved) == 5
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_parameters_get_no_gradient() -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 4)
    block.a.requires_grad_(False)
    plain = gradients(block, x, None, flag=False)
    saved = gradients(block, x, None, flag=True)
    assert block.a.weight.grad is None
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b)


def test_the_recomputation_runs_under_the_autocast_of_the_forward() -> None:
    seen = []
    layer = nn.Linear(4, 4)

    def run(x: Tensor) -> Tensor:
        seen.append(layer(x).dtype)
        return layer(x).float()

    x = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = CheckpointFunction.apply(run, 1, x, *layer.parameters())
    y.sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert x.grad is not None
