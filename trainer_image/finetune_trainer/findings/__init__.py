"""Findings about a training. All functions are pure; finetune_api/findings.py has the thresholds and what to try.

record.py holds the values that findings are computed from, and ``find``, which runs all checks.
"""

from finetune_api.status import Finding
from finetune_trainer.data.report import DataReport
from finetune_trainer.findings import course, data, evaluation
from finetune_trainer.findings.record import Record, run_checks


def find(record: Record) -> list[Finding]:
    """Return all findings about a training so far, the worst first."""
    return run_checks(record, (*data.CHECKS, *evaluation.CHECKS, *course.CHECKS))


def find_in_data(task: str, report: DataReport) -> list[Finding]:
    """Return the findings that are known before the training."""
    return run_checks(Record(task, report), data.CHECKS)
