"""The perceiver resampler of IP-Adapter "plus": many image features in, a few tokens out.

Learned queries look at the features, and at themselves, layer by layer (Alayrac et al. 2022,
arXiv:2204.14198). Names and shapes are those of the released files.
"""

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules import attention


class PerceiverAttention(nn.Module):
    """Queries attend to the features and to all queries."""

    def __init__(self, *, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Features x (B, N, dim), queries latents (B, Q, dim) → (B, Q, dim)."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attention.optimized_attention(self.to_q(latents), k, v, self.heads))


def feed_forward(dim: int, mult: int = 4) -> nn.Sequential:
    """Norm, widen, GELU, back; without biases, as the files have it."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


class Resampler(nn.Module):
    """Image features (B, N, embedding_dim) to (B, num_queries, output_dim) tokens."""

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 8,
        embedding_dim: int = 768,
        output_dim: int = 1024,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim=dim, dim_head=dim_head, heads=heads),
                    feed_forward(dim, ff_mult),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(len(x), -1, -1)
        x = self.proj_in(x)
        for attend, feed in self.layers:
            latents = attend(x, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))
