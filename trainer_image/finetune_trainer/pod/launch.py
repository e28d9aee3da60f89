"""The launcher of a pod: starts the workers, handles signals, serves telemetry, pushes the model, writes the final report."""

import concurrent.futures
import contextlib
import logging
import os
import pathlib
import secrets
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
from finetune_api.reasons import REASONS, FineTuneError, Reason
from finetune_api.status import Failure, Published
from finetune_api.wire import Report, RunConfig
from finetune_trainer.hub.cache import use_shared_cache
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.pod import processes
from finetune_trainer.pod.interruption import Interruption
from finetune_trainer.pod.log_tail import keep_log
from finetune_trainer.pod.memory_kills import MemoryKills, memory_failure
from finetune_trainer.pod.server import PushMetrics, build_registry, serve
from finetune_trainer.pod.stall import Watchdog, diagnose_stall
from finetune_trainer.pod.termination_message import exit_code, termination_message
from finetune_trainer.runtime import cgroup, logs
from finetune_trainer.runtime.cpus import usable_cpus
from finetune_trainer.runtime.state import RunState, write_atomically
from finetune_trainer.trackers.process import run_trackers

log = logging.getLogger("finetune_trainer.pod.launch")  # not __name__: this runs as __main__

_POLL_SECONDS = 0.1


