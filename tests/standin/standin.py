"""A stand-in for the trainer: counts steps, answers /progress, says its last word, and learns nothing.

What it does is written in the FineTuneJob. ``training.maxSteps`` steps of a tenth of a second each, and a plan in the first
sample's text: "standin:" and clauses divided by ";", each may end in "on attempt N" and "on pod N" (all attempts, pod 0):

    fail REASON at STEP       a Failed report with that reason; exit code 64 if no retry heals it, else 1
    exit CODE at STEP         ends without a word
    hang at STEP              no step more, and no answer to a signal
    step SECONDS              time of a step
    save SECONDS              time to save a checkpoint when asked to stop
    linger SECONDS            stays so long after its last word

As the trainer does, it goes on from the checkpoint in its output; the output of an earlier job is finished, or refused.
Only the standard library: the image is a bare Python.
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
WHERE = r"(?: on attempt (?P<attempt>\d+))?(?: on pod (?P<pod>\d+))?"
FAILURE = re.compile(r"(?P<verb>fail|exit|hang)(?: (?!at )(?P<what>\w+))? at (?P<step>\d+)" + WHERE)
SETTING = re.compile(r"(?P<verb>step|save|linger) (?P<what>[\d.]+)" + WHERE)


class Plan:
    """What this pod of this attempt is to do. steps: in all. failures: step → (verb, what)."""

    def __init__(self, run: dict, index: int) -> None:
        self.steps = int(run["spec"].get("training", {}).get("maxSteps") or 20)
        self.step_seconds, self.save_seconds, self.linger_seconds = 0.1, 0.0, 0.0
        self.failures: dict[int, tuple[str, str]] = {}
        samples = run["spec"].get("samples") or [{}]
        text = samples[0].get("text", "")
        for clause in text.removeprefix("standin:").split(";") if text.startswith("standin:") else ():
            self._read(clause.strip(), run["attempt"], index)

    def _read(self, clause: str, attempt: int, index: int) -> None:
        found = FAILURE.fullmatch(clause) or SETTING.fullmatch(clause)
        if found is None:
            sys.exit(f"the stand-in does not understand {clause!r}")
        if found["attempt"] and int(found["attempt"]) != attempt:
            return
        if "step" not in found.groupdict():
            setattr(self, f"{found['verb']}_seconds", float(found["what"]))
        elif int(found["pod"] or 0) == index:
            self.failures[int(found["step"])] = (found["verb"], found["what"] or "")


class Trainer:
    """Counts. All that it says of itself is a Report, as the operator reads it."""

    def __init__(self, run: dict, index: int) -> None:
        self.run_config, self.index, self.plan = run, index, Plan(run, index)
        self.checkpoint_file = pathlib.Path(run["output"]) / "standin-checkpoint.json"
        self.finished_file = self.checkpoint_file.with_name("standin-finished")
        self.checkpoint = self._read_checkpoint()
        self.step: int = self.checkpoint["step"] if self.checkpoint else 0
        self.asked_to_stop = threading.Event()
        self.phase = "Initializing"

    def _read_checkpoint(self) -> dict | None:
        try:
            return dict(json.loads(self.checkpoint_file.read_text(encoding="utf-8")))
        except OSError:
            return None

    def output_is_used(self) -> bool:
        return any(path.name.startswith("standin-") for path in self.checkpoint_file.parent.iterdir())

    def report(self, **more: object) -> bytes:
        told = {
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
            told["checkpoint"] = self.checkpoint
        return json.dumps(told).encode()

    def train(self) -> int:
        """Step by step to the end; the exit code."""
        if self.run_config.get("adopted") and self.output_is_used():
            return self._succeeded() if self.finished_file.exists() else self._failed("OutputConflict")
        while self.step < self.plan.steps:
            if self.asked_to_stop.is_set():
                return self._interrupted()
            if self.step in self.plan.failures:
                verb, what = self.plan.failures[self.step]
                if verb == "hang":
                    _hang()
                return int(what) if verb == "exit" else self._failed(what)
            self.asked_to_stop.wait(self.plan.step_seconds)
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
        return self._last_word("Interrupted", EXIT_INTERRUPTED, message="asked to stop; saved")

    def _failed(self, reason: str) -> int:
        failure = {"reason": reason, "message": f"the stand-in was told to fail with {reason}", "rank": self.index}
        return self._last_word("Failed", EXIT_REFUSED if reason in NO_RETRY else EXIT_FAILED, failure=failure)

    def _succeeded(self) -> int:
        if self.index == 0:
            self.finished_file.touch()
        told: dict = {"evaluation": {"step": self.step, "metrics": {"accuracy": 0.5, "loss": 0.7}}}
        if publish := self.run_config["spec"].get("publish"):
            told["published"] = {"url": f"https://hub.invalid/{publish['repository']}", "commit": "0" * 40}
        return self._last_word("Succeeded", EXIT_SUCCEEDED, **told)

    def _last_word(self, phase: str, code: int, **more: object) -> int:
        self.phase = phase
        TERMINATION_LOG.write_bytes(self.report(**more))
        time.sleep(self.plan.linger_seconds)
        return code


def _hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017 - any Python 3


def serve(trainer: Trainer) -> None:
    """Answer at the telemetry port, in the background."""

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
    signal.signal(signal.SIGTERM, lambda *_: trainer.asked_to_stop.set())
    serve(trainer)
    code = trainer.train()
    print(f"{trainer.phase} at step {trainer.step}, exit code {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
