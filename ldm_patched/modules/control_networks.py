"""The kinds of controls: ControlNet, control-LoRA and T2I-Adapter."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.controlnet import cldm
from ldm_patched.ldm.modules.diffusionmodules.context_cache import (
    ContextCache,
    bytes_per_token,
)
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import ops, utils
from ldm_patched.modules.control_base import Additions, ControlBase, as_index
from ldm_patched.modules.control_detection import family_of
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.model_base import set_weight
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.t2ia.adapter import Adapter


def softened(index: int, count: int, softness: float) -> float:
    """The factor of the addition `index` of `count`, the first the one nearest to the full size."""
    return 1.0 if count < 2 else 1.0 - softness * (1.0 - index / (count - 1))


def require_same_plan(name: str, made_for: UNetConfig, network: UNetConfig) -> None:
    """Raises UnsupportedModel unless additions for `made_for` fit `network`."""
    reads_text = made_for.context_dim is not None  # one without attention goes with any text

    def plan(c: UNetConfig) -> tuple[Any, ...]:
        text = c.context_dim if reads_text else None
        return c.model_channels, c.channel_mult, c.num_res_blocks, text, c.num_classes

    if plan(made_for) == plan(network) and made_for.adm_in_channels == network.adm_in_channels:
        return
    theirs, ours = family_of(made_for), family_of(network)
    if theirs == ours:
        theirs, ours = "a network of other widths", "the chosen checkpoint"
    raise UnsupportedModel(
        f"{name} is made for {theirs}, which the chosen checkpoint is not; choose a control made "
        f"for {ours}."
    )


class NetworkControl(ControlBase):
    """A control with a network of its own, which is on the device for as long as a run lasts."""

    patcher: ModelPatcher

    @property
    def holder(self) -> object:
        return self.patcher

    def bytes_to_come(self, network: Any, texts: Sequence[Tensor], batch: int) -> int:  # noqa: ARG002
        return self.patcher.model_size() - self.patcher.residence.device_bytes

    def _is_sound(self) -> bool:
        return utils.is_sound(self.patcher.model)

    def pre_run(self, model: Any) -> None:
        super().pre_run(model)
        if self.strength:
            self.patcher.patch_model(self.patcher.load_device)
            self.patcher.residence.is_busy = True  # the next control must not send it away

    def cleanup(self) -> None:
        super().cleanup()
        self.patcher.residence.is_busy = False
        if self.patcher.residence.budget is None:  # else that one sends it away when need be
            self.patcher.unpatch_model(self.patcher.offload_device)


class ControlNet(NetworkControl):
    """A ControlNet in full."""

    def __init__(self, name: str, patcher: ModelPatcher, dtype: torch.dtype) -> None:
        """patcher: of a cldm.ControlNet; dtype: of its weights, in which it computes."""
        super().__init__(name, patcher.load_device)
        self.patcher, self.network_dtype = patcher, dtype

    def _forget_run(self) -> None:
        super()._forget_run()
        self._guided: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def network(self) -> cldm.ControlNet:
        """The network that is run."""
        return self.patcher.model

    def check_fits(self, model: Any) -> None:
        require_same_plan(self.name, self.network.config, model.diffusion_model.config)

    def bytes_to_come(self, network: Any, texts: Sequence[Tensor], batch: int) -> int:
        kept = self.network.text_bytes(texts, batch, self.network_dtype)
        return super().bytes_to_come(network, texts, batch) + kept

    def _guide(self, x: Tensor) -> Tensor:
        """What the network makes of the picture, (1 or B, channels, H, W): once a run and size."""
        size = tuple(x.shape[-2:])
        if self._guided is None or self._guided[0] != size:
            hint = self._hint_for(size[1] * 8, size[0] * 8).to(x.device, self.network_dtype)
            self._guided = size, self.network.embed_hint(hint)
        return self._guided[1]

    def _additions(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Any], rows: tuple[int, ...]
    ) -> Additions:
        total, dtype = x.shape[0], self.network_dtype
        options = cond.get("transformer_options") or {}
        batched = len(options.get("cond_or_uncond") or (0,))
        if len(rows) < total:
            x, t = x[as_index(rows)], t[as_index(rows)]
        sampling = self._model.model_sampling
        y = cond.get("y")
        outputs = self.network(
            sampling.calculate_input(t, x).to(dtype),
            self._hint_rows(self._guide(x), rows, batched, total),
            sampling.timestep(t).float(),
            self._pick("context", cond["c_crossattn"], rows).to(dtype),
            None if y is None else self._pick("y", y, rows).to(dtype),
            options.get("interrupt"),
        )
        count = len(outputs)
        scaled: list[Tensor | None] = [
            (output * (self.strength * softened(i, count, self.softness))).to(self._dtype)
            for i, output in enumerate(outputs)
        ]
        return {"output": scaled[:-1], "middle": scaled[-1:]}


# --- control-LoRA -----------------------------------------------------------------------------


class ControlLoraOps(ops.manual_cast):
    """Layers with another network's weights and a low-rank difference of their own."""

    class Linear(ops.manual_cast.Linear):
        up: Tensor | None = None
        down: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.up is None or self.down is None:
                return out
            return out + F.linear(F.linear(x, self.down), self.up)

    class Conv2d(ops.manual_cast.Conv2d):
        up: Tensor | None = None
        down: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.up is None or self.down is None:
                return out
            # Every convolution of the encoder pads by half its kernel and has no dilation.
            inner = F.conv2d(x, self.down, stride=self.stride, padding=self.padding)
            return out + F.conv2d(inner, self.up)


