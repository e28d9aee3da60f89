"""The launcher's side of the trackers' process: looks whether all it needs is there, starts it, and ends it within a bound."""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Literal

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Logging, Tracker
from finetune_api.wire import RunConfig
from finetune_trainer.runtime.state import RunState, write_atomically

log = logging.getLogger(__name__)

Outcome = Literal["Succeeded", "Failed", "Interrupted"]
# For what is on its way in the end. A tracker that does not answer costs this once; one that refuses, nothing.
FLUSH_SECONDS = 30.0
# A pod that is asked to end has little time, and its run goes on later.
_FLUSH_INTERRUPTED_SECONDS = 3.0
_PACKAGES: Mapping[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
# Of the rest of the environment: a key of the Hub is none of their business.
_NOT_FOR_TRACKERS = (names.ENV_HUB_TOKEN,)
# A server that does not answer is tried again by us, with what was missed.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_SILENT": "true",
    "DO_NOT_TRACK": "true",
}


def check(logging_block: Logging, environ: Mapping[str, str]) -> None:
    """Raise FineTuneError for a tracker whose library is not installed, or which nobody said where to find."""
    for number, name in enumerate(logging_block.report_to or ()):
        field = f"spec.logging.reportTo[{number}]: {name}"
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field} needs the package {_PACKAGES[name]}, which is not installed here: pip install 'finetune[tracking]', or "
                "leave it out",
            )
        if name == "mlflow" and not environ.get("MLFLOW_TRACKING_URI"):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field} needs the address of a server: set MLFLOW_TRACKING_URI in spec.pod.env (or in the environment of "
                "`finetune run`)",
            )


class TrackerProcess:
    """Follows the history of one attempt. output: where it logs to, this process's own standard error if None."""

    def __init__(self, config: RunConfig, state: RunState, environ: Mapping[str, str], output: IO[bytes] | None) -> None:
        run_file = state.directory / "trackers.json"
        write_atomically(run_file, config.model_dump_json(by_alias=True, exclude_none=True))
        environment = {name: value for name, value in environ.items() if name not in _NOT_FOR_TRACKERS}
        environment |= {name: value for name, value in _ENVIRONMENT.items() if name not in environ}
        environment[names.ENV_RUN_FILE] = str(run_file)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer.trackers"], env=environment, stdin=subprocess.PIPE, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip

    def finish(self, outcome: Outcome) -> None:
        """Let it send what is left, within a bound, and end it."""
        seconds = _FLUSH_INTERRUPTED_SECONDS if outcome == "Interrupted" else FLUSH_SECONDS + 2
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it is gone already
            self._process.stdin.write(f"{outcome}\n".encode())
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("the trackers did not take the last figures within %.0f s: they are left out", seconds)
        with contextlib.suppress(ProcessLookupError):  # with what its libraries started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def beside(config: RunConfig, state: RunState, output: IO[bytes] | None, first: bool) -> Iterator[Callable[[Outcome], None]]:
    """Have the trackers of a job follow what happens inside; what is yielded takes how it ended, Failed if it is not called.

    first: whether this is the first pod of the gang; one pod speaks for all.
    Raises FineTuneError before anything is started where one can't be used.
    """
    if not first or not config.spec.logging.report_to:
        yield lambda _: None
        return
    check(config.spec.logging, os.environ)
    trackers = TrackerProcess(config, state, os.environ, output)
    outcome: list[Outcome] = ["Failed"]
    try:
        yield outcome.append
    finally:
        trackers.finish(outcome[-1])