class Launcher:
    """Runs one attempt in this pod (or on this machine).

    ``run`` returns the final report, and never raises for an error that a user can cause.

    grace_seconds: time that the pod has to end after a stop request; None if nothing kills it from outside. rendezvous_key: the
    key that all pods of the attempt have; a single pod needs none. cgroup_root: where the container's cgroup is mounted.
    """

    def __init__(
        self,
        config: RunConfig,
        pod: processes.PodRank,
        state: RunState,
        grace_seconds: float | None = None,
        rendezvous_key: str | None = None,
        cgroup_root: pathlib.Path = cgroup.ROOT,
    ) -> None:
        self.config = config
        self.pod = pod
        self.state = state
        self._rendezvous_key = rendezvous_key
        self.push_abandoned = False  # a push still runs in a thread, and nothing must wait for it
        self._output = OutputDirectory(pathlib.Path(config.output))
        self._overrides: dict[str, object] = {}
        self._interruption = Interruption(grace_seconds)
        self._memory_kills = MemoryKills(cgroup_root)
        self._watchdog = Watchdog(state, config.spec.recovery.stall_timeout_seconds)
        self.registry = build_registry(state)
        self._pushes = PushMetrics(self.registry, config.namespace, config.name)

    def report(self) -> Report:
        """Return the report for /progress: the newest one of the workers, with the fields that only the launcher knows."""
        waiting = f"waiting for {self.pod.rendezvous_host}" if self.pod.index else "starting the training processes"
        report = self.state.read_report() or Report(attempt=self.config.attempt, phase="Initializing", message=waiting)
        return report.model_copy(update={"in_place": self.state.read_restart_history().in_place, **self._overrides})

    def request_stop(self) -> None:
        """Request a checkpoint and a stop. A second call requests an immediate stop. Does not wait: signal handlers call it."""
        self._interruption.request()
        self.state.request_stop()

    def run(self, worker_output: IO[bytes] | None = None, on_report: Callable[[Report], None] | None = None) -> Report:
        """Train unless the training is already finished, push the model, and return the final report.

        worker_output: where the workers' output goes; None: to this process's own output. on_report: called a few times a second.
        """
        try:
            if self._already_trained():
                log.info("the output directory already holds the finished model: nothing to train")
            else:
                with run_trackers(self.config, self.state, worker_output, self.pod.index == 0) as set_outcome:
                    unfinished = self._train(worker_output, on_report)
                    set_outcome(
                        "Succeeded" if unfinished is None else "Interrupted" if unfinished.phase == "Interrupted" else "Failed"
                    )
                if unfinished:
                    return unfinished
                if self.pod.index == 0:
                    # Imported late: this import takes a second, and the workers need not wait for it.
                    from finetune_trainer.report.page import write_at_end

                    write_at_end(self._output.directory)
            if self.pod.index == 0 and not self._publish(on_report):
                return self._interruption.final_report(self.report())
            return self.report().model_copy(update={"phase": "Succeeded", "message": None})
        except FineTuneError as error:
            failure = Failure(reason=error.reason, message=error.message, hint=REASONS[error.reason].hint)
            return self._failed(failure)

    def _already_trained(self) -> bool:
        finished = self._output.finished_report() if self._output.directory.is_dir() else None
        if finished is None and self.config.adopted and self._output.has_unfinished_run_of_other_job(self.config):
            claim = names.output_claim_name(self.config.name)
            raise FineTuneError(
                Reason.OUTPUT_CONFLICT,
                f"the claim {claim} holds the unfinished training of an earlier job: delete the claim if it is not "
                f"needed, choose another metadata.name, or write output: {{claim: {{claimName: {claim}}}}} to resume it",
            )
        if finished is None:
            if self.pod.index == 0:
                self._output.remove_previous_job(self.config)
            return False
        self._output.acquire(self.config)  # raises for the model of another spec
        self.state.write_report(finished.model_copy(update={"attempt": self.config.attempt}))
        return True

    def _train(self, worker_output: IO[bytes] | None, on_report: Callable[[Report], None] | None) -> Report | None:
        """Run the workers until they end. Return the final report of an attempt that did not finish, or None if it did."""
        run_file = self.state.directory / names.RUN_FILE_NAME
        write_atomically(run_file, self.config.model_dump_json(by_alias=True, exclude_none=True))
        self.state.write_rendezvous_key(self._choose_rendezvous_key())
        env = processes.environment(self.config, os.environ, run_file, self.state, usable_cpus(self.config))
        process = processes.start(processes.command(self.config, self.pod), env, worker_output)
        try:
            return self._outcome(*self._supervise(process, worker_output, on_report))
        finally:
            if process.poll() is None:  # an error in the launcher must not leave workers behind
                processes.kill(process, self.state)

    def _choose_rendezvous_key(self) -> str:
        if self._rendezvous_key:
            return self._rendezvous_key
        if self.config.nodes > 1:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                "the operator gave the pods no key for their rendezvous, because it is older than the trainer image: upgrade the "
                "operator, or use the trainer image of its version",
            )
        return secrets.token_hex(32)

    def _outcome(self, stalled: Failure | None, code: int) -> Report | None:
        """Return the final report after the last generation of workers, or None if the training is finished."""
        report = self.report()
        if code == 0 and report.phase in ("Succeeded", "Publishing"):
            return None
        failure = stalled or self.state.read_restart_history().final_failure
        if report.phase == "Interrupted" or (self._interruption.requested and not stalled):
            return self._interruption.final_report(report)
        if failure is not None and failure.reason == Reason.INTERRUPTED:
            # Another attempt owns the output now. This attempt reports no failure.
            return report.model_copy(update={"phase": "Interrupted", "message": failure.message})
        killed = self._memory_kills.poll() if code == -signal.SIGKILL else None
        if failure is None and killed is not None:
            failure = memory_failure("the process that starts the training processes", killed)
        return self._failed(failure or _torchrun_failure(self.config.nodes, code))

    def _supervise(
        self, process: "subprocess.Popen[bytes]", worker_output: IO[bytes] | None, on_report: Callable[[Report], None] | None
    ) -> tuple[Failure | None, int]:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return None, process.wait(_POLL_SECONDS)
            self._watchdog.poll()
            report = self.report()
            if self._interruption.cannot_save(report, self._watchdog) or self._interruption.deadline_passed():
                processes.kill(process, self.state)
            elif self._watchdog.is_stalled(report):
                idle, stage = self._watchdog.idle_seconds, self._watchdog.stage
                failure = diagnose_stall(self.state, idle, stage, self.config.nodes, worker_output)
                processes.kill(process, self.state)
                return failure, process.wait()
            self._overrides = {"stalled": self._watchdog.warning(report)}
            if on_report:
                on_report(report)

    def _publish(self, on_report: Callable[[Report], None] | None) -> bool:
        """Push the model if the spec asks for it. Return False if the time was over before the push was done."""
        spec = self.config.spec
        if spec.publish is None:
            return True
        self._overrides = {"phase": "Publishing", "message": f"pushing the model to {spec.publish.repository}"}
        if on_report:
            on_report(self.report())
        if spec.publish.merge_adapter and (self._output.model / "adapter_config.json").is_file():
            # An earlier job trained this model, and did not ask for a merged adapter.
            from finetune_trainer.commands.finished import merge_finished

            merge_finished(self.config, self._output)
        # In a thread, because a running push can't be cancelled.
        future: Future[Published] = Future()
        threading.Thread(target=_push, args=(future, self._output, self.config), name="push", daemon=True).start()
        started = time.monotonic()
        while not future.done():
            if self._interruption.deadline_passed():
                self.push_abandoned = True
                return False
            concurrent.futures.wait([future], timeout=_POLL_SECONDS)
        try:
            published = future.result()
        except FineTuneError:
            self._pushes.failed()
            raise
        self._pushes.succeeded(time.monotonic() - started)
        self._overrides = {"published": published}
        log.info("published as %s, commit %s", published.url, published.commit)
        return True

    def _failed(self, failure: Failure) -> Report:
        complete = failure.model_copy(update={"node": failure.node or os.environ.get(names.ENV_NODE_NAME)})
        return self.report().model_copy(update={"phase": "Failed", "message": failure.message, "failure": complete})


