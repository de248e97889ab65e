"""Attention and the transformer blocks of the diffusion networks.

`optimized_attention` is the one attention of the whole program, in the way that
attention_kernels.py has in force. Under inference the blocks add in place to tensors that they
made themselves, never to an argument.

What may be hooked, through `transformer_options`:

* "patches": {"attn1_patch" | "attn2_patch": [f(n, context, value, extra_options) → the three],
  "attn1_output_patch" | "attn2_output_patch": [f(n, extra_options) → n]};
* "patches_replace": {"attn1" | "attn2": {(name, number[, block_index]):
  f(q, k, v, extra_options) → attention output before the output projection}}.

Without any of these a block takes a shorter way.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.attention_kernels import attend
from ldm_patched.ldm.modules.diffusionmodules.checkpointing import checkpoint
from ldm_patched.ldm.modules.diffusionmodules.util import zero_module
from ldm_patched.modules import ops

KVStore = dict["CrossAttention", tuple[Any, ...]]
"""Keys and values of one text for each cross-attention layer; see `CrossAttention.keys_values`."""


def optimized_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention: q (B, N, C), k and v (B, M, C) → (B, N, C).

    heads: C is split into so many. mask: bool (true is seen) or float (added), (N, M),
    (B, N, M) or (B, heads, N, M).
    """
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
        mask = mask.unsqueeze(1) if mask.ndim == 3 else mask
    q, k, v = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
    return join_heads(attend(q, k, v, mask))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) → (B, heads, N, C / heads), a view."""
    batch, tokens, channels = x.shape
    return x.view(batch, tokens, heads, channels // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, width) → (B, N, heads · width)."""
    return x.transpose(1, 2).flatten(2)


def weight_stamp(weight: Tensor) -> tuple[Tensor, int]:
    """The weight and the number of its changes in place, -1 where PyTorch does not count them."""
    return weight, -1 if weight.is_inference() else weight._version


def same_weight(old: tuple[Tensor, int], new: tuple[Tensor, int]) -> bool:
    """Whether two stamps are surely of one unchanged weight."""
    return old[0] is new[0] and old[1] == new[1] != -1


