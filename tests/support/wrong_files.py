"""Weight files that are wrong: of another kind, or damaged in every way."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from ldm_patched.modules.weight_file import SafetensorsFile

_LORA = {
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8),
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.zeros(()),
}
WRONG_FILES = {
    "a LoRA": _LORA,
    "a LoRA of the other layout": {"unet.mid_block.to_q.lora_A.weight": torch.zeros(4, 8)},
    "a VAE": {"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.bias": torch.zeros(1)},
    "a ControlNet": {"control_model.zero_convs.0.0.weight": torch.zeros(1)},
    "an IP-Adapter": {"ip_adapter.1.to_k_ip.weight": torch.zeros(1)},
    "an embedding": {"emb_params": torch.zeros(2, 768)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.weight": torch.zeros(1)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(1)},
    "AuraFlow": {"model.double_layers.0.attn.w1q.weight": torch.zeros(1)},
    "no diffusion model": {"something": torch.zeros(1)},
}
"""Weights that are no checkpoint of a family that is known, by what the refusal calls them."""


# --- Bytes of a safetensors file --------------------------------------------------------------


def with_header(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The same file with another text in its header."""
    length = int.from_bytes(raw[:8], "little")
    text = change(raw[8 : 8 + length].rstrip())
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _flip(raw: bytes, place: int, bit: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]


def _flip_in_size(raw: bytes) -> bytes:
    """A tensor starts one byte later than it does."""
    return _flip(raw, raw.index(b'"data_offsets":[') + 16, 1)


def _one_more(name: str) -> Callable[[bytes], bytes]:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return lambda raw: with_header(raw, lambda t: b'{"%s":%s,' % (name.encode(), entry) + t[1:])


def _name_twice(raw: bytes) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    names = json.loads(raw[8 : 8 + length])
    return _one_more(next(name for name in names if name != "__metadata__"))(raw)


def _very_many(raw: bytes) -> bytes:
    one = b'"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    return with_header(raw, lambda t: b"{" + b"".join(one % i for i in range(21_000)) + t[1:])


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def program(marker: Path) -> bytes:
    """A file of torch.save that makes the folder `marker` if it is unpickled in full."""
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(2)}, "callback": Runs(marker)}, file)
    return file.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda raw: raw[:-5],
    "cut within its header": lambda raw: raw[:40],
    "nothing at all": lambda raw: b"",
    "nothing but zeros": lambda raw: bytes(4096),
    "a bit flipped in a size": _flip_in_size,
    "a bit flipped in the header's length": lambda raw: _flip(raw, 0, 8),
    "a bit flipped in the header's text": lambda raw: _flip(raw, 9, 0x40),
    "very many empty tensors": _very_many,
    "the name of an attribute": _one_more("a.__class__.__init__"),
    "a name twice": _name_twice,
}
"""What becomes of a sound file's bytes."""


# --- Weights that do not belong together ------------------------------------------------------


def _with(weights: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> bytes:
    return save(weights | {name: change(weights[name])})


def _first_is_nan(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight.view(-1)[0] = float("nan")
    return weight


MISFITS: dict[str, Callable[[dict[str, Tensor], str], bytes]] = {
    "a weight of a wrong rank": lambda weights, name: _with(weights, name, Tensor.flatten),
    "a weight of no size": lambda weights, name: _with(weights, name, lambda w: w[:0].clone()),
    "a weight missing": lambda weights, name: save({k: w for k, w in weights.items() if k != name}),
    "a weight that is no number": lambda weights, name: _with(weights, name, _first_is_nan),
}
"""The bytes of a file of these weights with something wrong about the one that is named."""


def vanish_while_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file go after its header was read, before its weights are."""
    checked = SafetensorsFile.__init__

    def vanishing(self: SafetensorsFile, opened: Path) -> None:
        checked(self, opened)
        if opened == path:
            path.unlink()

    monkeypatch.setattr(SafetensorsFile, "__init__", vanishing)
