"""Image prompts in cross-attention: which layers, and how image tokens join the text's.

Two ways. "joint", the default: the image tokens' keys and values stand beside the text's in ONE
softmax; the keys are scaled by weight · C / 1280, and so is the mean of the values over the tokens,
while what differs from token to token stays (so a low weight fades the picture's overall tone
first). "decoupled" is the IP-Adapter paper's (Ye et al. 2023, arXiv:2308.06721): a second
attention over the image tokens alone, added with its weight.

What does not change between steps is made once: as long as a layer is handed the same text keys,
it is handed the same joined keys and values, and nothing is cast, moved or concatenated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_patched.ldm.modules import attention
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.errors import UnsupportedModel

Mode = Literal["joint", "decoupled"]
MODES: tuple[Mode, ...] = ("joint", "decoupled")
PENALTY_CHANNELS = 1280.0
JOINED_KEPT = 4  # per layer: cond and uncond apart, or another set of active prompts

SiteKey = tuple[str, int, int]
"""(name of the UNet's group, number of its block, transformer block in it)"""


class ImagePrompt(NamedTuple):
    """One picture that takes part. `patch_model` takes plain tuples of these, too."""

    conds: tuple[Sequence[Tensor], Sequence[Tensor]]
    """What `preprocess` gave: keys and values in turn for each layer, (1, tokens, C), of the
    picture and of no picture."""
    stop: float
    """Takes part while the UNet's `current_step` (0 at the first step, 1 at the last) is below."""
    weight: float
    """0 to about 1.5; see the module's docstring for what it scales."""
    region: Tensor | None = None
    """(H, W) in 0..1, at any resolution: where the picture counts; None is everywhere."""
    start: float = 0.0
    """Takes part once `current_step` has reached it."""
    mode: Mode | None = None
    """None is that of the whole."""


def sdp(
    q: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any], mask: Tensor | None = None
) -> Tensor:
    """Attention through the engine's one function: q (B, F, C), k and v (B, M, C) → (B, F, C).

    extra_options: "n_heads", the number of heads. mask: see `optimized_attention`.
    """
    return attention.optimized_attention(q, k, v, heads=extra_options["n_heads"], mask=mask)


# --- Sites ------------------------------------------------------------------------------------


def _expand(blocks: Sequence[tuple[str, int, int]]) -> tuple[SiteKey, ...]:
    return tuple((name, number, i) for name, number, depth in blocks for i in range(depth))


SDXL_SITES = _expand(
    [("input", n, 2) for n in (4, 5)]
    + [("input", n, 10) for n in (7, 8)]
    + [("output", n, 10) for n in (0, 1, 2)]
    + [("output", n, 2) for n in (3, 4, 5)]
    + [("middle", 0, 10)]
)
SD1_SITES = _expand(
    [("input", n, 1) for n in (1, 2, 4, 5, 7, 8)]
    + [("output", n, 1) for n in range(3, 12)]
    + [("middle", 0, 1)]
)


def own_sites(config: UNetConfig) -> tuple[SiteKey, ...]:
    """A UNet's cross-attention layers in the files' order: the way down, the way up, the middle."""
    order = {"input": 0, "output": 1, "middle": 2}
    return _expand(sorted(config.attention_blocks, key=lambda block: (order[block[0]], block[1])))


def site_width(config: UNetConfig, site: SiteKey) -> int:
    """Channels of the layer at `site`."""
    name, number, _ = site
    levels = {
        "input": config.level_of_input_block,
        "middle": (len(config.channel_mult) - 1,),
        "output": tuple(
            level
            for level in reversed(range(len(config.num_res_blocks)))
            for _ in range(config.num_res_blocks[level] + 1)
        ),
    }
    return config.model_channels * config.channel_mult[levels[name][number]]


def sites_for(network: Any, widths: Sequence[int]) -> tuple[SiteKey, ...]:
    """Where keys and values of these widths (one a layer) belong in a UNet.

    A network that does not tell its plan (`config`) is taken at its number of layers.
    Raises UnsupportedModel, with what was expected and found, if they do not fit.
    """
    config = getattr(network, "config", None)
    if not isinstance(config, UNetConfig):
        by_count = {len(SDXL_SITES): SDXL_SITES, len(SD1_SITES): SD1_SITES}
        if len(widths) not in by_count:
            raise UnsupportedModel(
                f"The IP-Adapter has {len(widths)} layers; SDXL needs {len(SDXL_SITES)} and "
                f"Stable Diffusion 1 {len(SD1_SITES)}. Choose the adapter made for this checkpoint."
            )
        return by_count[len(widths)]
    sites = own_sites(config)
    if len(sites) != len(widths):
        raise UnsupportedModel(
            f"The IP-Adapter has {len(widths)} layers, but this checkpoint's network needs "
            f"{len(sites)}: it was made for another family. Choose the adapter made for it."
        )
    for index, (site, found) in enumerate(zip(sites, widths, strict=True)):
        expected = site_width(config, site)
        if expected != found:
            raise UnsupportedModel(
                f"Layer {index} of the IP-Adapter is {found} wide, but this checkpoint's network "
                f"needs {expected}: it was made for another family. Choose the adapter made for it."
            )
    return sites


