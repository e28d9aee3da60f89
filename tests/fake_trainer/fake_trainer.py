"""A fake trainer: it counts steps, serves /progress and writes a final report, but does not train.

The FineTuneJob controls it. ``training.maxSteps`` is the number of steps (default: 20); a step takes 0.1 s. The text of the first
sample may hold a plan: "fake-trainer:" and clauses separated by ";":

    fail REASON at STEP       fails with this reason in the final report; exit code 64 if a retry cannot help, else 1
    exit CODE at STEP         exits with this code, without a final report
    hang at STEP              stops counting steps and ignores SIGTERM
    step SECONDS              duration of a step
    save SECONDS              duration of saving a checkpoint after SIGTERM
    linger SECONDS            time between the final report and the exit

A clause may end in "on attempt N" (default: all attempts), "on pod N" (default: pod 0), or both in this order. The clauses step,
save and linger always apply to all pods.

Like the trainer, it resumes from the checkpoint in its output. If the output belongs to an earlier job, it succeeds if that job
finished, and fails with OutputConflict otherwise. It needs only the standard library, because its image contains nothing else.
"""

import datetime
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 9400
TERMINATION_LOG = pathlib.Path("/dev/termination-log")
EXIT_SUCCEEDED, EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 0, 1, 64, 75
NO_RETRY = {"ConfigurationError", "DataError", "ModelNotFound", "DatasetNotFound", "HubAuthentication", "OutputConflict"}
ATTEMPT_AND_POD = r"(?: on attempt (?P<attempt>\d+))?(?: on pod (?P<pod>\d+))?"
FAILURE = re.compile(r"(?P<verb>fail|exit|hang)(?: (?!at )(?P<argument>\w+))? at (?P<step>\d+)" + ATTEMPT_AND_POD)
SETTING = re.compile(r"(?P<verb>step|save|linger) (?P<argument>[\d.]+)" + ATTEMPT_AND_POD)


class Plan:
    """The plan for this pod in this attempt. steps: total number. failures: step → (verb, argument)."""

    def __init__(self, run: dict, index: int) -> None:
        self.steps = int(run["spec"].get("training", {}).get("maxSteps") or 20)
        self.step_seconds, self.save_seconds, self.linger_seconds = 0.1, 0.0, 0.0
        self.failures: dict[int, tuple[str, str]] = {}
        samples = run["spec"].get("samples") or [{}]
        text = samples[0].get("text", "")
        for clause in text.removeprefix("fake-trainer:").split(";") if text.startswith("fake-trainer:") else ():
            self._read(clause.strip(), run["attempt"], index)

    def _read(self, clause: str, attempt: int, index: int) -> None:
        found = FAILURE.fullmatch(clause) or SETTING.fullmatch(clause)
        if found is None:
            sys.exit(f"the fake trainer does not understand {clause!r}")
        if found["attempt"] and int(found["attempt"]) != attempt:
            return
        if "step" not in found.groupdict():
            setattr(self, f"{found['verb']}_seconds", float(found["argument"]))
        elif int(found["pod"] or 0) == index:
            self.failures[int(found["step"])] = (found["verb"], found["argument"] or "")


class Trainer:
    """Counts steps. Its reports have the format that the operator reads from the trainer."""

    def __init__(self, run: dict, index: int) -> None:
        self.run_config, self.index, self.plan = run, index, Plan(run, index)
        self.checkpoint_file = pathlib.Path(run["output"]) / "fake-trainer-checkpoint.json"
        self.finished_file = self.checkpoint_file.with_name("fake-trainer-finished")
        self.checkpoint = self._read_checkpoint()
        self.step: int = self.checkpoint["step"] if self.checkpoint else 0
        self.stop_requested = threading.Event()
        self.phase = "Initializing"

    def _read_checkpoint(self) -> dict | None:
        try:
            return dict(json.loads(self.checkpoint_file.read_text(encoding="utf-8")))
        except OSError:
            return None

    def output_is_used(self) -> bool:
        return any(path.name.startswith("fake-trainer-") for path in self.checkpoint_file.parent.iterdir())

    def report(self, **more: object) -> bytes:
        content = {
            "attempt": self.run_config["attempt"],
            "phase": self.phase,
            "step": self.step,
            "totalSteps": self.plan.steps,
            "loss": round(1 / (1 + self.step), 4),
            "lastStepTime": _now(),
            "remainingSeconds": (self.plan.steps - self.step) * self.plan.step_seconds,
            **more,
        }
        if self.checkpoint:
            content["checkpoint"] = self.checkpoint
        return json.dumps(content).encode()

    def train(self) -> int:
        """Count the steps, and return the exit code."""
        if self.run_config.get("adopted") and self.output_is_used():
            return self._succeeded() if self.finished_file.exists() else self._failed("OutputConflict")
        while self.step < self.plan.steps:
            if self.stop_requested.is_set():
                return self._interrupted()
            if self.step in self.plan.failures:
                verb, argument = self.plan.failures[self.step]
                if verb == "hang":
                    _hang()
                return int(argument) if verb == "exit" else self._failed(argument)
            self.stop_requested.wait(self.plan.step_seconds)
            self.step += 1
            self.phase = "Running"
        return self._succeeded()

    def _interrupted(self) -> int:
        time.sleep(self.plan.save_seconds)
        if self.index == 0:
            self.checkpoint = {"step": self.step, "time": _now()}
            partial = self.checkpoint_file.with_suffix(".part")
            partial.write_text(json.dumps(self.checkpoint), encoding="utf-8")
            partial.rename(self.checkpoint_file)
        return self._finish("Interrupted", EXIT_INTERRUPTED, message="received SIGTERM; saved a checkpoint")

    def _failed(self, reason: str) -> int:
        failure = {"reason": reason, "message": f"the plan of the fake trainer contains the failure {reason}", "rank": self.index}
        return self._finish("Failed", EXIT_REFUSED if reason in NO_RETRY else EXIT_FAILED, failure=failure)

    def _succeeded(self) -> int:
        if self.index == 0:
            self.finished_file.touch()
        results: dict = {"evaluation": {"step": self.step, "metrics": {"accuracy": 0.5, "loss": 0.7}}}
        if publish := self.run_config["spec"].get("publish"):
            results["published"] = {"url": f"https://hub.invalid/{publish['repository']}", "commit": "0" * 40}
        return self._finish("Succeeded", EXIT_SUCCEEDED, **results)

    def _finish(self, phase: str, code: int, **more: object) -> int:
        """Write the final report, and return the exit code."""
        self.phase = phase
        TERMINATION_LOG.write_bytes(self.report(**more))
        time.sleep(self.plan.linger_seconds)
        return code


def _hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017 - works with any Python 3


def serve(trainer: Trainer) -> None:
    """Serve /progress on the telemetry port in a background thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = trainer.report() if self.path == "/progress" else b"ok\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> int:
    run = json.loads(pathlib.Path(os.environ["FINETUNE_RUN_FILE"]).read_text(encoding="utf-8"))
    trainer = Trainer(run, int(os.environ.get("JOB_COMPLETION_INDEX", "0")))
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop_requested.set())
    serve(trainer)
    code = trainer.train()
    print(f"{trainer.phase} at step {trainer.step}, exit code {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
