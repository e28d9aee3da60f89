"""What a pod runs: starts the workers, takes the signals, serves the telemetry port, publishes, and has the last word."""

import contextlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import IO

from finetune_api import names
from finetune_api.reasons import VERDICTS, FineTuneError, Reason
from finetune_api.status import Failure
from finetune_api.wire import Report, RunConfig
from finetune_trainer import workers
from finetune_trainer.output import Output
from finetune_trainer.state import RunState, write_atomically
from finetune_trainer.telemetry import PushMetrics, build_registry, serve

log = logging.getLogger("finetune_trainer.launch")  # not __name__: this runs as __main__

_POLL_SECONDS = 0.1
_SHORT = 80  # letters of a sample where there is little room


class Launcher:
    """Runs one attempt on this machine. ``run`` returns its last word and never raises for what a user can cause."""

    def __init__(self, config: RunConfig, gang: workers.Gang, state: RunState) -> None:
        self.config = config
        self.gang = gang
        self.state = state
        self._output = Output(pathlib.Path(config.output))
        self._own: dict[str, object] = {}
        self._stop = threading.Event()
        self._kill = threading.Event()
        self.registry = build_registry(state)
        self._pushes = PushMetrics(self.registry, config.namespace, config.name)

    def report(self) -> Report:
        """The report for /progress: the workers' newest, with what the launcher alone knows on top."""
        report = self.state.read_report() or Report(
            attempt=self.config.attempt, phase="Initializing", message="starting the training processes"
        )
        return report.model_copy(update=self._own)

    def request_stop(self) -> None:
        """Ask for a checkpoint and an end; called again, end at once."""
        if self._stop.is_set():
            self._kill.set()  # carried out by the loop: a signal handler must not wait for a process
        self._stop.set()
        self.state.request_stop()

    def run(self, worker_output: IO[bytes] | None = None, watch: Callable[[Report], None] | None = None) -> Report:
        """Train unless that is done already, publish, and return the last word.

        worker_output: where the workers' output goes, this process's own if None. watch: called a few times a second.
        """
        try:
            if self._trained_before():
                log.info("the output directory holds the finished model already: nothing to train")
            else:
                interrupted = self._train(worker_output, watch)
                if interrupted:
                    return interrupted
            if self.gang.index == 0:
                self._publish(watch)
            return self.report().model_copy(update={"phase": "Succeeded", "message": None})
        except FineTuneError as error:
            failure = Failure(reason=error.reason, message=error.message, hint=VERDICTS[error.reason].hint)
            return self._failed(failure)

    def _trained_before(self) -> bool:
        finished = self._output.finished_report() if self._output.directory.is_dir() else None
        if finished is None and self.config.adopted:
            claim = names.output_claim_name(self.config.name)
            raise FineTuneError(
                Reason.OUTPUT_CONFLICT,
                f"the claim {claim} holds the output of an earlier job, and no finished model: delete the claim if it is not "
                f"needed, choose another metadata.name, or write output: {{claim: {{claimName: {claim}}}}} to go on from it",
            )
        if finished is None:
            return False
        self._output.claim(self.config)  # refuses the model of another spec
        self.state.write_report(finished.model_copy(update={"attempt": self.config.attempt}))
        return True

    def _train(self, worker_output: IO[bytes] | None, watch: Callable[[Report], None] | None) -> Report | None:
        """Run the workers to their end. Returns the last word of an attempt that didn't finish, None when it did."""
        if self.gang.index > 0 and not self._wait_for_rendezvous():
            return self._interrupted()
        run_file = self.state.directory / names.RUN_FILE_NAME
        write_atomically(run_file, self.config.model_dump_json(by_alias=True, exclude_none=True))
        env = workers.environment(self.config, os.environ, run_file, self.state, workers.usable_cpus())
        argv = workers.command(self.config, self.gang)
        process = workers.start(argv, env, worker_output)
        self._own = {}
        try:
            exit_code = self._watch(process, watch)
        finally:
            if process.poll() is None:  # an error of ours must not leave workers behind
                workers.kill(process)
        report = self.report()
        if exit_code == 0 and report.phase in ("Succeeded", "Publishing"):
            return None
        if report.phase == "Interrupted" or self._stop.is_set():
            return self._interrupted()
        return self._failed(self.state.root_failure() or _silent_death(exit_code))

    def _wait_for_rendezvous(self) -> bool:
        """Wait until the pod with index 0 listens; False when asked to stop before."""
        assert self.gang.rendezvous_host
        self._own = {"message": f"waiting for {self.gang.rendezvous_host}"}
        while not self._stop.wait(_POLL_SECONDS):
            with contextlib.suppress(OSError):
                socket.create_connection((self.gang.rendezvous_host, names.PORT_RENDEZVOUS), timeout=2).close()
                return True
        return False

    def _watch(self, process: "subprocess.Popen[bytes]", watch: Callable[[Report], None] | None) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
            report = self.report()
            nothing_to_save = self._stop.is_set() and report.phase == "Initializing"
            if nothing_to_save or self._kill.is_set():
                workers.kill(process)
            if watch:
                watch(report)

    def _publish(self, watch: Callable[[Report], None] | None) -> None:
        spec = self.config.spec
        if spec.publish is None:
            return
        self._own = {"phase": "Publishing", "message": f"pushing the model to {spec.publish.repository}"}
        if watch:
            watch(self.report())
        if spec.publish.merge_adapter and (self._output.model / "adapter_config.json").is_file():
            # Trained before, by a job that did not ask for it.
            from finetune_trainer.finished import merge_finished

            merge_finished(self.config, self._output)
        # Imported late: the Hub's client takes half a second, which the workers need not wait for.
        from finetune_trainer import publish

        started = time.monotonic()
        try:
            published = publish.push(self._output.model, spec, self.config.name)
        except FineTuneError:
            self._pushes.failed()
            raise
        self._pushes.succeeded(time.monotonic() - started)
        self._own = {"published": published}
        log.info("published as %s, commit %s", published.url, published.commit)

    def _interrupted(self) -> Report:
        report = self.report()
        message = report.message
        if report.phase == "Initializing":
            message = "stopped on request before the first step"
        elif report.phase != "Interrupted":  # killed by a second request, or while it evaluated
            message = f"stopped on request during step {report.step + 1}, without another checkpoint"
        return report.model_copy(update={"phase": "Interrupted", "message": message})

    def _failed(self, failure: Failure) -> Report:
        complete = failure.model_copy(update={"node": failure.node or os.environ.get(names.ENV_NODE_NAME)})
        return self.report().model_copy(update={"phase": "Failed", "message": failure.message, "failure": complete})


