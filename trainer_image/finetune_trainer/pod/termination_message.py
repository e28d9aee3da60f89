"""Computes what a pod ends with: the exit code, and the termination message with the final report."""

from collections.abc import Iterator

from finetune_api import names
from finetune_api.reasons import REASONS, Reason
from finetune_api.wire import Report

_SHORT_CHARACTERS = 80  # characters of a sample if the message is too long


def exit_code(report: Report) -> int:
    """Return the exit code of the pod, for readers that can't see the termination message."""
    if report.phase == "Succeeded":
        return names.EXIT_SUCCEEDED
    if report.phase == "Interrupted":
        return names.EXIT_INTERRUPTED
    may_retry = report.failure is None or REASONS[Reason(report.failure.reason)].budget is not None
    return names.EXIT_FAILED if may_retry else names.EXIT_REFUSED


def termination_message(report: Report) -> str:
    """Return the final report as JSON, short enough for Kubernetes. Parts are left out until it is."""
    texts = (shorter.model_dump_json(by_alias=True, exclude_none=True) for shorter in _shortened(report))
    return next(text for text in texts if len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES)


def _shortened(report: Report) -> Iterator[Report]:
    """Yield the report, then shorter ones: with short samples, fewer samples, one finding, no traceback, the outcome only."""
    yield report
    short = [
        sample.model_copy(
            update={"text": sample.text[:_SHORT_CHARACTERS], "answer": sample.answer and sample.answer[: 2 * _SHORT_CHARACTERS]}
        )
        for sample in report.samples or ()
    ]
    for count in range(len(short), 0, -1):
        yield report.model_copy(update={"samples": short[:count]})
    report = report.model_copy(update={"samples": None})
    yield report
    report = report.model_copy(update={"findings": report.findings and report.findings[:1]})
    yield report
    failure = report.failure and report.failure.model_copy(update={"traceback": None})
    yield report.model_copy(update={"failure": failure})
    for characters in (1000, 300):  # a character may take six bytes
        failure = failure and failure.model_copy(update={"message": failure.message[:characters]})
        yield Report(attempt=report.attempt, phase=report.phase, step=report.step, failure=failure)
