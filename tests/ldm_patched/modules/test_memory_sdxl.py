"""SDXL at its real size on a card of 4 GB: every byte counted, nothing computed.

All networks have the real shapes, on "meta", where tensors have no numbers. Counted are weights on
the device, slots of streamed blocks, and every tensor that a forward pass makes while it lives.
Stated, not counted: what CUDA itself takes (CONTEXT), and the work space of libraries, for which
the budget keeps its RESERVE. Attention takes no more than its result, as every fused kernel does.
"""

from types import SimpleNamespace

import pytest
import torch

from ldm_patched.controlnet import cldm
from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from ldm_patched.ldm.modules.attention_kernels import ATTENTION_WAYS
from ldm_patched.modules.control_networks import ControlNet
from ldm_patched.modules.memory_budget import RESERVE, MemoryBudget
from ldm_patched.modules.model_base import BaseModel
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.residence import Residence
from ldm_patched.modules.sample import _bytes_beside
from ldm_patched.modules.vae import VAE
from tests.support import engine_report
from tests.support.counting_transfer import CountingTransfer
from tests.support.tiny_checkpoint import SDXL, UNET_PREFIX, checkpoint_shapes, vae_shapes

GIB = 2**30
CARD, CONTEXT = 4 * GIB, GIB // 2
LATENTS = (4, 128, 128)


class MetaTransfer(CountingTransfer):
    is_meta = True


@pytest.fixture(autouse=True)
def real_kernels(monkeypatch):
    monkeypatch.setitem(ATTENTION_WAYS, "pytorch", lambda q, *_: torch.empty_like(q))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which "meta" has not


@pytest.fixture(scope="module")
def unet() -> BaseModel:
    shapes = {n: s for n, s in checkpoint_shapes(SDXL).items() if n.startswith(UNET_PREFIX)}
    weights = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
    config = require_model_config(weights)
    config.set_inference_dtype(torch.bfloat16)
    return config.get_model(weights, device="meta").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def text_encoders() -> torch.nn.Module:
    """Their weights in float16, as on a GPU."""
    shapes = [s for n, s in checkpoint_shapes(SDXL).items() if n.startswith("conditioner.")]
    module = torch.nn.Module()
    for i, shape in enumerate(shapes):
        weight = torch.empty(shape, dtype=torch.float16, device="meta")
        module.register_parameter(str(i), torch.nn.Parameter(weight, requires_grad=False))
    return module


def make_vae(budget: MemoryBudget) -> VAE:
    with torch.device("meta"):
        model = AutoencoderKL(detect_autoencoder_config(vae_shapes(SDXL)))
    model = model.to(torch.bfloat16)
    return VAE(model, device="meta", dtype=torch.bfloat16, budget=budget)


def forward(unet: BaseModel, batch: int) -> None:
    """A step with a new text."""
    like = {"dtype": torch.bfloat16, "device": "meta"}
    context, y = torch.empty(batch, 77, 2048, **like), torch.empty(batch, 2816, **like)
    unet.diffusion_model.clear_cache()  # else it compares texts, which have no numbers here
    with torch.inference_mode():
        x, t = torch.empty(batch, *LATENTS, **like), torch.empty(batch, device="meta")
        unet.diffusion_model(x, t, context=context, y=y)


def small_card() -> DevicePolicy:
    hardware = Hardware(kind="cuda", name="small", index=0, bf16=True, total_memory=CARD)
    return DevicePolicy(DeviceFlags(), hardware)


def planned(unet: BaseModel, **options: object) -> tuple[int, int]:
    """What a run of one picture with both prompts is planned to take beside the weights."""
    prompt = [[torch.empty(1, 77, 2048, device="meta"), options]]
    unet.diffusion_model.clear_cache()
    runner = SimpleNamespace(base_model=unet, model_options={})
    return _bytes_beside(runner, prompt, prompt, 7.0, (1, *LATENTS))


def note_peak(what: str, request: pytest.FixtureRequest, transfer: MetaTransfer) -> float:
    peak = (transfer.peak + CONTEXT + RESERVE) / GIB
    name = f"SDXL at 1024 × 1024, {what}, GiB"
    engine_report.record("memory", name, request.node.nodeid, "a card of 4 GiB", peak, 4.0)
    return peak


def merged(unet: BaseModel, patcher: ModelPatcher) -> ModelPatcher:
    """A clone with a LoRA of rank 32 on every matrix of the network."""
    like = {"dtype": torch.bfloat16, "device": "meta"}
    patches = {
        f"diffusion_model.{name}": (
            "lora",
            (torch.empty(len(w), 32, **like), torch.empty(32, w.shape[1], **like), 32.0, None),
        )
        for name, w in unet.diffusion_model.named_parameters()
        if w.ndim == 2
    }
    clone = patcher.clone()
    assert len(clone.add_patches(patches)) > 500
    return clone


