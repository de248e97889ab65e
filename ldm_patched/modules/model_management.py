"""Where each network runs and in which precision: one policy, decided once, from flags.

`DeviceFlags` is what the user asked for, `Hardware` what there is, `DevicePolicy` what follows.
Nothing is probed at import; `DevicePolicy.detect()` probes.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import torch

from ldm_patched.ldm.modules.attention_kernels import set_attention_way
from ldm_patched.modules.errors import DeviceMissing
from ldm_patched.modules.host_memory import available_ram
from ldm_patched.modules.memory_budget import MemoryBudget

logger = logging.getLogger(__name__)

_FALSE = {"", "0", "false", "no", "off", "none"}
ENVIRONMENT_PREFIX = "EASEL_"


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """The command line's device flags, by name; everything unset leaves the choice to Easel."""

    always_cpu: bool = False
    threads: int | None = None
    gpu_device_id: int | None = None
    all_in_fp32: bool = False
    all_in_fp16: bool = False
    unet_in_bf16: bool = False
    unet_in_fp16: bool = False
    unet_in_fp32: bool = False
    unet_in_fp8_e4m3fn: bool = False
    unet_in_fp8_e5m2: bool = False
    vae_in_fp32: bool = False
    vae_in_bf16: bool = False
    vae_in_fp16: bool = False
    vae_in_cpu: bool = False
    clip_in_fp32: bool = False
    clip_in_fp16: bool = False
    always_gpu: bool = False
    high_vram: bool = False
    normal_vram: bool = False
    low_vram: bool = False
    no_vram: bool = False
    attention_split: bool = False
    attention_quad: bool = False
    attention_pytorch: bool = False
    pytorch_deterministic: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """From flag names with dashes or underscores; other names and None are left out.

        `always_cpu` may be a number: that many threads. Raises ValueError for a count that is
        no whole number.
        """
        known = {f.name for f in fields(cls)}
        counts = {"threads", "gpu_device_id"}
        found: dict[str, Any] = {}
        for name, value in values.items():
            key = name.strip("-").replace("-", "_").lower()
            if key not in known or value is None:
                continue
            if key == "always_cpu" and str(value).strip().isdigit() and not _is_bool(value):
                found.setdefault("threads", int(value) or None)
                found[key] = True
            elif key in counts:
                found[key] = _whole_number(key, value)
            else:
                found[key] = _truth(value)
        return cls(**found)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """From EASEL_<FLAG> variables, as EASEL_ALL_IN_FP32=1."""
        environ = os.environ if environ is None else environ
        prefix = ENVIRONMENT_PREFIX
        return cls.from_mapping(
            {k[len(prefix) :]: v for k, v in environ.items() if k.startswith(prefix)}
        )


def _is_bool(value: Any) -> bool:
    # "1" and "0" are how the environment writes yes and no, not one thread and none.
    return isinstance(value, bool) or str(value).strip() in {"0", "1"}


def _truth(value: Any) -> bool:
    return str(value).strip().lower() not in _FALSE if isinstance(value, str) else bool(value)


def _whole_number(name: str, value: Any) -> int | None:
    if isinstance(value, str) and value.strip().lower() in _FALSE - {"0"}:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} takes a whole number, got {value!r}.") from None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the machine has. kind: "cuda", "xpu", "mps" or "cpu"."""

    kind: str = "cpu"
    name: str = "CPU"
    index: int | None = None
    bf16: bool = False
    """The accelerator computes in bfloat16."""
    cpu_bf16: bool = False
    """The CPU has bfloat16 matrix or vector units (AMX, AVX512-bf16)."""
    total_memory: int = 0
    """Bytes on the accelerator, 0 on a CPU."""

    @classmethod
    def detect(cls, gpu_device_id: int | None = None) -> Self:
        """Ask PyTorch for the best device, which is the CPU where there is no other.

        gpu_device_id: of several. Raises DeviceMissing if none has that number.
        """
        cpu_bf16 = cpu_has_bf16()
        kind, count = _accelerators()
        index = gpu_device_id or 0
        if gpu_device_id is not None and not 0 <= index < count:
            raise _no_such_device(index, count)
        if kind == "mps":
            return cls(kind="mps", name="Apple GPU", cpu_bf16=cpu_bf16)
        if kind == "cpu":
            return cls(cpu_bf16=cpu_bf16)
        properties = getattr(torch, kind).get_device_properties(index)
        if kind == "cuda" and not _has_kernels(properties):
            logger.warning(
                "This PyTorch cannot compute on %s, so Easel paints on the CPU, which is slower; "
                "install a PyTorch that is made for this card to use it.",
                properties.name,
            )
            return cls(cpu_bf16=cpu_bf16)
        # Before compute capability 8 CUDA emulates bfloat16, which is slow.
        emulated = kind == "cuda" and torch.version.hip is None and properties.major < 8
        return cls(
            kind=kind,
            name=properties.name,
            index=index,
            bf16=not emulated,
            cpu_bf16=cpu_bf16,
            total_memory=properties.total_memory,
        )