def _push(result: "Future[Published]", output: OutputDirectory, config: RunConfig) -> None:
    try:
        # Imported late: the Hub's client takes half a second, and the workers need not wait for it.
        from finetune_trainer.publish.push import push

        result.set_result(push(output.model, config.spec, config.name, namespace=config.namespace))
    except BaseException as error:  # the caller that waits for the result raises it
        result.set_exception(error)


def _torchrun_failure(nodes: int, code: int) -> Failure:
    """Return the failure if torchrun ended without a worker's failure. With several pods, another pod ended or is gone."""
    reason = Reason.COLLECTIVE_FAILED if nodes > 1 else Reason.WORKER_DIED
    message = "another pod of the job ended, or is gone" if nodes > 1 else f"torchrun itself ended with exit code {code}"
    return Failure(reason=reason, message=message, hint=REASONS[reason].hint)


def exit_immediately(code: int) -> NoReturn:
    """End this process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Run one attempt in this pod, and return the exit code. This is the entry point of the trainer image."""
    run_file = pathlib.Path(os.environ[names.ENV_RUN_FILE])
    config = RunConfig.model_validate_json(run_file.read_text())
    logs.configure(logs.log_source(config, "launcher"), config.spec.logging.format)
    use_shared_cache(os.environ, config.spec)
    state = RunState(pathlib.Path(tempfile.mkdtemp(prefix="finetune-")))
    state.create()
    grace = config.spec.pod.termination_grace_period_seconds
    key_file = run_file.with_name(names.RENDEZVOUS_KEY_FILE_NAME)
    key = key_file.read_text() if key_file.exists() else None
    launcher = Launcher(config, processes.PodRank.from_environment(), state, grace, key)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: launcher.request_stop())
    serve(names.PORT_TELEMETRY, launcher.registry, launcher.report)
    with keep_log(config, launcher.pod.index):
        log.info("%s, attempt %d, pod %d of %d", config.name, config.attempt, launcher.pod.index, config.nodes)
        report = _run(launcher)
        if report.failure:
            log.error("%s: %s", report.failure.reason, report.failure.message)
        with contextlib.suppress(OSError):  # the file does not exist outside of a cluster
            pathlib.Path(names.TERMINATION_LOG).write_text(termination_message(report))
    if launcher.push_abandoned:
        exit_immediately(exit_code(report))
    return exit_code(report)


def _run(launcher: Launcher) -> Report:
    """Return the final report, which must be written after any error."""
    try:
        return launcher.run()
    except Exception as error:
        log.exception("the launcher itself failed")
        message = f"the launcher failed: {type(error).__name__}: {error}"[:1000]
        failure = Failure(reason=Reason.CODE_ERROR, message=message, hint=REASONS[Reason.CODE_ERROR].hint)
        return Report(attempt=launcher.config.attempt, phase="Failed", message=message, failure=failure)


if __name__ == "__main__":
    sys.exit(main())
