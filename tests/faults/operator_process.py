"""The operator as a process of its own, which can be killed, stopped and started again."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

START_SECONDS = 60.0


class Operator:
    """One replica. arguments: behind `run`. environment: of its own, beside the test's. log: file for what it says."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: pathlib.Path) -> None:
        self._arguments, self._environment, self._log = arguments, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def start(self, wait: bool = True) -> None:
        """Start it; wait until it is ready."""
        assert not self.runs(), "it runs already"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
        with self._log.open("ab") as log:
            log.write(b"--- started\n")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator", "run", f"--port={self.port}", *self._arguments],
                env={**environment, **self._environment},
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait for /readyz."""
        end = time.monotonic() + timeout
        while not self.is_ready():
            assert self.runs(), f"the operator ended with {self.exit_code()}:\n{self.log()}"
            assert time.monotonic() < end, f"the operator is not ready:\n{self.log()}"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """What /readyz says; False while it says nothing."""
        return self.http("/readyz") is not None

    def http(self, path: str) -> str | None:
        """What its port answers with 200, else None."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return None

    def runs(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """The exit code, None while it lives."""
        return self._process.poll() if self._process is not None else None

    def kill(self) -> None:
        """kill -9. It may be called from any thread, and for a process that has ended."""
        if self._process is not None:
            self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait_end(self, timeout: float = 15) -> int:
        """Wait until it has ended; the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the operator did not end within {timeout:g} s:\n{self.log()}") from None

    def restart(self) -> None:
        """Bury the dead one and start again."""
        self.kill()
        self.wait_end()
        self.start()

    def log(self) -> str:
        """What it said last."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-12_000:]


def _free_port() -> int:
    """A port that nobody listens at, outside the range from which connections that go out take theirs at any moment."""
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