def _accelerators() -> tuple[str, int]:
    """(the kind of the best devices, how many of them PyTorch can use)."""
    if torch.cuda.is_available() and torch.cuda.device_count():
        return "cuda", torch.cuda.device_count()
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu", torch.xpu.device_count()
    return ("mps", 1) if torch.backends.mps.is_available() else ("cpu", 0)


def _has_kernels(properties: Any) -> bool:
    """Whether the PyTorch that is installed was built for this card of CUDA's or ROCm's.

    Kernels of a compute capability run on later ones of the same generation; PTX ("compute_")
    is compiled for any later card.
    """
    built = torch.cuda.get_arch_list()
    if torch.version.hip is not None:
        return not built or properties.gcnArchName.split(":")[0] in built
    card = 10 * properties.major + properties.minor
    for name in built:
        kind, _, number = name.rstrip("abcdefghijklmnopqrstuvwxyz").partition("_")
        arch = int(number)
        if arch <= card and (kind == "compute" or arch // 10 == card // 10):
            return True
    return not built


def _no_such_device(index: int, count: int) -> DeviceMissing:
    there = f"this computer has {count}, counted from 0" if count else "PyTorch finds none here"
    remedy = "Start Easel with another --gpu-device-id, or without it."
    return DeviceMissing(f"There is no graphics device number {index}: {there}. {remedy}")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices faster than float32 ones."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)))


_GIB = 1024**3


class DevicePolicy:
    """Device and precision of each network, from what was asked for and what there is."""

    def __init__(self, flags: DeviceFlags | None = None, hardware: Hardware | None = None) -> None:
        """hardware: None means detect it now, which raises DeviceMissing for an unknown number."""
        self.flags = flags or DeviceFlags()
        self.hardware = hardware or Hardware.detect(
            None if self.flags.always_cpu else self.flags.gpu_device_id
        )
        f, kind = self.flags, "cpu" if self.flags.always_cpu else self.hardware.kind
        cpu = torch.device("cpu")
        self.device = cpu if kind == "cpu" else torch.device(kind, self.hardware.index)
        self.unet_dtype, self.unet_compute_dtype = self._unet_dtypes(kind)
        self.vae_device = cpu if f.vae_in_cpu else self.device
        self.vae_dtype = self._vae_dtype(self.vae_device.type)
        on_cpu = kind == "cpu" or self.vram in ("low", "no")
        self.text_encoder_device = cpu if on_cpu else self.device
        self.text_encoder_dtype = self._text_encoder_dtype(self.text_encoder_device.type)
        # MPS has no channels-last convolutions worth having.
        self.memory_format = torch.contiguous_format if kind == "mps" else torch.channels_last

    @classmethod
    def detect(cls, flags: DeviceFlags | None = None) -> Self:
        """The policy of this machine; flags: None means those of the environment."""
        return cls(DeviceFlags.from_environment() if flags is None else flags)

    @property
    def vram(self) -> str:
        """How much may stay on the accelerator: "always", "high", "normal", "low" or "no"."""
        f = self.flags
        asked = {
            "always": f.always_gpu,
            "high": f.high_vram,
            "normal": f.normal_vram,
            "low": f.low_vram,
            "no": f.no_vram,
        }
        for mode, wanted in asked.items():
            if wanted:
                return mode
        total = self.hardware.total_memory
        return "low" if 0 < total < 5 * _GIB else "normal"

    @property
    def attention(self) -> str:
        """One of ATTENTION_WAYS."""
        f = self.flags
        return "quad" if f.attention_quad else "split" if f.attention_split else "pytorch"

    @property
    def offload_device(self) -> torch.device:
        """Where a network waits when it is not in use."""
        return self.device if self.vram in ("always", "high") else torch.device("cpu")

    def _unet_dtypes(self, kind: str) -> tuple[torch.dtype, torch.dtype]:
        f, h = self.flags, self.hardware
        best = _fast_dtype(kind, h)
        asked = (
            (f.all_in_fp32 or f.unet_in_fp32, torch.float32),
            (f.unet_in_bf16, torch.bfloat16),
            (f.unet_in_fp16 or f.all_in_fp16, torch.float16),
            (f.unet_in_fp8_e4m3fn, torch.float8_e4m3fn),
            (f.unet_in_fp8_e5m2, torch.float8_e5m2),
        )
        stored = next((dtype for wanted, dtype in asked if wanted), best)
        return stored, best if stored.itemsize == 1 else stored

    def _vae_dtype(self, kind: str) -> torch.dtype:
        f = self.flags
        asked = (
            (f.all_in_fp32 or f.vae_in_fp32, torch.float32),
            (f.vae_in_bf16, torch.bfloat16),
            (f.vae_in_fp16 or f.all_in_fp16, torch.float16),
        )
        best = _fast_dtype(kind, self.hardware)
        # SDXL's VAE overflows in float16.
        default = torch.float32 if best is torch.float16 else best
        return next((dtype for wanted, dtype in asked if wanted), default)

    def _text_encoder_dtype(self, kind: str) -> torch.dtype:
        f = self.flags
        if f.all_in_fp32 or f.clip_in_fp32:
            return torch.float32
        if f.all_in_fp16 or f.clip_in_fp16:
            return torch.float16
        return torch.float32 if kind == "cpu" else torch.float16

    @cached_property
    def budget(self) -> MemoryBudget:
        """The account of `device`, which every network made under this policy goes by."""
        return MemoryBudget(self.vram, lambda: free_memory(self.device))

    def configure_process(self) -> None:
        """Apply what is kept per process: threads, TF32, determinism, attention. Once a worker."""
        set_attention_way(self.attention)
        if self.flags.threads:
            torch.set_num_threads(self.flags.threads)
        if self.flags.pytorch_deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cuda.matmul.allow_tf32 = True

    def describe(self) -> str:
        """One line for people."""
        names = {t: str(t).removeprefix("torch.") for t in _dtypes_of(self)}
        name = "CPU" if self.device.type == "cpu" else self.hardware.name
        return (
            f"{name}: UNet {names[self.unet_dtype]}, "
            f"VAE {names[self.vae_dtype]} on {self.vae_device.type}, "
            f"text encoders {names[self.text_encoder_dtype]} on {self.text_encoder_device.type}"
        )


def _dtypes_of(policy: DevicePolicy) -> set[torch.dtype]:
    return {policy.unet_dtype, policy.vae_dtype, policy.text_encoder_dtype}


def _fast_dtype(kind: str, hardware: Hardware) -> torch.dtype:
    """The fastest precision that is safe for a diffusion network on this kind of device."""
    if kind == "cpu":
        return torch.bfloat16 if hardware.cpu_bf16 else torch.float32
    return torch.bfloat16 if hardware.bf16 else torch.float16


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now; on a CPU, the memory that is available."""
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        free, total = module.mem_get_info(device)
        reserved = module.memory_reserved(device)
        if device.type == "cuda":  # PyTorch may have been told to leave some to others
            share = torch.cuda.get_per_process_memory_fraction(device)
            free = min(free, int(share * total) - reserved)
        return free + reserved - module.memory_allocated(device)
    return available_ram()


def soft_empty_cache(device: torch.device) -> None:
    """Give memory that PyTorch keeps for reuse back to the device's driver; on CUDA that on the
    host, too, which is locked and so of no use to anybody else."""
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()
    host = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if device.type == "cuda" and host is not None:
        host()