class ControlLora(ControlNet):
    """A ControlNet stored as what it adds to the encoder of the UNet it is used with.

    For a run it borrows the UNet's own weights, so that it takes little more memory than its file.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """weights: the file's tensors by name. dtype: in which it computes."""
        ControlBase.__init__(self, name, device)
        self.network_dtype = dtype
        self._weights = {k: w for k, w in weights.items() if k != "lora_controlnet"}

    def _forget_run(self) -> None:
        super()._forget_run()
        self._network: cldm.ControlNet | None = None

    @property
    def network(self) -> cldm.ControlNet:
        if self._network is None:
            raise ValueError("A control-LoRA has a network during a run only; call pre_run.")
        return self._network

    def check_fits(self, model: Any) -> None:
        self._places(model.diffusion_model.config)

    def _is_sound(self) -> bool:
        return all(bool(weight.float().isfinite().all()) for weight in self._weights.values())

    @property
    def holder(self) -> object:
        return self  # each copy makes a network of its own

    def bytes_to_come(self, network: Any, texts: Sequence[Tensor], batch: int) -> int:
        own = sum(weight.numel() for weight in self._weights.values()) * self.network_dtype.itemsize
        encoder = nn.ModuleList([network.input_blocks, network.middle_block])  # as it will have
        tokens = ContextCache().tokens_to_come(texts, batch)
        return own + tokens * bytes_per_token(encoder, self.network_dtype)

    def pre_run(self, model: Any) -> None:
        ControlBase.pre_run(self, model)
        if self.strength:
            self._network = self._build(model.diffusion_model)

    def cleanup(self) -> None:
        ControlBase.cleanup(self)

    def _bare(self, config: UNetConfig) -> cldm.ControlNet:
        hint_channels = self._weights["input_hint_block.0.weight"].shape[1]
        return cldm.ControlNet(config, hint_channels, device="meta", operations=ControlLoraOps)

    def _places(self, config: UNetConfig) -> cldm.ControlNet:
        """An empty network for these weights. Raises UnsupportedModel if they do not fit it."""
        bare = self._bare(config)
        places = {name: p.shape for name, p in bare.named_parameters()}
        ranks = self._ranks()
        for name, weight in self._weights.items():
            root, _, leaf = name.rpartition(".")
            shape = places.get(f"{root}.weight" if leaf in ("up", "down") else name)
            if shape is None or not _fits(leaf, weight.shape, shape) or len(ranks[root]) > 1:
                raise UnsupportedModel(
                    f"{self.name} is a control-LoRA for another model: its {name} has no place in "
                    f"the chosen checkpoint. Choose a control made for {family_of(config)}."
                )
        return bare

    def _ranks(self) -> dict[str, set[int]]:
        """By layer the ranks of its difference: of one that fits together there is one."""
        found: dict[str, set[int]] = {}
        for name, weight in self._weights.items():
            root, _, leaf = name.rpartition(".")
            ranks = found.setdefault(root, set())
            if leaf in ("up", "down"):
                ranks.add(weight.flatten(1).shape[1] if leaf == "up" else weight.shape[0])
        return found

    def _build(self, unet: nn.Module) -> cldm.ControlNet:
        network = self._places(unet.config)
        theirs = dict(unet.named_parameters())
        for name, _ in list(network.named_parameters()):
            own = self._weights.get(name)
            if own is not None:
                set_weight(network, name, own.to(self.device, self.network_dtype))
            elif name in theirs:
                set_weight(network, name, theirs[name])
            else:
                raise UnsupportedModel(
                    f"{self.name} is incomplete: {name} is missing. Download it again."
                )
        for name, weight in self._weights.items():
            root, _, leaf = name.rpartition(".")
            if leaf in ("up", "down"):
                layer = network.get_submodule(root)
                shape = _low_rank_shape(leaf, weight, layer.weight.shape)
                setattr(layer, leaf, weight.to(self.device, self.network_dtype).reshape(shape))
        return network.eval()


