"""What starts the training processes of a pod and starts them again: torchrun's agent, and a loop of a few lines for one process.

`python -m finetune_trainer.pod.agent MODULE [arguments of torchrun]`; MODULE has the ``main`` of a training process.

Everything is imported here once, while other pods are still on their way, and the processes are forked: so they start, and
start again, within moments, and share that memory. With GPUs each is started by itself, as CUDA does not survive a fork.
"""

import importlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.pod.restart_policy import Judge
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.state import ENV_BEGAN, ENV_LAUNCHER_PID, RunState

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.api import WorkerGroup

_POLL_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """Run the processes to their end; returns the exit code. Whoever fails here has written down why."""
    module, *torchrun = arguments
    begin_anew()
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    logs.configure(logs.speaker_of(config, "agent"), config.spec.logging.format)
    state = RunState.from_environment()
    judge = Judge(config, state)
    forks = not config.spec.distributed.gpus_per_node and not has_gpus()
    if forks:
        importlib.import_module(module)
    if not torchrun:
        return run_alone(module, forks, judge, state)
    wait_for_store(torchrun)
    return run_gang(module, forks, torchrun, judge, state)


def begin_anew() -> None:
    """From here on the processes that are started next count how long they take to their first step."""
    os.environ[ENV_BEGAN] = str(time.time())


def has_gpus() -> bool:
    """Whether this machine has GPUs that the processes may see; without touching CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible != "" and pathlib.Path("/dev/nvidiactl").exists()


def begin(module: str) -> None:
    """A training process, forked: its first and last line."""
    # Of torchrun's agent, which ends its processes by it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    importlib.import_module(module).main()


def run_alone(module: str, forks: bool, judge: Judge, state: RunState) -> int:
    """One process, started again for as long as that may help."""
    while True:
        pid = _fork(module) if forks else _spawn(module)
        state.begin_round({0: pid})
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0 or is_orphan() or not judge.goes_on({0: code}):
            return min(abs(code), 1)
        begin_anew()


def _fork(module: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        begin(module)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # whatever it was, it must not go on with the lines of its parent


def _spawn(module: str) -> int:
    return subprocess.Popen([sys.executable, "-m", module]).pid  # noqa: S603 - our own command line


def run_gang(module: str, forks: bool, arguments: list[str], judge: Judge, state: RunState) -> int:
    """Several processes, by torchrun with an agent that asks the judge."""
    from torch.distributed import run
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
    from torch.distributed.launcher import api as launcher

    class Agent(LocalElasticAgent):
        """torch's agent: rendezvous, ranks, start and end of processes are its business, the decision to go on is not."""

        def _start_workers(self, worker_group: "WorkerGroup") -> dict[int, Any]:
            pids = super()._start_workers(worker_group)
            state.begin_round({worker_group.workers[local].global_rank: pid for local, pid in pids.items()})
            return pids

        def _restart_workers(self, worker_group: "WorkerGroup") -> None:
            begin_anew()
            super()._restart_workers(worker_group)

        def _monitor_workers(self, worker_group: "WorkerGroup") -> RunResult:
            """As torch's; after a failure the number of restarts that are left is what the judge makes it."""
            result = super()._monitor_workers(worker_group)
            if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                deaths = {rank: failure.exitcode for rank, failure in result.failures.items()}
                if is_orphan() or not judge.goes_on(deaths):
                    self._remaining_restarts = 0
            return result

    # Who meets the others looks once a second whether all are there: long beside what else a restart takes.
    dynamic_rendezvous._delay = lambda seconds: time.sleep(_POLL_SECONDS)  # type: ignore[attr-defined]
    # It shows a traceback of its own for each process that ends; the reason is named by the judge.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    launcher.LocalElasticAgent = Agent  # type: ignore[attr-defined] # where torchrun takes its agent from: it has no argument for it
    config, command, rest = run.config_from_args(run.parse_args([*arguments, "-m", module]))
    try:
        if forks:
            config.start_method = "fork"
            launcher.launch_agent(config, begin, [module])
        else:
            launcher.launch_agent(config, command, rest)
    except ChildFailedError:
        return 1
    return 0


def is_orphan() -> bool:
    """Whether the launcher is gone: nobody would watch, stop or report a process that is started now."""
    return os.getppid() != int(os.environ[ENV_LAUNCHER_PID])


def wait_for_store(torchrun: list[str]) -> None:
    """Wait until the pod with index 0 listens, as images may be pulled at different speeds; torchrun itself gives up soon."""
    if not any(argument.startswith("is_host=0") for argument in torchrun):
        return
    host, _, port = torchrun[torchrun.index("--rdzv-endpoint") + 1].rpartition(":")
    while not is_orphan():
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError:
            time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
