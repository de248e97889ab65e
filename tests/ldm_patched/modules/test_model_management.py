"""Which device and precision follow from which flags on which machine."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm_patched.modules import model_management as mm
from ldm_patched.modules.errors import DeviceMissing
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware

GIB = 1024**3
AMPERE = Hardware(kind="cuda", name="GPU", index=0, bf16=True, total_memory=24 * GIB)
TURING = Hardware(kind="cuda", name="GPU", index=0, bf16=False, total_memory=8 * GIB)
SMALL = Hardware(kind="cuda", name="GPU", index=0, bf16=True, total_memory=4 * GIB)
XPU = Hardware(kind="xpu", name="Arc", index=0, bf16=True, total_memory=16 * GIB)
MPS = Hardware(kind="mps", name="Apple GPU")
CPU = Hardware()
FAST_CPU = Hardware(cpu_bf16=True)
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("hardware", "device", "unet", "vae", "text", "text_device"),
    [
        (AMPERE, "cuda:0", BF16, BF16, F16, "cuda:0"),
        (TURING, "cuda:0", F16, F32, F16, "cuda:0"),
        (SMALL, "cuda:0", BF16, BF16, F32, "cpu"),
        (XPU, "xpu:0", BF16, BF16, F16, "xpu:0"),
        (MPS, "mps", F16, F32, F16, "mps"),
        (CPU, "cpu", F32, F32, F32, "cpu"),
        (FAST_CPU, "cpu", BF16, BF16, F32, "cpu"),
    ],
    ids=["ampere", "turing", "small", "xpu", "mps", "cpu", "fast cpu"],
)
def test_what_each_machine_gets(
    hardware: Hardware,
    device: str,
    unet: torch.dtype,
    vae: torch.dtype,
    text: torch.dtype,
    text_device: str,
) -> None:
    policy = DevicePolicy(DeviceFlags(), hardware)
    assert policy.device == policy.vae_device == torch.device(device)
    assert (policy.unet_dtype, policy.vae_dtype) == (unet, vae)
    assert policy.unet_compute_dtype == unet
    assert policy.text_encoder_dtype == text
    assert policy.text_encoder_device == torch.device(text_device)
    channels_last = policy.memory_format == torch.channels_last
    assert channels_last == (hardware.kind != "mps")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"all_in_fp32": True}, {"unet_dtype": F32, "vae_dtype": F32, "text_encoder_dtype": F32}),
        ({"all_in_fp16": True}, {"unet_dtype": F16, "vae_dtype": F16, "text_encoder_dtype": F16}),
        ({"unet_in_fp16": True}, {"unet_dtype": F16, "vae_dtype": BF16}),
        ({"vae_in_fp32": True}, {"vae_dtype": F32, "unet_dtype": BF16}),
        ({"vae_in_fp16": True}, {"vae_dtype": F16}),
        ({"vae_in_bf16": True, "all_in_fp16": True}, {"vae_dtype": BF16, "unet_dtype": F16}),
        ({"vae_in_cpu": True}, {"vae_device": torch.device("cpu"), "vae_dtype": F32}),
        ({"clip_in_fp32": True}, {"text_encoder_dtype": F32}),
        (
            {"unet_in_fp8_e4m3fn": True},
            {"unet_dtype": torch.float8_e4m3fn, "unet_compute_dtype": BF16},
        ),
        (
            {"always_cpu": True},
            {"device": torch.device("cpu"), "unet_dtype": F32, "text_encoder_dtype": F32},
        ),
        ({"low_vram": True}, {"vram": "low", "text_encoder_device": torch.device("cpu")}),
        ({"high_vram": True}, {"vram": "high", "offload_device": torch.device("cuda:0")}),
        ({}, {"vram": "normal", "offload_device": torch.device("cpu")}),
    ],
)
def test_flags_overrule(flags: dict[str, Any], wanted: dict[str, Any]) -> None:
    policy = DevicePolicy(DeviceFlags(**flags), AMPERE)
    assert {name: getattr(policy, name) for name in wanted} == wanted


def test_bf16_by_flag_on_a_slow_cpu() -> None:
    policy = DevicePolicy(DeviceFlags(unet_in_bf16=True), CPU)
    assert (policy.unet_dtype, policy.vae_dtype) == (BF16, F32)


def test_little_memory_means_low_vram() -> None:
    assert DevicePolicy(DeviceFlags(), SMALL).vram == "low"
    assert DevicePolicy(DeviceFlags(normal_vram=True), SMALL).vram == "normal"


def test_flags_from_a_mapping() -> None:
    flags = DeviceFlags.from_mapping(
        {"--all-in-fp32": True, "vae_in_cpu": "no", "preset": "x", "gpu-device-id": "1"}
    )
    assert flags == DeviceFlags(all_in_fp32=True, gpu_device_id=1)
    assert DeviceFlags.from_mapping({"always_cpu": "6"}) == DeviceFlags(always_cpu=True, threads=6)
    assert DeviceFlags.from_mapping({"always_cpu": True}) == DeviceFlags(always_cpu=True)
    assert DeviceFlags.from_mapping({"threads": None}) == DeviceFlags()
    with pytest.raises(ValueError, match="--threads takes a whole number, got 'many'"):
        DeviceFlags.from_mapping({"threads": "many"})


def test_flags_from_the_environment() -> None:
    environ = {
        "EASEL_UNET_IN_BF16": "1",
        "EASEL_VAE_IN_CPU": "0",
        "EASEL_ALWAYS_CPU": "true",
        "EASEL_THREADS": "3",
        "UNET_IN_FP16": "1",
        "EASEL_PORT": "80",
    }
    wanted = DeviceFlags(unet_in_bf16=True, always_cpu=True, threads=3)
    assert DeviceFlags.from_environment(environ) == wanted


def test_this_machine_is_detected() -> None:
    policy = DevicePolicy.detect(DeviceFlags(always_cpu=True))
    assert policy.device.type == "cpu"
    assert policy.budget.free_bytes() > 2**20
    wanted = BF16 if mm.cpu_has_bf16() else F32
    assert (policy.unet_dtype, policy.vae_dtype) == (wanted, wanted)
    mm.soft_empty_cache(policy.device)


def have_cuda(monkeypatch, count: int, major: int = 8) -> None:
    """Let PyTorch tell of so many graphics cards and of nothing else."""
    card = SimpleNamespace(
        name="GPU", major=major, minor=6, gcnArchName="gfx1030:xnack-", total_memory=8 * GIB
    )
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("given", "count", "kind", "index"),
    [(None, 0, "cpu", None), (None, 2, "cuda", 0), (0, 1, "cuda", 0), (1, 2, "cuda", 1)],
)
def test_the_numbered_device_is_taken(monkeypatch, given, count, kind, index) -> None:
    have_cuda(monkeypatch, count)
    found = Hardware.detect(given)
    assert (found.kind, found.index, found.bf16) == (kind, index, kind == "cuda")


def test_an_old_card_emulates_bfloat16(monkeypatch) -> None:
    have_cuda(monkeypatch, 1, major=7)
    monkeypatch.setattr(torch.version, "hip", None)
    assert not Hardware.detect().bf16


@pytest.mark.parametrize(
    ("hip", "built", "kind"),
    [
        (None, ["sm_75", "sm_80"], "cuda"),
        (None, ["sm_75", "sm_89", "sm_90"], "cpu"),
        (None, ["sm_90a", "compute_75"], "cuda"),
        (None, ["sm_75", "compute_120"], "cpu"),
        ("7.2", ["gfx906", "gfx1030"], "cuda"),
        ("7.2", ["gfx906", "gfx1100"], "cpu"),
    ],
)
def test_a_card_that_this_pytorch_is_not_built_for_is_left_alone(
    monkeypatch, caplog, hip, built, kind
) -> None:
    have_cuda(monkeypatch, 1)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    assert Hardware.detect().kind == kind
    assert ("paints on the CPU" in caplog.text) == (kind == "cpu")


@pytest.mark.parametrize(
    ("given", "count", "words"),
    [
        (2, 2, "no graphics device number 2: this computer has 2, counted from 0"),
        (-1, 2, "no graphics device number -1"),
        (0, 0, "no graphics device number 0: PyTorch finds none here"),
    ],
)
def test_a_number_that_no_device_has_is_an_error(monkeypatch, given, count, words) -> None:
    have_cuda(monkeypatch, count)
    with pytest.raises(DeviceMissing, match=words):
        DevicePolicy.detect(DeviceFlags(gpu_device_id=given))
    policy = DevicePolicy.detect(DeviceFlags(gpu_device_id=given, always_cpu=True))
    assert policy.device.type == "cpu"


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "cpu"])
def test_memory_kept_for_reuse_is_given_back(monkeypatch, kind) -> None:
    emptied: list[str] = []
    for name in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(
            getattr(torch, name), "empty_cache", lambda name=name: emptied.append(name)
        )
    give = lambda: emptied.append("host")  # noqa: E731
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", give, raising=False)
    mm.soft_empty_cache(torch.device(kind))
    assert emptied == {"cuda": ["cuda", "host"], "cpu": []}.get(kind, [kind])


def test_threads_are_set_for_the_process() -> None:
    before = torch.get_num_threads()
    try:
        DevicePolicy(DeviceFlags(threads=1), CPU).configure_process()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_policy_says_what_it_chose() -> None:
    assert DevicePolicy(DeviceFlags(), TURING).describe() == (
        "GPU: UNet float16, VAE float32 on cuda, text encoders float16 on cuda"
    )
    text = DevicePolicy(DeviceFlags(always_cpu=True), TURING).describe()
    assert text == "CPU: UNet float32, VAE float32 on cpu, text encoders float32 on cpu"