def _low_rank_shape(leaf: str, weight: Tensor, place: torch.Size) -> tuple[int, ...]:
    """The shape in which a layer with a weight of shape `place` takes its "up" or "down"."""
    if len(place) == 2:
        return (place[0], -1) if leaf == "up" else (-1, place[1])
    return (place[0], weight.numel() // place[0], 1, 1) if leaf == "up" else (-1, *place[1:])


def _fits(leaf: str, found: torch.Size, place: torch.Size) -> bool:
    if leaf == "up":
        return found[:1] == place[:1]
    if leaf == "down":
        return len(found) > 1 and found[1:].numel() == place[1:].numel()
    return found == place


# --- T2I-Adapter ------------------------------------------------------------------------------


class T2IAdapter(NetworkControl):
    """A T2I-Adapter: its maps are made once a run, and added on the UNet's way down."""

    def __init__(self, name: str, patcher: ModelPatcher, dtype: torch.dtype) -> None:
        """patcher: of a t2ia Adapter; dtype: of its weights, in which it computes."""
        super().__init__(name, patcher.load_device)
        self.patcher, self.network_dtype = patcher, dtype

    def _forget_run(self) -> None:
        super()._forget_run()
        self._maps: tuple[tuple[int, ...], list[Tensor]] | None = None

    @property
    def network(self) -> Adapter:
        """The network that is run."""
        return self.patcher.model

    def check_fits(self, model: Any) -> None:
        config: UNetConfig = model.diffusion_model.config
        own, levels = self.network.config, len(config.channel_mult)
        widths = tuple(config.model_channels * m for m in config.channel_mult)
        wanted = (*widths, widths[-1]) if own.is_xl else widths
        if own.channels == wanted and own.is_xl == (levels == 3):
            return
        raise UnsupportedModel(
            f"{self.name} is a T2I-Adapter for {'SDXL' if own.is_xl else 'Stable Diffusion 1'}, "
            f"which the chosen checkpoint is not; choose one made for {family_of(config)}."
        )

    def _features(self, x: Tensor) -> list[Tensor]:
        size, own = tuple(x.shape[-2:]), self.network.config
        if self._maps is None or self._maps[0] != size:
            hint = self._hint_for(size[1] * 8, size[0] * 8, own.unshuffle)
            if hint.shape[1] != own.in_channels:
                hint = hint.mean(1, keepdim=True).expand(-1, own.in_channels, -1, -1)
            self._maps = size, self.network(hint.to(x.device, self.network_dtype))
        return self._maps[1]

    def _additions(
        self,
        x: Tensor,
        t: Tensor,  # noqa: ARG002 - the maps are those of all steps
        cond: Mapping[str, Any],
        rows: tuple[int, ...],
    ) -> Additions:
        config: UNetConfig = self._model.diffusion_model.config
        options = cond.get("transformer_options") or {}
        batched = len(options.get("cond_or_uncond") or (0,))
        features = self._features(x)
        inputs: list[Tensor | None] = [None] * len(config.level_of_input_block)
        additions: Additions = {}
        for feature, block in zip(features, self._blocks(config), strict=True):
            made = self._hint_rows(feature, rows, batched, x.shape[0])
            if made.shape[0] != len(rows):  # one picture for all
                made = made.expand(len(rows), -1, -1, -1)
            made = (made * self.strength).to(self._dtype)
            if block is None:
                additions["middle"] = [made]
            else:
                inputs[block] = made
        additions["input"] = inputs[::-1]
        return additions

    def _blocks(self, config: UNetConfig) -> list[int | None]:
        """The input block after which each map is added; None for the middle."""
        last = [0] * len(config.num_res_blocks)
        number = 0
        for level, count in enumerate(config.num_res_blocks):
            last[level] = number + count
            number += count + 1
        if not self.network.config.is_xl:
            return list(last)
        # SDXL's first map is half the size: it comes after the block that halves.
        return [last[0] + 1, *last[1:], None]