class GEGLU(nn.Module):
    """A linear layer whose one half is gated by the GELU of the other (arXiv:2002.05202)."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        self.proj = operations.Linear(dim_in, dim_out * 2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim_in) → (…, dim_out)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return x * F.gelu(gate)
        return F.gelu(gate).mul_(x)


class FeedForward(nn.Module):
    """GEGLU four times as wide, and back."""

    def __init__(
        self,
        dim: int,
        *,
        mult: int = 4,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        placed = {"dtype": dtype, "device": device}
        self.net = nn.Sequential(
            GEGLU(dim, dim * mult, operations=operations, **placed),
            nn.Identity(),  # the family's files number a dropout here
            operations.Linear(dim * mult, dim, **placed),
        )

    def forward(self, x: Tensor) -> Tensor:
        gated, _, out = self.net
        return out(gated(x))


class CrossAttention(nn.Module):
    """Attention of a sequence over a context, or over itself without one."""

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        super().__init__()
        inner = dim_head * heads
        context_dim = query_dim if context_dim is None else context_dim
        placed = {"dtype": dtype, "device": device}
        self.heads = heads
        self.dim_head = dim_head
        self.to_q = operations.Linear(query_dim, inner, bias=False, **placed)
        self.to_k = operations.Linear(context_dim, inner, bias=False, **placed)
        self.to_v = operations.Linear(context_dim, inner, bias=False, **placed)
        self.to_out = nn.Sequential(operations.Linear(inner, query_dim, **placed))

    def keys_values(
        self, context: Tensor, value: Tensor | None, kv: KVStore | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, (B, M, C) each.

        kv: a store that belongs to this very context; what is in it is used as long as both
        weights are unchanged.
        """
        if kv is None or value is not None:
            return self.to_k(context), self.to_v(context if value is None else value)
        stamps = weight_stamp(self.to_k.weight), weight_stamp(self.to_v.weight)
        known = kv.get(self)
        if known is not None and all(map(same_weight, known[0], stamps)):
            return known[1]
        made = self.to_k(context), self.to_v(context)
        kv[self] = stamps, made
        return made

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        kv: KVStore | None = None,
    ) -> Tensor:
        """x (B, N, query_dim) over context (B, M, context_dim) → (B, N, query_dim)."""
        q = self.to_q(x)
        k, v = self.keys_values(x if context is None else context, value, kv)
        (out,) = self.to_out
        return out(optimized_attention(q, k, v, self.heads, mask))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normed first and added."""

    streams_as_one = True

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        context_dim: int | None = None,
        *,
        use_checkpoint: bool = False,
        disable_self_attn: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """disable_self_attn: both attentions read the context."""
        super().__init__()
        placed: dict[str, Any] = {"dtype": dtype, "device": device, "operations": operations}
        self.disable_self_attn = disable_self_attn
        attention = {"heads": n_heads, "dim_head": d_head, **placed}
        self.attn1 = CrossAttention(dim, context_dim if disable_self_attn else None, **attention)
        self.ff = FeedForward(dim, **placed)
        self.attn2 = CrossAttention(dim, context_dim, **attention)
        self.norm1 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.norm2 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.norm3 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.use_checkpoint = use_checkpoint
        self.n_heads = n_heads
        self.d_head = d_head

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        kv: KVStore | None = None,
    ) -> Tensor:
        """x (B, N, dim), context (B, M, context_dim) → (B, N, dim)."""
        if transformer_options:
            run, inputs = self._forward_patched, (x, context, transformer_options, kv)
        else:
            run, inputs = self._forward, (x, context, kv)
        if torch.is_grad_enabled():
            return checkpoint(run, inputs, self.parameters(), self.use_checkpoint)
        return run(*inputs)

    def _forward(self, x: Tensor, context: Tensor | None, kv: KVStore | None) -> Tensor:
        first = context if self.disable_self_attn else None
        if torch.is_grad_enabled():
            x = x + self.attn1(self.norm1(x), first)
            x = x + self.attn2(self.norm2(x), context)
            return x + self.ff(self.norm3(x))
        # Each right side is a tensor that was made here, so the sum may take its place.
        x = self.attn1(self.norm1(x), first).add_(x)
        x = self.attn2(self.norm2(x), context, kv=kv).add_(x)
        return self.ff(self.norm3(x)).add_(x)

    def _forward_patched(
        self,
        x: Tensor,
        context: Tensor | None,
        options: Mapping[str, Any],
        kv: KVStore | None,
    ) -> Tensor:
        extra = {k: v for k, v in options.items() if k not in ("patches", "patches_replace")}
        extra["n_heads"] = self.n_heads
        extra["dim_head"] = self.d_head
        kv = None if torch.is_grad_enabled() else kv
        first = context if self.disable_self_attn else None
        x = x + self._attend("attn1", self.attn1, self.norm1(x), first, options, extra, None)
        x = x + self._attend("attn2", self.attn2, self.norm2(x), context, options, extra, kv)
        return x + self.ff(self.norm3(x))

    @staticmethod
    def _attend(
        name: str,
        attention: CrossAttention,
        n: Tensor,
        context: Tensor | None,
        options: Mapping[str, Any],
        extra: dict[str, Any],
        kv: KVStore | None,
    ) -> Tensor:
        """One attention with the patches that `options` name for it."""
        patches = options.get("patches", {})
        given = context
        context = n if context is None else context
        value = None
        for patch in patches.get(f"{name}_patch", ()):
            n, context, value = patch(n, context, context if value is None else value, extra)
        kv = kv if context is given and value is None else None
        replace = _replacement(options.get("patches_replace", {}).get(name), extra)
        if replace is None:
            n = attention(n, context, value, kv=kv)
        else:
            keys, values = attention.keys_values(context, value, kv)
            (out,) = attention.to_out
            n = out(replace(attention.to_q(n), keys, values, extra))
        for patch in patches.get(f"{name}_output_patch", ()):
            n = patch(n, extra)
        return n


def _replacement(
    table: Mapping[tuple[Any, ...], Callable[..., Tensor]] | None, extra: Mapping[str, Any]
) -> Callable[..., Tensor] | None:
    """The replacement for this very transformer block, else for its whole UNet block."""
    block = extra.get("block")
    if not table or block is None:
        return None
    return table.get((*block, extra.get("block_index")), table.get(tuple(block)))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to it."""

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        *,
        use_linear: bool = True,
        use_checkpoint: bool = False,
        disable_self_attn: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = ops.disable_weight_init,
    ) -> None:
        """use_linear: SDXL and SD 2 project with linear layers, SD 1 with 1×1 convolutions."""
        super().__init__()
        inner = n_heads * d_head
        placed = {"dtype": dtype, "device": device}
        self.use_linear = use_linear
        self.norm = operations.GroupNorm(32, in_channels, eps=1e-6, **placed)
        if use_linear:
            self.proj_in = operations.Linear(in_channels, inner, **placed)
            proj_out = operations.Linear(inner, in_channels, **placed)
        else:
            self.proj_in = operations.Conv2d(in_channels, inner, 1, **placed)
            proj_out = operations.Conv2d(inner, in_channels, 1, **placed)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                n_heads,
                d_head,
                context_dim,
                use_checkpoint=use_checkpoint,
                disable_self_attn=disable_self_attn,
                operations=operations,
                **placed,
            )
            for _ in range(depth)
        )
        self.proj_out = zero_module(proj_out)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        kv: KVStore | None = None,
    ) -> Tensor:
        """x (B, C, H, W) → the same shape. context: (B, M, context_dim)."""
        batch, _, height, width = x.shape
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        # A view where the memory is channels-last.
        h = h.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        if self.use_linear:
            h = self.proj_in(h)
        for index, block in enumerate(self.transformer_blocks):
            options = transformer_options
            if options:
                options = {**options, "block_index": index}
            h = block(h, context, options, kv)
        if self.use_linear:
            h = self.proj_out(h)
        h = h.view(batch, height, width, -1).permute(0, 3, 1, 2)
        if not self.use_linear:
            h = self.proj_out(h)
        return h + x if torch.is_grad_enabled() else h.add_(x)
