"""From a batch to the conditions of the network: text by cross-attention, pooled text and sizes
as one vector. Each embedder can be left out at random, for classifier-free guidance."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from extras.training.noise import append_dims
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import Timestep
from ldm_patched.modules.sd1_clip import PENULTIMATE, ClipTextModel


class AbstractEmbModel(nn.Module):
    """One condition. input_key: its entry of the batch; ucg_rate: how often it is left out.

    legacy_ucg_val: what stands in the batch where it is left out; None zeroes the embedding.
    """

    def __init__(
        self,
        input_key: str,
        *,
        ucg_rate: float = 0.0,
        is_trainable: bool = False,
        legacy_ucg_val: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.input_key = input_key
        self.ucg_rate = ucg_rate
        self.is_trainable = is_trainable
        self.legacy_ucg_val = legacy_ucg_val

    def freeze(self) -> None:
        """Take the parameters out of training."""
        self.eval().requires_grad_(False)


class ConcatTimestepEmbedderND(AbstractEmbModel):
    """Numbers (B, D), each embedded by sines and joined: (B, D · outdim)."""

    def __init__(self, outdim: int, input_key: str, **options: Any) -> None:
        super().__init__(input_key, **options)
        self.outdim = outdim
        self.timestep = Timestep(outdim)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] if x.ndim == 1 else x
        return self.timestep(x.reshape(-1).float()).reshape(x.shape[0], -1)


class ClipEmbedder(AbstractEmbModel):
    """A CLIP text encoder over token ids (B, 77): its hidden states and, if asked, pooled text."""

    def __init__(
        self,
        model: ClipTextModel,
        input_key: str,
        *,
        layer: int = PENULTIMATE,
        return_pooled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(input_key, **options)
        self.model = model
        self.layer = layer
        self.return_pooled = return_pooled
        if not self.is_trainable:
            self.freeze()

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """(hidden (B, 77, C),) or (hidden, pooled (B, P))."""
        hidden, pooled = self.model(ids, self.layer)
        return (hidden, pooled) if self.return_pooled else (hidden,)


class GeneralConditioner(nn.Module):
    """All conditions of a batch, by the way they enter the network."""

    OUTPUT_DIM2KEYS: ClassVar[dict[int, str]] = {2: "vector", 3: "crossattn", 4: "concat"}
    KEY2CATDIM: ClassVar[dict[str, int]] = {"vector": 1, "crossattn": 2, "concat": 1}

    def __init__(self, emb_models: Sequence[AbstractEmbModel]) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(emb_models)

    def possibly_get_ucg_val(self, embedder: AbstractEmbModel, values: Tensor) -> Tensor:
        """`values` (B, …) with the stand-in put into random rows."""
        left_out = torch.rand(values.shape[0], device=values.device) < embedder.ucg_rate
        stand_in = embedder.legacy_ucg_val.to(values)
        return torch.where(append_dims(left_out, values.ndim), stand_in, values)

    def forward(
        self, batch: Mapping[str, Any], force_zero_embeddings: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """ "crossattn" (B, 77, C), "vector" (B, D) and "concat" (B, C, H, W), those that occur.

        force_zero_embeddings: input keys whose embeddings are zeroed for all samples.
        """
        output: dict[str, Tensor] = {}
        for embedder in self.embedders:
            values = batch[embedder.input_key]
            if embedder.ucg_rate > 0.0 and embedder.legacy_ucg_val is not None:
                values = self.possibly_get_ucg_val(embedder, values)
            with torch.set_grad_enabled(embedder.is_trainable and torch.is_grad_enabled()):
                found = embedder(values)
            for emb in found if isinstance(found, tuple) else (found,):
                key = self.OUTPUT_DIM2KEYS[emb.ndim]
                if embedder.ucg_rate > 0.0 and embedder.legacy_ucg_val is None:
                    kept = torch.rand(emb.shape[0], device=emb.device) >= embedder.ucg_rate
                    emb = emb * append_dims(kept, emb.ndim)
                if embedder.input_key in force_zero_embeddings:
                    emb = torch.zeros_like(emb)
                if key in output:
                    emb = torch.cat((output[key], emb), self.KEY2CATDIM[key])
                output[key] = emb
        return output

    def get_unconditional_conditioning(
        self,
        batch_c: Mapping[str, Any],
        batch_uc: Mapping[str, Any] | None = None,
        force_uc_zero_embeddings: Sequence[str] = (),
        force_cond_zero_embeddings: Sequence[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(conditions, unconditional ones), nothing left out at random."""
        rates = [embedder.ucg_rate for embedder in self.embedders]
        try:
            for embedder in self.embedders:
                embedder.ucg_rate = 0.0
            cond = self(batch_c, force_cond_zero_embeddings)
            uncond = self(batch_c if batch_uc is None else batch_uc, force_uc_zero_embeddings)
        finally:
            for embedder, rate in zip(self.embedders, rates, strict=True):
                embedder.ucg_rate = rate
        return cond, uncond
