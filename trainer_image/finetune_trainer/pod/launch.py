"""What a pod runs: starts the workers, takes the signals, serves the telemetry port, publishes, and has the last word."""

import concurrent.futures
import contextlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, NoReturn

from finetune_api import names
from finetune_api.reasons import VERDICTS, FineTuneError, Reason
from finetune_api.status import Failure, Published
from finetune_api.wire import Report, RunConfig
from finetune_trainer.hub.cache import use_shared_cache
from finetune_trainer.output.directory import Output
from finetune_trainer.pod import processes as workers
from finetune_trainer.pod.interruption import Interruption
from finetune_trainer.pod.server import PushMetrics, build_registry, serve
from finetune_trainer.pod.stall import Watchdog, autopsy
from finetune_trainer.pod.termination_message import exit_code, termination_message
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.state import RunState, write_atomically
from finetune_trainer.trackers import process as trackers

log = logging.getLogger("finetune_trainer.pod.launch")  # not __name__: this runs as __main__

_POLL_SECONDS = 0.1


class Launcher:
    """Runs one attempt on this machine. ``run`` returns its last word and never raises for what a user can cause.

    grace_seconds: that the pod has to end when it is asked to; None where nobody kills it from outside.
    """

    def __init__(self, config: RunConfig, gang: workers.Gang, state: RunState, grace_seconds: float | None = None) -> None:
        self.config = config
        self.gang = gang
        self.state = state
        self.abandoned = False  # a push is still under way in a thread, which nobody is to wait for
        self._output = Output(pathlib.Path(config.output))
        self._own: dict[str, object] = {}
        self._interruption = Interruption(grace_seconds)
        self._watchdog = Watchdog(state, config.spec.recovery.stall_timeout_seconds)
        self.registry = build_registry(state)
        self._pushes = PushMetrics(self.registry, config.namespace, config.name)

    def report(self) -> Report:
        """The report for /progress: the workers' newest, with what the launcher alone knows on top."""
        waiting = f"waiting for {self.gang.rendezvous_host}" if self.gang.index else "starting the training processes"
        report = self.state.read_report() or Report(attempt=self.config.attempt, phase="Initializing", message=waiting)
        return report.model_copy(update={"in_place": self.state.read_ledger().in_place, **self._own})

    def request_stop(self) -> None:
        """Ask for a checkpoint and an end; called again, end at once. Carried out by the loop: a signal handler must not wait."""
        self._interruption.ask()
        self.state.request_stop()

    def run(self, worker_output: IO[bytes] | None = None, watch: Callable[[Report], None] | None = None) -> Report:
        """Train unless that is done already, publish, and return the last word.

        worker_output: where the workers' output goes, this process's own if None. watch: called a few times a second.
        """
        try:
            if self._trained_before():
                log.info("the output directory holds the finished model already: nothing to train")
            else:
                with trackers.beside(self.config, self.state, worker_output, self.gang.index == 0) as done:
                    ended = self._train(worker_output, watch)
                    done("Succeeded" if ended is None else "Interrupted" if ended.phase == "Interrupted" else "Failed")
                if ended:
                    return ended
                if self.gang.index == 0:
                    # Imported late: drawing takes a second's imports, which the workers need not wait for.
                    from finetune_trainer.report.page import write_at_end

                    write_at_end(self._output.directory)
            if self.gang.index == 0 and not self._publish(watch):
                return self._interruption.last_word(self.report())
            return self.report().model_copy(update={"phase": "Succeeded", "message": None})
        except FineTuneError as error:
            failure = Failure(reason=error.reason, message=error.message, hint=VERDICTS[error.reason].hint)
            return self._failed(failure)

    def _trained_before(self) -> bool:
        finished = self._output.finished_report() if self._output.directory.is_dir() else None
        if finished is None and self.config.adopted and self._output.holds_unfinished_work_of_another(self.config):
            claim = names.output_claim_name(self.config.name)
            raise FineTuneError(
                Reason.OUTPUT_CONFLICT,
                f"the claim {claim} holds the unfinished training of an earlier job: delete the claim if it is not "
                f"needed, choose another metadata.name, or write output: {{claim: {{claimName: {claim}}}}} to go on from it",
            )
        if finished is None:
            if self.gang.index == 0:
                self._output.make_way(self.config)
            return False
        self._output.claim(self.config)  # refuses the model of another spec
        self.state.write_report(finished.model_copy(update={"attempt": self.config.attempt}))
        return True

    def _train(self, worker_output: IO[bytes] | None, watch: Callable[[Report], None] | None) -> Report | None:
        """Run the workers to their end. Returns the last word of an attempt that didn't finish, None when it did."""
        run_file = self.state.directory / names.RUN_FILE_NAME
        write_atomically(run_file, self.config.model_dump_json(by_alias=True, exclude_none=True))
        env = workers.environment(self.config, os.environ, run_file, self.state, workers.usable_cpus())
        process = workers.start(workers.command(self.config, self.gang), env, worker_output)
        try:
            return self._outcome(*self._watch(process, worker_output, watch))
        finally:
            if process.poll() is None:  # an error of ours must not leave workers behind
                workers.kill(process, self.state)

    def _outcome(self, stalled: Failure | None, code: int) -> Report | None:
        """The last word after the last round; None when the training is through."""
        report = self.report()
        if code == 0 and report.phase in ("Succeeded", "Publishing"):
            return None
        failure = stalled or self.state.read_ledger().end
        if report.phase == "Interrupted" or (self._interruption.asked and not stalled):
            return self._interruption.last_word(report)
        if failure is not None and failure.reason == Reason.INTERRUPTED:
            # Another attempt owns the output by now: this one ends without a word of its own.
            return report.model_copy(update={"phase": "Interrupted", "message": failure.message})
        return self._failed(failure or _gang_is_over(self.config.nodes, code))

    def _watch(
        self, process: "subprocess.Popen[bytes]", worker_output: IO[bytes] | None, watch: Callable[[Report], None] | None
    ) -> tuple[Failure | None, int]:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return None, process.wait(_POLL_SECONDS)
            self._watchdog.look()
            report = self.report()
            if self._interruption.is_hopeless(report, self._watchdog) or self._interruption.time_is_over():
                workers.kill(process, self.state)
            elif self._watchdog.is_stalled(report):
                idle, stage = self._watchdog.idle_seconds, self._watchdog.stage
                failure = autopsy(self.state, idle, stage, self.config.nodes, worker_output)
                workers.kill(process, self.state)
                return failure, process.wait()
            self._own = {"stalled": self._watchdog.warning(report)}
            if watch:
                watch(report)

    def _publish(self, watch: Callable[[Report], None] | None) -> bool:
        """Push the model where the spec says; False when the time was over before it was through."""
        spec = self.config.spec
        if spec.publish is None:
            return True
        self._own = {"phase": "Publishing", "message": f"pushing the model to {spec.publish.repository}"}
        if watch:
            watch(self.report())
        if spec.publish.merge_adapter and (self._output.model / "adapter_config.json").is_file():
            # Trained before, by a job that did not ask for it.
            from finetune_trainer.commands.finished import merge_finished

            merge_finished(self.config, self._output)
        # In a thread, as no push can be cut off from within.
        with_result: Future[Published] = Future()
        threading.Thread(target=_push, args=(with_result, self._output, self.config), name="push", daemon=True).start()
        started = time.monotonic()
        while not with_result.done():
            if self._interruption.time_is_over():
                self.abandoned = True
                return False
            concurrent.futures.wait([with_result], timeout=_POLL_SECONDS)
        try:
            published = with_result.result()
        except FineTuneError:
            self._pushes.failed()
            raise
        self._pushes.succeeded(time.monotonic() - started)
        self._own = {"published": published}
        log.info("published as %s, commit %s", published.url, published.commit)
        return True

    def _failed(self, failure: Failure) -> Report:
        complete = failure.model_copy(update={"node": failure.node or os.environ.get(names.ENV_NODE_NAME)})
        return self.report().model_copy(update={"phase": "Failed", "message": failure.message, "failure": complete})


