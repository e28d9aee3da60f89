"""Every error gets a reason, and the reason says whether a retry can help."""

import errno
import os
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch.utils.data import DataLoader

from finetune_api.reasons import REASONS, FineTuneError, Reason
from finetune_trainer.loops.loader_process import end_on_lost_batch
from finetune_trainer.runtime.disk import is_caused_by_full_disk
from finetune_trainer.runtime.errors import describe, model_must_fit


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number), "/somewhere/model.safetensors")


def nccl(kind: str, detail: str) -> RuntimeError:
    return RuntimeError(f"NCCL error in: NCCLUtils.cpp:77, unhandled error\n{kind}: call failed.\nLast error:\n{detail}")


def wrapped(error: Exception) -> Exception:
    """Return the error of a library that has this error as its cause."""
    try:
        try:
            raise error
        except Exception as inner:
            raise OSError("Can't load the model") from inner
    except OSError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FineTuneError(Reason.DATA_ERROR, "row 7"), Reason.DATA_ERROR),
        (full(), Reason.DISK_FULL),
        (full(errno.EDQUOT), Reason.DISK_FULL),
        (wrapped(full()), Reason.DISK_FULL),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), Reason.DISK_FULL),
        (RuntimeError("PytorchStreamReader failed reading zip archive: at inline_container.cc:274"), Reason.CODE_ERROR),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            Reason.OUT_OF_MEMORY,
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), Reason.OUT_OF_GPU_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Reason.OUT_OF_GPU_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA`"), Reason.GPU_FAILED),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Reason.GPU_FAILED),
        (RuntimeError("CUDA error: device-side assert triggered"), Reason.CODE_ERROR),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), Reason.CONFIGURATION_ERROR),
        (nccl("ncclUnhandledCudaError", "Cuda failure 'uncorrectable NVLink error detected'"), Reason.GPU_FAILED),
        (nccl("ncclSystemError", "Call to ibv_reg_mr failed with error Cannot allocate memory"), Reason.CONFIGURATION_ERROR),
        (nccl("ncclRemoteError", "socketProgress: Connection closed by remote peer"), Reason.COLLECTIVE_FAILED),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:4711"), Reason.COLLECTIVE_FAILED),
        (
            RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv"),
            Reason.COLLECTIVE_TIMEOUT,
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), Reason.WORKER_DIED),
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), Reason.WORKER_DIED),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
                "shared memory. Please try to raise your shared memory limit."
            ),
            Reason.OUT_OF_MEMORY,
        ),
        (
            RuntimeError("unable to write to file </torch_7_8_9>: No space left on device (28)"),
            Reason.OUT_OF_MEMORY,
        ),
        (
            RuntimeError(
                "NCCL error: ncclSystemError. Last error:\nError while creating shared memory segment /dev/shm/nccl-bCKhrP "
                "(size 4194304), error: No space left on device (28)"
            ),
            Reason.OUT_OF_MEMORY,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Reason.CODE_ERROR),
    ],
)
def test_an_error_has_a_reason(error: Exception, reason: Reason) -> None:
    failure, _ = describe(error, 0, None)
    assert failure.reason == reason


def test_a_full_disk_is_found_as_the_cause_of_a_library_s_error() -> None:
    assert is_caused_by_full_disk(wrapped(full()))
    assert not is_caused_by_full_disk(wrapped(FileNotFoundError(errno.ENOENT, "no such file")))


def test_a_gpu_without_room_for_the_model_is_too_small_and_smaller_passes_are_not_tried() -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.00 GiB"
    with (
        pytest.raises(FineTuneError, match="the model does not fit the GPU: CUDA out of memory") as raised,
        model_must_fit(),
    ):
        raise torch.OutOfMemoryError(text)
    assert raised.value.reason is Reason.MODEL_TOO_LARGE
    assert not REASONS[Reason.MODEL_TOO_LARGE].retry
    with pytest.raises(ValueError, match="unlike"), model_must_fit():
        raise ValueError("unlike")


def test_nccl_s_own_explanation_is_in_the_message() -> None:
    failure, symptom = describe(nccl("ncclSystemError", "Call to connect failed: No route to host"), 0, "node-1")
    assert failure.message == "another process of the job is gone: Call to connect failed: No route to host"
    assert symptom


def _with_full_shared_memory(worker: int) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_21_39_2>: No space left on device (28)")

    torch.UntypedStorage._share_fd_cpu_ = fail  # type: ignore[method-assign,assignment]
    end_on_lost_batch(worker)


def test_a_loader_whose_shared_memory_is_full_ends_and_says_so() -> None:
    loader = DataLoader(range(4), num_workers=1, timeout=20, worker_init_fn=_with_full_shared_memory)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        next(iter(loader))
    failure, _ = describe(raised.value, 0, None)
    assert failure.reason == Reason.OUT_OF_MEMORY
    assert "/dev/shm" in failure.message