@pytest.mark.parametrize("mode", ["low", "normal"])
def test_a_picture_of_1024_keeps_to_4_gb(unet, text_encoders, request, mode):
    """Such a card is given "low" by itself; there the text encoders never go to it."""
    policy = small_card()
    assert policy.vram == "low"
    assert policy.text_encoder_device.type == "cpu"
    transfer = MetaTransfer(CARD - CONTEXT)
    budget = MemoryBudget(mode, transfer.free, transfer=transfer)
    patcher = ModelPatcher(unet, "meta", "cpu", budget=budget)
    clip = Residence(text_encoders, transfer, budget=budget)
    vae = make_vae(budget)
    assert 5.1e9 < patcher.model_size() < 5.2e9  # 2,567 million weights of 2 bytes
    assert 1.6e9 < clip.size < 1.7e9

    for number in range(2):  # the second picture finds the first one's networks there
        if mode != policy.vram:
            clip.enter(64 * 2**20)
        if number:
            patcher = merged(unet, patcher)
        both = unet.memory_required((2, *LATENTS))
        patcher.patch_model("meta", *planned(unet))
        assert patcher.residence.is_streaming
        assert clip.device_bytes == 0  # left before sampling
        assert patcher.residence.device_bytes > GIB // 2  # and what fits stays there
        assert both < budget.working_bytes()  # so both conditions go in one call
        with transfer.counting(), patcher.residence.busy():
            forward(unet, batch=2)
        for decoding in (False, True):  # a picture to begin with, and the one that came out
            assert not vae._enter(vae.memory_required(1024, 1024, decoding=decoding))  # in one go
            with transfer.counting(), torch.inference_mode():
                shape = (1, *LATENTS) if decoding else (1, 3, 1024, 1024)
                x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
                model = vae.first_stage_model
                model.decode(x) if decoding else model.encode(x)
                del x

    assert 3.0 < note_peak(f"mode {mode}", request, transfer) <= 4.0
    assert transfer.copies  # blocks did stream
    patcher.unpatch_model("cpu")


def test_a_controlnet_beside_it_keeps_to_4_gb(unet, request):
    """The whole one of SDXL, 2.5 GB: the UNet streams through what is left."""
    transfer = MetaTransfer(CARD - CONTEXT)
    budget = MemoryBudget(small_card().vram, transfer.free, transfer=transfer)
    patcher = ModelPatcher(unet, "meta", "cpu", budget=budget)
    network = cldm.ControlNet(unet.diffusion_model.config, device="meta").to(torch.bfloat16)
    network.eval().requires_grad_(False)
    own = ModelPatcher(network, "meta", "cpu", budget=budget)
    control = ControlNet("canny", own, torch.bfloat16)
    patcher.patch_model("meta", *planned(unet, control=control))
    like = {"dtype": torch.bfloat16, "device": "meta"}
    with patcher.residence.busy():
        own.patch_model("meta")
        with transfer.counting(), torch.inference_mode(), own.residence.busy():
            x, t = torch.empty(1, *LATENTS, **like), torch.empty(1, device="meta")
            context, y = torch.empty(1, 77, 2048, **like), torch.empty(1, 2816, **like)
            hint = network.embed_hint(torch.empty(1, 3, 1024, 1024, **like))
            outputs = network(x, hint, t, context, y)
            added = {"output": outputs[:-1], "middle": outputs[-1:]}
            unet.diffusion_model.clear_cache()
            unet.diffusion_model(x, t, context=context, y=y, control=added)
    assert note_peak("with a ControlNet", request, transfer) <= 4.0
    patcher.unpatch_model("cpu")
    own.unpatch_model("cpu")


@pytest.mark.parametrize("batch", [1, 2])
def test_the_estimate_of_the_unet_is_on_the_safe_side(unet, batch):
    """Against the counted peak of a forward pass."""
    transfer = MetaTransfer()
    with transfer.counting():
        forward(unet, batch)
    estimate = unet.memory_required((batch, *LATENTS))
    assert transfer.peak <= estimate <= 3 * transfer.peak


def test_the_estimates_of_the_vae_are_on_the_safe_side():
    vae = make_vae(MemoryBudget("normal", lambda: 2**40, transfer=MetaTransfer()))
    for decoding in (True, False):
        transfer = MetaTransfer()
        with transfer.counting(), torch.inference_mode():
            shape = (1, *LATENTS) if decoding else (1, 3, 1024, 1024)
            x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
            x = x.contiguous(memory_format=torch.channels_last)
            vae.first_stage_model.decode(x) if decoding else vae.first_stage_model.encode(x)
        estimate = vae.memory_required(1024, 1024, decoding=decoding)
        assert transfer.peak <= estimate <= 3 * transfer.peak


def test_without_vram_the_unet_takes_half_a_gigabyte(unet):
    transfer = MetaTransfer(CARD - CONTEXT)
    budget = MemoryBudget("no", transfer.free, transfer=transfer)
    patcher = ModelPatcher(unet, "meta", "cpu", budget=budget)
    patcher.patch_model("meta", unet.memory_required((1, *LATENTS)))
    assert patcher.residence.device_bytes < GIB // 2
    before = transfer.sent_bytes
    forward(unet, batch=1)
    assert transfer.sent_bytes - before > 0.9 * patcher.model_size()  # each block came
    patcher.unpatch_model("cpu")
