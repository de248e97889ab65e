"""Muon for the matrices inside a network, AdamW for the rest."""

import pytest
import torch
from torch import nn

from extras.training.optimizers import Optimizer

RATE = 1e-2


def network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {
        "inner": nn.Conv2d(32, 48, 3),
        "linear": nn.Linear(64, 40),
        "first": nn.Conv2d(4, 32, 3),
        "embedding": nn.Embedding(50, 64),
    }
    return nn.ModuleDict(parts).to(memory_format=memory_format)


def stepped(net: nn.Module, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(the change of each weight by one step, its gradient)."""
    named = dict(net.named_parameters())
    optimizer = Optimizer(named, kind=kind, learning_rate=RATE, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in named.items()}
    torch.manual_seed(1)
    for parameter in named.values():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
    grads = {name: p.grad.clone() for name, p in named.items()}
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in named.items()}, grads


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_step_of_a_matrix_points_where_its_orthogonal_factor_does(memory_format):
    changes, grads = stepped(network(memory_format), "muon")
    for name in ("inner.weight", "linear.weight"):
        left, _, right = torch.linalg.svd(grads[name].flatten(1).double(), full_matrices=False)
        wanted = -(left @ right)
        found = changes[name].flatten(1).double()
        likeness = torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
        assert likeness > 0.97
        size = RATE * 0.2 * max(found.shape) ** 0.5
        singular = torch.linalg.svdvals(found) / size
        assert 0.5 < singular.min() < singular.max() < 1.4


def test_a_step_is_the_same_however_the_weights_lie_in_memory():
    one, _ = stepped(network(), "muon")
    other, _ = stepped(network(torch.channels_last), "muon")
    for name, change in one.items():
        # Products of bfloat16 numbers are added in another order.
        torch.testing.assert_close(change, other[name], rtol=0.05, atol=RATE * 0.05)


def test_all_else_is_left_to_adamw():
    muon, _ = stepped(network(), "muon")
    adamw, _ = stepped(network(), "adamw")
    same = {name for name in muon if torch.equal(muon[name], adamw[name])}
    assert same == set(muon) - {"inner.weight", "linear.weight"}


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="adamw, muon"):
        Optimizer({}, kind="sgd", learning_rate=RATE, weight_decay=0.0)