# --- Attention --------------------------------------------------------------------------------


def scaled(k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Image keys and values (B, T, C) at this weight for the joint softmax, in float32."""
    k, v = k.float(), v.float()
    strength = weight * k.shape[-1] / PENALTY_CHANNELS
    mean = v.mean(dim=1, keepdim=True)
    return k * strength, (v - mean) + mean * strength


def grid_of(tokens: int, latent_shape: Sequence[int] | None) -> tuple[int, int]:
    """(height, width) of a feature map of so many pixels, in a network given latents so large.

    Each level halves both sides, rounded up. Without a shape that fits it is taken as a square.
    """
    height, width = (0, 0) if latent_shape is None else latent_shape[-2:]
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    if height * width == tokens:
        return height, width
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} tokens are neither a square nor a part of {latent_shape}.")
    return side, side


def region_weights(region: Tensor, tokens: int, latent_shape: Sequence[int] | None) -> Tensor:
    """The painted mask (H, W) as one number for each pixel of a feature map, (tokens,) float32."""
    size = grid_of(tokens, latent_shape)
    area = F.interpolate(region.float()[None, None], size=size, mode="area")
    return area.flatten().clamp(0.0, 1.0)


@dataclass(slots=True)
class _Joined:
    """Keys and values that were put together for one text, one set of prompts, one batch.

    The text is not held, and what is joined goes with it: where every step makes its own keys and
    values (see ContextCache), gigabytes of them would stay.
    """

    key: tuple[Any, ...]
    text: tuple[ReferenceType[Tensor], int, ReferenceType[Tensor], int]
    joint: tuple[Tensor, Tensor] | None
    """None where the text's own are used."""
    apart: list[tuple[Tensor, Tensor]]

    def is_of(self, key: tuple[Any, ...], k: Tensor, v: Tensor) -> bool:
        old_k, k_version, old_v, v_version = self.text
        same = old_k() is k and old_v() is v
        return same and self.key == key and (k_version, v_version) == (_version(k), _version(v))


class _Known(list[_Joined]):
    """What a layer has joined; other than a list it can be referred to weakly."""


@dataclass(eq=False)
class ImagePromptAttention:
    """What replaces cross-attention in every layer while image prompts are in."""

    network: Any
    """Something with `current_step`."""
    prompts: Sequence[ImagePrompt]
    mode: Mode = "joint"
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def at(self, index: int) -> Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]:
        """The replacement for the layer with this number: f(q, k, v, extra_options) → output."""
        known = _Known()

        def patcher(
            n: Tensor, context_attn2: Tensor, value_attn2: Tensor, extra_options: Mapping[str, Any]
        ) -> Tensor:
            return self._attend(index, known, n, context_attn2, value_attn2, extra_options)

        return patcher

    def _attend(
        self,
        index: int,
        known: _Known,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_options: Mapping[str, Any],
    ) -> Tensor:
        step = float(self.network.current_step)
        active = [i for i, each in enumerate(self.prompts) if each.start <= step < each.stop]
        if not active:
            return sdp(q, k, v, extra_options).to(q.dtype)
        joint = tuple(i for i in active if self._is_joint(i))
        apart = tuple(i for i in active if i not in joint)
        halves = tuple(extra_options.get("cond_or_uncond") or (0,))
        (keys, values), *parts = self._joined(index, known, joint, apart, halves, k, v)
        mask = self._joint_mask(joint, q, k, keys, extra_options)
        out = sdp(q, keys, values, extra_options, mask)
        for i, (keys, values) in zip(apart, parts, strict=True):
            added = sdp(q, keys, values, extra_options) * self.prompts[i].weight
            if self.prompts[i].region is not None:
                added = added * self._region(i, q, extra_options).to(q.dtype)[:, None]
            out = out + added
        return out.to(q.dtype)

    def _is_joint(self, i: int) -> bool:
        return (self.prompts[i].mode or self.mode) == "joint"

    def _joined(
        self,
        index: int,
        known: _Known,
        joint: tuple[int, ...],
        apart: tuple[int, ...],
        halves: tuple[int, ...],
        k: Tensor,
        v: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values: the text's with those of `joint` beside them, then each of `apart`."""
        key = (joint, apart, halves)
        entry = next((entry for entry in known if entry.is_of(key, k, v)), None)
        if entry is None:
            entry = self._join(index, joint, apart, halves, k, v, known)
        return [entry.joint or (k, v), *entry.apart]

    def _join(
        self,
        index: int,
        joint: tuple[int, ...],
        apart: tuple[int, ...],
        halves: tuple[int, ...],
        k: Tensor,
        v: Tensor,
        known: _Known,
    ) -> _Joined:
        """An entry, which is put into `known` for as long as k lives."""
        together = None
        if joint:
            beside = [self._image_part(index, i, halves, k) for i in joint]
            together = (
                torch.cat([k, *(part[0] for part in beside)], dim=1),
                torch.cat([v, *(part[1] for part in beside)], dim=1),
            )
        parts = [self._image_part(index, i, halves, k) for i in apart]
        kept_in = ref(known)  # held, it would hold itself by way of its entries

        def forget(gone: ReferenceType[Tensor]) -> None:
            if (entries := kept_in()) is not None:
                entries[:] = [entry for entry in entries if entry.text[0] is not gone]

        text = ref(k, forget), _version(k), ref(v), _version(v)
        entry = _Joined((joint, apart, halves), text, together, parts)
        if not (k.requires_grad or v.requires_grad):
            known.append(entry)
            del known[:-JOINED_KEPT]
        return entry

    def _image_part(
        self, index: int, i: int, halves: tuple[int, ...], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prompt i's keys and values (B, T, C) for a batch of conditional and other halves."""
        prompt = self.prompts[i]
        pairs = [(kind[2 * index], kind[2 * index + 1]) for kind in prompt.conds]
        if self._is_joint(i):
            pairs = [scaled(k, v, prompt.weight) for k, v in pairs]
        each = like.shape[0] // len(halves)
        keys, values = (
            torch.cat([pairs[half][j].expand(each, -1, -1) for half in halves]).to(like)
            for j in (0, 1)
        )
        return keys, values

    def _joint_mask(
        self,
        active: tuple[int, ...],
        q: Tensor,
        k: Tensor,
        keys: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor | None:
        """Added to the scores: nothing for text, log(region · repeats of the text) for a prompt's
        image tokens. (N, M), with repeats (B, 1 or N, M); None is nothing anywhere."""
        prompts = [self.prompts[i] for i in active]
        has_region = any(prompt.region is not None for prompt in prompts)
        repeats = tuple(options.get("text_repeats") or ()) if prompts else ()
        is_repeated = any(count > 1 for count in repeats)
        if not has_region and not is_repeated:
            return None
        tokens, shape = q.shape[1] if has_region else 1, options.get("original_shape")
        batch, total = len(q), keys.shape[1]
        key = (active, tokens, tuple(shape or ())[-2:], k.shape[1], total, q.dtype, q.device)
        if is_repeated:
            key += (batch, repeats)
        if key not in self._masks:
            mask = torch.zeros(tokens, total)
            start = k.shape[1]
            for prompt in prompts:
                length = prompt.conds[0][0].shape[1]
                if prompt.region is not None:
                    here = region_weights(prompt.region.cpu(), tokens, shape)
                    mask[:, start : start + length] = here.log()[:, None]
                start += length
            if is_repeated:  # a text that stands there r times weighs r times as much
                weights = torch.tensor(repeats).repeat_interleave(batch // len(repeats))
                mask = mask.repeat(batch, 1, 1)
                mask[:, :, k.shape[1] :] += weights.log()[:, None, None]
            self._masks[key] = mask.to(q)
        return self._masks[key]

    def _region(self, i: int, q: Tensor, options: Mapping[str, Any]) -> Tensor:
        tokens, shape = q.shape[1], options.get("original_shape")
        key = (i, tokens, tuple(shape or ())[-2:], q.device)
        if key not in self._masks:
            here = region_weights(self.prompts[i].region.cpu(), tokens, shape)
            self._masks[key] = here.to(q.device)
        return self._masks[key]


def _version(tensor: Tensor) -> int:
    """Counts changes in place, where PyTorch counts them; the engine makes none in keys."""
    return -1 if tensor.is_inference() else tensor._version
