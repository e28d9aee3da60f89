"""The operator as a process. Tests can kill, pause and restart it."""

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
    """A replica of the operator.

    arguments: follow `run`. environment: variables in addition to those of the test. log: file for the output.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: pathlib.Path) -> None:
        self._arguments, self._environment, self._log = arguments, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def start(self, wait: bool = True) -> None:
        """Start the process. With wait, return when it is ready."""
        assert not self.is_running(), "the operator is already running"
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
        """Wait until /readyz answers with 200."""
        end = time.monotonic() + timeout
        while not self.is_ready():
            assert self.is_running(), f"the operator exited with {self.exit_code()}:\n{self.log()}"
            assert time.monotonic() < end, f"the operator is not ready:\n{self.log()}"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Return whether /readyz answers with 200."""
        return self.http_get("/readyz") is not None

    def http_get(self, path: str) -> str | None:
        """Return the body of a response with status 200; None for any other response or none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, OSError):
            return None

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """Return the exit code; None if the process runs or was never started."""
        return self._process.poll() if self._process is not None else None

    def kill(self) -> None:
        """Send SIGKILL. Any thread may call this, also for a process that has exited."""
        if self._process is not None:
            self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait_exit(self, timeout: float = 15) -> int:
        """Wait until the process has exited, and return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the operator did not exit within {timeout:g} s:\n{self.log()}") from None

    def restart(self) -> None:
        """Kill the process if it still runs, and start a new one."""
        self.kill()
        self.wait_exit()
        self.start()

    def log(self) -> str:
        """Return the last 12,000 characters of the log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-12_000:]


def _free_port() -> int:
    """Return a free port outside the range of ephemeral ports, from which the system assigns ports to outgoing connections."""
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
