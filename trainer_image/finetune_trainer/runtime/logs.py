"""What a process writes to its log: lines for people or one JSON object each, and in every line who speaks.

Whatever else speaks goes the same way: libraries and Python's own warnings, from warnings on.
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
# They bring a handler of their own, whose lines say neither when nor who.
_WITH_HANDLERS = {"transformers": logging.ERROR, "datasets": logging.WARNING, "huggingface_hub": logging.WARNING}
# About the code of libraries, which nobody who reads a job's log can change.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A process of a job. name: as a line for people has it, for example "rank 0" or "launcher"."""

    name: str
    job: str
    attempt: int
    rank: int | None = None


class TextFormatter(logging.Formatter):
    """2026-01-31T12:00:00Z rank 0 INFO step 10 of 40: …"""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__(f"%(asctime)s {speaker.name.replace('%', '%%')} %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the base class's name
        """RFC 3339 in UTC, whole seconds."""
        return _time(record, "seconds")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, job, attempt, rank (or process, of what is no rank), logger, message, and its figures.

    Figures are what a log call gives as ``extra={"figures": {…}}``; none takes the place of the other fields.
    """

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        who = {"process": speaker.name} if speaker.rank is None else {"rank": speaker.rank}
        self._speaker = {"job": speaker.job, "attempt": speaker.attempt, **who}

    def format(self, record: logging.LogRecord) -> str:
        """Without a line break, whatever the message holds."""
        figures: dict[str, Any] = getattr(record, "figures", {})
        line = {
            **{name: value for name, value in figures.items() if not isinstance(value, float) or math.isfinite(value)},
            "time": _time(record, "milliseconds"),
            "level": record.levelname,
            **self._speaker,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _time(record: logging.LogRecord, precision: str) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def speaker_of(config: RunConfig, name: str, rank: int | None = None) -> Speaker:
    """A process of the job of a run file."""
    return Speaker(name, config.name, config.attempt, rank)


def configure(speaker: Speaker, log_format: LogFormat) -> None:
    """Everything that is logged in this process, to standard error. Ranks other than 0 speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(speaker) if log_format == "JSON" else TextFormatter(speaker))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_OURS).setLevel(logging.WARNING if speaker.rank else logging.INFO)
    adopt_libraries()

    logging.captureWarnings(True)
    warnings.formatwarning = _one_line
    for kind in _FOR_DEVELOPERS:
        warnings.simplefilter("ignore", kind)
    if speaker.rank:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)  # rank 0 says the same


def adopt_libraries() -> None:
    """Take the handlers of libraries that were imported meanwhile away, so that their lines are like all others."""
    for name, level in _WITH_HANDLERS.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(level)


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"
