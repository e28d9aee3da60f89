"""The last word of a pod: its exit code and the termination message."""

from collections.abc import Iterator

from finetune_api import names
from finetune_api.reasons import VERDICTS, Reason
from finetune_api.wire import Report

_SHORT = 80  # letters of a sample where there is little room


def exit_code(report: Report) -> int:
    """Exit code of the pod, for those who can't read the termination message."""
    if report.phase == "Succeeded":
        return names.EXIT_SUCCEEDED
    if report.phase == "Interrupted":
        return names.EXIT_INTERRUPTED
    retry = report.failure is None or VERDICTS[Reason(report.failure.reason)].retry
    return names.EXIT_FAILED if retry else names.EXIT_REFUSED


def termination_message(report: Report) -> str:
    """The last word as JSON, short enough for Kubernetes: what can be long is cut first."""
    texts = (shorter.model_dump_json(by_alias=True, exclude_none=True) for shorter in _ever_shorter(report))
    return next(text for text in texts if len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES)


def _ever_shorter(report: Report) -> Iterator[Report]:
    """The report; with samples cut, and ever fewer of them; without a traceback; with nothing but how it ended."""
    yield report
    short = [
        sample.model_copy(update={"text": sample.text[:_SHORT], "answer": sample.answer and sample.answer[: 2 * _SHORT]})
        for sample in report.samples or ()
    ]
    for count in range(len(short), 0, -1):
        yield report.model_copy(update={"samples": short[:count]})
    report = report.model_copy(update={"samples": None})
    yield report
    failure = report.failure and report.failure.model_copy(update={"traceback": None})
    yield report.model_copy(update={"failure": failure})
    for letters in (1000, 300):  # a letter may take six bytes
        failure = failure and failure.model_copy(update={"message": failure.message[:letters]})
        yield Report(attempt=report.attempt, phase=report.phase, step=report.step, failure=failure)
