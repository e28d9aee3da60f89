"""Starts processes that have already imported torch and the libraries around it.

These imports take most of the time of a tiny training. A server (multiprocessing's forkserver) does them once, and forks a
process for each call. The server imports none of our own modules: some of them read the environment when they are imported.
"""

import importlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from typing import IO, NoReturn
from unittest import mock

_PRELOADED = [
    "accelerate",
    "datasets",
    "peft",
    "pyarrow.dataset",
    "pytest",
    "safetensors.torch",
    "torch.distributed.elastic.multiprocessing",
    "torch.distributed.run",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
]
# Variables that libraries read when they are imported. The processes of a test share the cores, so each computes with one thread.
_SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_context = multiprocessing.get_context("forkserver")


class Process:
    """A forked process, with the methods of ``subprocess.Popen`` that the tests use."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Same as ``returncode``."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a preloaded process", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: pathlib.Path) -> Process:
    """Call ``main()`` of a module in a new process, as a script with arguments does; its output goes to the file ``log``."""
    with mock.patch.dict(os.environ, _SERVER_ENVIRONMENT):  # the first call starts the server
        _context.set_forkserver_preload(_PRELOADED)
        process = _context.Process(target=_run, args=(module, list(arguments), dict(environment), list(sys.path), log))
        process.start()
    return Process(process)


def _run(module: str, arguments: list[str], environment: dict[str, str], path: list[str], log: pathlib.Path) -> None:
    """Entry point of the new process."""
    sys.path[:] = path
    sys.argv[:] = [module, *arguments]
    with log.open("ab") as stream:
        _become(lambda: importlib.import_module(module).main(), environment, stream)


class Child:
    """A child that this process forked, with the methods of ``subprocess.Popen`` that the launcher uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while the child runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            time.sleep(0.01)
        return code


def fork(argv: list[str], environment: Mapping[str, str], output: IO[bytes] | None) -> Child:
    """Replaces ``processes.start`` in a preloaded process: forks the agent instead of starting a new Python for it."""
    _, _, module, *arguments = argv
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _become(lambda: importlib.import_module(module).main(arguments), environment, output)
    return Child(pid)


def _become(main: Callable[[], object], environment: Mapping[str, str], output: IO[bytes] | None) -> NoReturn:
    """Let this forked process call a function, and end it as Python ends a script that calls the function."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 1
    try:
        code = main() or 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
