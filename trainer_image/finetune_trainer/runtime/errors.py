"""Converts any exception to a failure with a reason and one sentence."""

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import torch

from finetune_api.quantities import format_bytes
from finetune_api.reasons import REASONS, FineTuneError, Reason
from finetune_api.status import Failure
from finetune_trainer.runtime.device import gpu_name
from finetune_trainer.runtime.disk import error_chain, is_disk_full_error, is_shared_memory_error

# Parts of the error texts of torch's backends if a peer is gone. Such an error is always a consequence, never the cause.
_PEER_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "tcpstore", "broken pipe")
# Parts of the error texts if a peer is connected but does not respond in time: also a consequence, with another reason.
_PEER_LATE = ("timed out", "timeout")
_TRACEBACK_LINES = 12
# Parts of the texts of torch's out-of-memory errors that have no exception class of their own.
_NO_MEMORY = "can't allocate memory"
_NO_GPU_MEMORY = ("out of memory", "cublas_status_alloc_failed")
# Parts of CUDA's errors if the GPU, its memory, its links or its driver failed. Code can cause the last four of them, too.
_GPU_FAILED = (
    *("uncorrectable", "hardware stack error", "gpu is lost", "fallen off the bus", "busy or unavailable", "not yet initialized"),
    *("unknown error", "illegal memory access", "illegal instruction", "unspecified launch failure"),
)
_NO_KERNELS = "no kernel image is available"
# NCCL says what failed after this. In front of it stands only the kind of the error.
_NCCL_DETAIL = "last error:"
# Part of that for RDMA in a pod that may not lock enough memory.
_NO_RDMA_MEMORY = "ibv_reg_mr"
# Part of torch's error if a process that loads data was killed. An exception in such a process has another text.
_LOADER_ENDED = "dataloader worker (pid"
_SHARED_MEMORY_DIR = "/dev/shm"  # noqa: S108 - a name in a message


def _classify(error: BaseException) -> tuple[Reason, str]:
    for link in error_chain(error):
        text = str(link)
        if isinstance(link, FineTuneError):
            return link.reason, link.message
        if _LOADER_ENDED in text.lower() and _LOADER_ENDED in str(link.__cause__).lower():
            continue  # "exited unexpectedly", caused by an error that names the signal
        if (memory := _classify_memory(link)) is not None:
            return memory
        if isinstance(link, BrokenProcessPool) or _LOADER_ENDED in text.lower():
            return Reason.WORKER_DIED, f"a process that prepares data ended: {text.strip()}"
        if is_disk_full_error(link):
            return Reason.DISK_FULL, f"the disk is full: {text}"
        if (gpu := _classify_gpu(link)) is not None:
            return gpu
        if isinstance(link, torch.distributed.DistError) or (
            isinstance(link, RuntimeError) and any(sign in text.lower() for sign in _PEER_LOST)
        ):
            first_line = _nccl_detail(text) or (text.splitlines() or [type(link).__name__])[0]
            if any(sign in first_line.lower() for sign in _PEER_LATE):
                return Reason.COLLECTIVE_TIMEOUT, "another process of the job did not respond in time: " + first_line
            return Reason.COLLECTIVE_FAILED, "another process of the job is gone: " + first_line
    return Reason.CODE_ERROR, f"{type(error).__name__}: {error}"


def _classify_gpu(link: BaseException) -> tuple[Reason, str] | None:
    """Return reason and message if a GPU failed, or if it or its network can't do what the image needs."""
    text = str(link)
    if not isinstance(link, RuntimeError) or not any(maker in text.lower() for maker in ("cuda", "nccl", "hip error")):
        return None
    detail = _nccl_detail(text) or (text.splitlines() or [""])[0]
    if _NO_KERNELS in text:
        message = (
            f"torch {torch.__version__} of this image has no kernels for {_gpu()}: build the trainer image with a torch for an "
            "earlier CUDA version (CUDA 13 has none for Volta and older), or use other GPUs"
        )
        return Reason.CONFIGURATION_ERROR, message
    if _NO_RDMA_MEMORY in detail:
        message = (
            f"NCCL can't register memory for RDMA ({detail}): allow the pods to lock memory (docs/tuning.md, RDMA), or set "
            "NCCL_IB_DISABLE=1 in spec.pod.env, which is slower"
        )
        return Reason.CONFIGURATION_ERROR, message
    if any(sign in detail.lower() for sign in _GPU_FAILED):
        return Reason.GPU_FAILED, f"{_gpu()} failed: {detail}"
    return None


def _gpu() -> str:
    try:
        return gpu_name() or "the GPU"
    except RuntimeError:  # it no longer answers
        return "the GPU"


def _nccl_detail(text: str) -> str:
    """Return the last line of NCCL's own explanation, or an empty text if there is none."""
    found = text.lower().find(_NCCL_DETAIL)
    lines = text[found + len(_NCCL_DETAIL) :].strip().splitlines() if found >= 0 else []
    return lines[-1].strip() if lines else ""


@contextlib.contextmanager
def model_must_fit() -> Iterator[None]:
    """Raise ModelTooLarge for a GPU that runs out of memory here, where no forward pass has begun: smaller ones do not help."""
    try:
        yield
    except Exception as error:
        reason, message = _classify(error)
        if reason is not Reason.OUT_OF_GPU_MEMORY:
            raise
        raise FineTuneError(Reason.MODEL_TOO_LARGE, f"the model does not fit the GPU: {message.partition(': ')[2]}") from error


def _classify_memory(link: BaseException) -> tuple[Reason, str] | None:
    """Return reason and message if the memory of the GPU or of the machine was not enough."""
    text = str(link)
    if isinstance(link, torch.OutOfMemoryError):
        return Reason.OUT_OF_GPU_MEMORY, "the GPU's memory is not enough for this micro-batch: " + text.splitlines()[0]
    if isinstance(link, RuntimeError) and "cuda" in text.lower() and any(sign in text.lower() for sign in _NO_GPU_MEMORY):
        return Reason.OUT_OF_GPU_MEMORY, "the GPU's memory is not enough: " + text.splitlines()[0]
    if isinstance(link, MemoryError) or (isinstance(link, RuntimeError) and _NO_MEMORY in text):
        return Reason.OUT_OF_MEMORY, "the machine's memory is not enough"
    if is_shared_memory_error(link):
        last_line = text.strip().splitlines()[-1]  # an error of a process that loads data has its whole traceback as its text
        return Reason.OUT_OF_MEMORY, f"{_SHARED_MEMORY_DIR}{_size_of(_SHARED_MEMORY_DIR)} is full: {last_line}"
    return None


def _size_of(mount: str) -> str:
    with contextlib.suppress(OSError):
        return f" ({format_bytes(shutil.disk_usage(mount).total)})"
    return ""


def describe(error: BaseException, rank: int, node: str | None) -> tuple[Failure, bool]:
    """Return the failure to report, and whether it is only a symptom of another process's failure.

    The traceback is kept only for an error that the user can't fix. For all others one sentence is enough.
    """
    reason, message = _classify(error)
    lines = "".join(traceback.format_exception(error)).strip().splitlines()[-_TRACEBACK_LINES:]
    failure = Failure(
        reason=reason,
        message=message[:1000],
        hint=REASONS[reason].hint,
        rank=rank,
        node=node,
        traceback="\n".join(lines) if reason is Reason.CODE_ERROR else None,
    )
    return failure, REASONS[reason].symptom