def _push(result: "Future[Published]", output: Output, config: RunConfig) -> None:
    try:
        # Imported late: the Hub's client takes half a second, which the workers need not wait for.
        from finetune_trainer.publish import push as publish

        result.set_result(publish.push(output.model, config.spec, config.name))
    except BaseException as error:  # whatever it is, it is raised where it is waited for
        result.set_exception(error)


def _gang_is_over(nodes: int, code: int) -> Failure:
    """torchrun ended without a failure of ours: with several pods because another one ended, or that with the store is gone."""
    reason = Reason.COLLECTIVE_FAILED if nodes > 1 else Reason.WORKER_DIED
    message = "another pod of the job ended, or went away" if nodes > 1 else f"torchrun ended with exit code {code} by itself"
    return Failure(reason=reason, message=message, hint=VERDICTS[reason].hint)


def leave(code: int) -> NoReturn:
    """End this process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Entry point of the trainer image."""
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    logs.configure(logs.speaker_of(config, "launcher"), config.spec.logging.format)
    use_shared_cache(os.environ, config.spec)
    state = RunState(pathlib.Path(tempfile.mkdtemp(prefix="finetune-")))
    state.create()
    grace = config.spec.pod.termination_grace_period_seconds
    launcher = Launcher(config, workers.Gang.from_environment(), state, grace)
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
    if launcher.abandoned:
        leave(exit_code(report))
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
