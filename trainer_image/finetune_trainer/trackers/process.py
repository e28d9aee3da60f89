"""The launcher's side of the tracker process: checks its requirements, starts it, and ends it within a time limit."""

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
# Time to send the last points. A tracker that does not answer delays the end by this time, once. One that refuses does not.
FLUSH_SECONDS = 30.0
# An interrupted pod has little time, and its run continues later.
_FLUSH_INTERRUPTED_SECONDS = 3.0
_PACKAGES: Mapping[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
# Environment variables that the trackers do not get: they do not need the token of the Hub.
_WITHHELD_VARIABLES = (names.ENV_HUB_TOKEN,)
# The trackers' own retries are short, because Delivery retries and sends the missing points.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_SILENT": "true",
    "DO_NOT_TRACK": "true",
}


def check(logging_block: Logging, environ: Mapping[str, str]) -> None:
    """Raise FineTuneError for a tracker whose library is not installed, or whose server address is not set."""
    for number, name in enumerate(logging_block.report_to or ()):
        field = f"spec.logging.reportTo[{number}]: {name}"
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field} needs the package {_PACKAGES[name]}, which is not installed here: "
                "pip install 'finetune-operator[tracking]', or leave it out",
            )
        if name == "mlflow" and not environ.get("MLFLOW_TRACKING_URI"):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field} needs the address of a server: set MLFLOW_TRACKING_URI in spec.pod.env (or in the environment of "
                "`finetune run`)",
            )


class TrackerProcess:
    """Tracker process of one attempt. output: file for its log; None for the standard error of this process."""

    def __init__(self, config: RunConfig, state: RunState, environ: Mapping[str, str], output: IO[bytes] | None) -> None:
        run_file = state.directory / "trackers.json"
        write_atomically(run_file, config.model_dump_json(by_alias=True, exclude_none=True))
        environment = {name: value for name, value in environ.items() if name not in _WITHHELD_VARIABLES}
        environment |= {name: value for name, value in _ENVIRONMENT.items() if name not in environ}
        environment[names.ENV_RUN_FILE] = str(run_file)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer.trackers"], env=environment, stdin=subprocess.PIPE, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip

    def finish(self, outcome: Outcome) -> None:
        """Let the process send the remaining points within a time limit, and end it."""
        seconds = _FLUSH_INTERRUPTED_SECONDS if outcome == "Interrupted" else FLUSH_SECONDS + 2
        assert self._process.stdin
        with contextlib.suppress(OSError):  # the process has already ended
            self._process.stdin.write(f"{outcome}\n".encode())
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("the trackers did not accept the last metrics within %.0f s: they are left out", seconds)
        with contextlib.suppress(ProcessLookupError):  # includes processes that its libraries started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def run_trackers(
    config: RunConfig, state: RunState, output: IO[bytes] | None, is_first_pod: bool
) -> Iterator[Callable[[Outcome], None]]:
    """Run the trackers of a job during the context. Yield a function to set the outcome, which is Failed by default.

    is_first_pod: whether this is the first pod of the attempt. Only this pod runs the trackers. Raises FineTuneError before
    anything starts if a tracker can't be used.
    """
    if not is_first_pod or not config.spec.logging.report_to:
        yield lambda _: None
        return
    check(config.spec.logging, os.environ)
    trackers = TrackerProcess(config, state, os.environ, output)
    outcome: list[Outcome] = ["Failed"]
    try:
        yield outcome.append
    finally:
        trackers.finish(outcome[-1])
