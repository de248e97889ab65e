import errno
from dataclasses import replace

import pytest
import torch

from ldm_patched.modules.errors import CorruptModelFile, NotFinite
from ldm_patched.modules.utils import sound_shapes
from modules.spec.errors import ConfigError, DiskFull, OutOfMemory
from modules.worker.failures import failure_of, is_device_lost, is_out_of_memory
from modules.worker.studio import Studio


@pytest.mark.parametrize("error", [DiskFull("Full."), CorruptModelFile("Cut."), NotFinite("NaN.")])
def test_typed_errors_keep_their_sentence(error):
    assert failure_of(error) == (error.code, str(error))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OutOfMemory("Too large."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_has_many_faces(error):
    assert is_out_of_memory(error)
    assert failure_of(error).code == "E_OOM"
    assert not is_device_lost(error)


def test_a_device_that_is_not_there_is_a_setting_to_mend(settings):
    """The page shows the sentence of a StudioError that keeps a worker from starting."""
    studio = Studio(replace(settings, device_flags={"gpu_device_id": 10_000}))
    with pytest.raises(ConfigError, match="There is no graphics device number 10000"):
        _ = studio.policy
    studio.close()


def test_torch_really_raises_what_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


def test_a_full_computer_is_not_called_a_damaged_file():
    with pytest.raises(RuntimeError) as caught, sound_shapes("model.safetensors"):
        torch.empty(2**50)
    assert failure_of(caught.value).code == "E_OOM"
    with pytest.raises(CorruptModelFile), sound_shapes("model.safetensors"):
        torch.empty(2, 3).view(7)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "HIP error: invalid device function",
    ],
)
def test_a_device_that_this_pytorch_is_not_made_for_is_told(text):
    error = RuntimeError(text)
    assert is_device_lost(error)
    assert "--always-cpu" in failure_of(error).message


def test_an_unknown_error_tells_no_details():
    failure = failure_of(KeyError("/home/someone/secret"))
    assert failure.code == "E_INTERNAL"
    assert "secret" not in failure.message


def test_a_lost_device_is_recognised():
    for text in ("CUDA error: device-side assert triggered", "HIP error: an illegal access",
                 "XPU error: device lost"):  # fmt: skip
        assert is_device_lost(RuntimeError(text))
        assert "is being restarted" in failure_of(RuntimeError(text)).message
    assert not is_device_lost(RuntimeError("shapes do not match"))
    assert not is_device_lost(OSError("CUDA error"))
