"""Low-rank additions to a frozen network's layers, for training (LoRA, arXiv:2106.09685)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


class LowRank(nn.Module):
    """What is added to a layer's output: up(down(x)), nothing at first."""

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            shape = {"stride": layer.stride, "padding": layer.padding, "bias": False}
            self.down: Layer = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **shape)
            self.up: Layer = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class LowRankSet(nn.Module):
    """Additions to some layers of a network, in force while this object lives and is not `off`.

    alpha is the rank, so that nothing is scaled.
    """

    def __init__(self, network: nn.Module, chosen: Callable[[str], bool], rank: int) -> None:
        """chosen: whether the layer of this name is added to, if it is linear or a convolution."""
        super().__init__()
        self.rank, self.enabled = rank, True
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, Layer) and chosen(name)
        }
        self.pairs = nn.ModuleDict(
            {name.replace(".", "/"): LowRank(layer, rank) for name, layer in layers.items()}
        )
        for name, pair in self.by_name():
            layers[name].register_forward_hook(self._adds(pair))

    def by_name(self) -> Iterator[tuple[str, LowRank]]:
        """Names of layers in the network, and what is added to each."""
        for flat, pair in self.pairs.items():
            yield flat.replace("/", "."), pair

    def _adds(self, pair: LowRank) -> Callable[..., Tensor | None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return output + pair(inputs[0]) if self.enabled else None

        return hook

    @contextmanager
    def off(self) -> Iterator[None]:
        """The network as it is without the additions."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True


def kohya_file(added: LowRankSet, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """The additions under the names and in the form of kohya's trainer."""
    weights: dict[str, Tensor] = {}
    for name, pair in added.by_name():
        root = prefix + name.replace(".", "_")
        weights[f"{root}.lora_down.weight"] = pair.down.weight
        weights[f"{root}.lora_up.weight"] = pair.up.weight
        weights[f"{root}.alpha"] = torch.tensor(float(added.rank))
    return weights


def in_transformers(name: str) -> bool:
    """Whether a layer of a UNet is in a transformer block: attention and feed-forward."""
    return ".transformer_blocks." in name
