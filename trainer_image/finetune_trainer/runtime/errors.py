"""From any exception to a named failure with one sentence."""

import traceback

import torch

from finetune_api.reasons import VERDICTS, FineTuneError, Reason
from finetune_api.status import Failure
from finetune_trainer.runtime.disk import chain, is_full

# How torch's backends speak of a peer that went away: never the cause, always a consequence.
_PEER_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "tcpstore", "broken pipe")
# Of these, the peer that did not come, though its connection is there: the same, but worth to be told apart.
_PEER_LATE = ("timed out", "timeout")
_TRACEBACK_LINES = 12
# How torch says that memory ran out where it raises no error of its own for it.
_NO_MEMORY = "can't allocate memory"
_NO_GPU_MEMORY = ("out of memory", "cublas_status_alloc_failed")


def _classify(error: BaseException) -> tuple[Reason, str]:
    for link in chain(error):
        text = str(link)
        if isinstance(link, FineTuneError):
            return link.reason, link.message
        if isinstance(link, torch.OutOfMemoryError):
            return Reason.OUT_OF_GPU_MEMORY, "the GPU's memory is not enough for this micro-batch: " + text.splitlines()[0]
        if isinstance(link, RuntimeError) and "cuda" in text.lower() and any(sign in text.lower() for sign in _NO_GPU_MEMORY):
            return Reason.OUT_OF_GPU_MEMORY, "the GPU's memory is not enough: " + text.splitlines()[0]
        if isinstance(link, MemoryError) or (isinstance(link, RuntimeError) and _NO_MEMORY in text):
            return Reason.OUT_OF_MEMORY, "the machine's memory is not enough"
        if is_full(link):
            return Reason.DISK_FULL, f"the disk is full: {text}"
        if isinstance(link, torch.distributed.DistError) or (
            isinstance(link, RuntimeError) and any(sign in text.lower() for sign in _PEER_LOST)
        ):
            said = (text.splitlines() or [type(link).__name__])[0]
            if any(sign in said.lower() for sign in _PEER_LATE):
                return Reason.COLLECTIVE_TIMEOUT, "another process of the job did not come in time: " + said
            return Reason.COLLECTIVE_FAILED, "another process of the job went away: " + said
    return Reason.CODE_ERROR, f"{type(error).__name__}: {error}"


def describe(error: BaseException, rank: int, node: str | None) -> tuple[Failure, bool]:
    """The failure to report, and whether it is only the symptom of another process's failure.

    The traceback is kept only where the cause is not the user's to mend: for those one sentence is the whole answer.
    """
    reason, message = _classify(error)
    lines = "".join(traceback.format_exception(error)).strip().splitlines()[-_TRACEBACK_LINES:]
    failure = Failure(
        reason=reason,
        message=message[:1000],
        hint=VERDICTS[reason].hint,
        rank=rank,
        node=node,
        traceback="\n".join(lines) if reason is Reason.CODE_ERROR else None,
    )
    return failure, VERDICTS[reason].symptom
