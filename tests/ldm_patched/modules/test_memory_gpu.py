"""On a real GPU, where there is one: the same numbers, within a cap on its memory."""

import gc

import pytest
import torch

from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_base import BaseModel
from ldm_patched.modules.model_detection import require_model_config
from ldm_patched.modules.model_management import free_memory
from ldm_patched.modules.model_patcher import ModelPatcher
from tests.support.tiny_checkpoint import SDXL, UNET_PREFIX, checkpoint_shapes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CAP = 4 * 2**30


@pytest.fixture
def cuda():
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    yield device, total
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    gc.collect()
    torch.cuda.empty_cache()


def full_size_unet() -> BaseModel:
    """SDXL's UNet with random weights in bfloat16."""
    shapes = {n: s for n, s in checkpoint_shapes(SDXL).items() if n.startswith(UNET_PREFIX)}
    names = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
    config = require_model_config(names)
    config.set_inference_dtype(torch.bfloat16)
    model = config.get_model(names, device="meta").eval().requires_grad_(False)
    model.diffusion_model.to_empty(device="cuda")
    for p in model.diffusion_model.parameters():
        p.uniform_(-0.02, 0.02) if p.ndim > 1 else p.fill_(0.1)
    return model.to("cpu")


def forward(model: BaseModel, device: torch.device) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    like = {"device": device, "dtype": torch.bfloat16}
    x, context, y = (
        torch.randn(shape, generator=g).to(**like)
        for shape in ((2, 4, 128, 128), (2, 77, 2048), (2, 2816))
    )
    with torch.inference_mode():
        for t in (900.0, 500.0):
            times = torch.full((2,), t, device=device)
            x = model.diffusion_model(x, times, context=context, y=y)
    return x.float().cpu()


def test_a_streamed_sdxl_keeps_to_4_gb_and_gives_the_very_numbers(cuda):
    device, total = cuda
    model = full_size_unet()
    budget = MemoryBudget("normal", lambda: free_memory(device))
    patcher = ModelPatcher(model, device, "cpu", budget=budget)
    patcher.patch_model(device)
    assert not patcher.residence.is_streaming
    wanted = forward(model, device)
    patcher.unpatch_model("cpu")
    model.diffusion_model.clear_cache()
    gc.collect()
    torch.cuda.empty_cache()

    torch.cuda.set_per_process_memory_fraction(CAP / total, device)
    torch.cuda.reset_peak_memory_stats(device)
    patcher.patch_model(device, model.memory_required((1, 4, 128, 128)))
    assert patcher.residence.is_streaming
    found = forward(model, device)
    assert torch.cuda.max_memory_allocated(device) <= CAP
    assert torch.equal(found, wanted)
    patcher.unpatch_model("cpu")
