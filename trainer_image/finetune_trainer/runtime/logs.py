"""Configures the logging of a process: text lines, or one JSON object per line. Every line names the process.

Libraries and Python's own warnings use the same format, from level WARNING on.
"""

import dataclasses
import datetime
import json
import logging
import math
import sys
import warnings
from typing import Any

from finetune_api.spec import LogFormat
from finetune_api.wire import RunConfig

_OURS = "finetune_trainer"
# These libraries install their own handlers, whose lines have neither the time nor the process.
_WITH_HANDLERS = {"transformers": logging.ERROR, "datasets": logging.WARNING, "huggingface_hub": logging.WARNING}
# These warnings are about the code of libraries, which a reader of a job's log can't change.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)


@dataclasses.dataclass(frozen=True)
class LogSource:
    """A process of a job. name: in text lines, for example "rank 0" or "launcher"."""

    name: str
    job: str
    attempt: int
    rank: int | None = None


class TextFormatter(logging.Formatter):
    """Formats a record as: 2026-01-31T12:00:00Z rank 0 INFO step 10 of 40: …"""

    def __init__(self, source: LogSource) -> None:
        super().__init__(f"%(asctime)s {source.name.replace('%', '%%')} %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the base class's name
        """Return the time as RFC 3339 in UTC, in whole seconds."""
        return _time(record, "seconds")


class JsonFormatter(logging.Formatter):
    """Formats a record as one object: time, level, job, attempt, rank (or process, without a rank), logger, message, metrics.

    A log call gives metrics as ``extra={"metrics": {…}}``. A metric never replaces one of the other fields.
    """

    def __init__(self, source: LogSource) -> None:
        super().__init__()
        who = {"process": source.name} if source.rank is None else {"rank": source.rank}
        self._source = {"job": source.job, "attempt": source.attempt, **who}

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, even if the message has line breaks."""
        metrics: dict[str, Any] = getattr(record, "metrics", {})
        line = {
            **{name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)},
            "time": _time(record, "milliseconds"),
            "level": record.levelname,
            **self._source,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _time(record: logging.LogRecord, precision: str) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def log_source(config: RunConfig, name: str, rank: int | None = None) -> LogSource:
    """Return the log source of a process. config: the content of the run file."""
    return LogSource(name, config.name, config.attempt, rank)


def configure(source: LogSource, log_format: LogFormat) -> None:
    """Send all log records of this process to standard error. Ranks other than 0 log from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(source) if log_format == "JSON" else TextFormatter(source))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_OURS).setLevel(logging.WARNING if source.rank else logging.INFO)
    remove_library_handlers()

    logging.captureWarnings(True)
    warnings.formatwarning = _format_warning
    for kind in _FOR_DEVELOPERS:
        warnings.simplefilter("ignore", kind)
    if source.rank:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)  # rank 0 logs the same warnings


def remove_library_handlers() -> None:
    """Remove the handlers of the libraries that are imported by now, so that their lines have the common format."""
    for name, level in _WITH_HANDLERS.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(level)


def _format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"