def _silent_death(exit_code: int) -> Failure:
    """Workers that ended without a word: killed from outside, or by a fault in native code."""
    how = f"by signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"
    return Failure(
        reason=Reason.WORKER_DIED,
        message=f"a training process ended {how} without a word, as it does when memory runs out or somebody kills it",
        hint=VERDICTS[Reason.WORKER_DIED].hint,
    )


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


def use_cache(environ: MutableMapping[str, str]) -> None:
    """Let the Hub's libraries keep what they fetch on the shared claim; where it can't be written, it only costs speed."""
    directory = environ.get(names.ENV_CACHE_DIR)
    if directory is None:
        return
    home = pathlib.Path(directory) / "huggingface"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        log.warning("the cache %s can't be written (%s): this pod fetches for itself", directory, error.strerror)
        return
    environ["HF_HOME"] = str(home)


def main() -> int:
    """Entry point of the trainer image."""
    logging.basicConfig(format="%(asctime)s launcher %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ", level=logging.INFO)
    logging.Formatter.converter = time.gmtime
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    use_cache(os.environ)
    state = RunState(pathlib.Path(tempfile.mkdtemp(prefix="finetune-")))
    state.create()
    launcher = Launcher(config, workers.Gang.from_environment(), state)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: launcher.request_stop())
    serve(names.PORT_TELEMETRY, launcher.registry, launcher.report)
    log.info("%s, attempt %d, pod %d of %d", config.name, config.attempt, launcher.gang.index, config.nodes)
    try:
        report = launcher.run()
    except Exception as error:  # the last word must be said whatever happens
        log.exception("the launcher itself failed")
        message = f"the launcher failed: {type(error).__name__}: {error}"[:1000]
        failure = Failure(reason=Reason.CODE_ERROR, message=message, hint=VERDICTS[Reason.CODE_ERROR].hint)
        report = Report(attempt=config.attempt, phase="Failed", message=message, failure=failure)
    if report.failure:
        log.error("%s: %s", report.failure.reason, report.failure.message)
    with contextlib.suppress(OSError):  # outside of a cluster there is no such file
        pathlib.Path(names.TERMINATION_LOG).write_text(termination_message(report))
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
