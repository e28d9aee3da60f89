"""Starts and restarts the training processes of a pod: with torchrun's agent, or with a short loop if there is one process.

`python -m finetune_trainer.pod.agent MODULE [arguments of torchrun]`; MODULE has the ``main`` of a training process.

The agent imports everything once, while other pods are still starting, and forks the processes. So they start and restart
fast, and share the memory of the imports. With GPUs it starts each process as a new one, because CUDA does not survive a fork.
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
from finetune_api.reasons import FineTuneError
from finetune_api.wire import RunConfig
from finetune_trainer.pod import processes
from finetune_trainer.pod.restart_policy import RestartPolicy
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.state import ENV_LAUNCHER_PID, ENV_START_TIME, RunState

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.api import WorkerGroup

_POLL_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """Run the processes until they end, and return the exit code. A process that fails has recorded the reason itself."""
    module, *torchrun = arguments
    reset_start_time()
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    logs.configure(logs.log_source(config, "agent"), config.spec.logging.format)
    state = RunState.from_environment()
    policy = RestartPolicy(config, state)
    fork_workers = not config.spec.distributed.gpus_per_node and not sees_gpus()
    if fork_workers:
        importlib.import_module(module)
    if not torchrun:
        return run_single_process(module, fork_workers, policy, state)
    wait_for_rendezvous_store(torchrun)
    return run_with_torchrun(module, fork_workers, torchrun, policy, state)


def reset_start_time() -> None:
    """Record the start time of the next processes. They log the time from then to their first step."""
    os.environ[ENV_START_TIME] = str(time.time())


def sees_gpus() -> bool:
    """Return whether there are GPUs that the processes may use, without initialising CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible != "" and pathlib.Path("/dev/nvidiactl").exists()


def run_worker(module: str) -> None:
    """Run a training process in a forked child."""
    # The child inherits a handler from torchrun's agent, and removes it, because the agent ends its processes with SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    importlib.import_module(module).main()


def run_single_process(module: str, fork_workers: bool, policy: RestartPolicy, state: RunState) -> int:
    """Run one process, and restart it as long as the restart policy allows."""
    while True:
        pid = _fork(module) if fork_workers else _spawn(module)
        state.record_generation({0: pid})
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0 or is_orphan() or not policy.should_restart({0: code}):
            return min(abs(code), 1)
        reset_start_time()


def _fork(module: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run_worker(module)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # also after an exception: the child must not return into its parent's code


def _spawn(module: str) -> int:
    return subprocess.Popen([sys.executable, "-m", module]).pid  # noqa: S603 - our own command line


def run_with_torchrun(module: str, fork_workers: bool, arguments: list[str], policy: RestartPolicy, state: RunState) -> int:
    """Run several processes with torchrun. Its agent asks the restart policy after each failure."""
    from torch.distributed import run
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, dynamic_rendezvous
    from torch.distributed.launcher import api as launcher

    from finetune_trainer.pod import rendezvous

    class Agent(LocalElasticAgent):
        """torch's agent: it does the rendezvous, and starts and ends the processes. The restart policy decides on restarts."""

        def _start_workers(self, worker_group: "WorkerGroup") -> dict[int, Any]:
            pids = super()._start_workers(worker_group)
            state.record_generation({worker_group.workers[local].global_rank: pid for local, pid in pids.items()})
            return pids

        def _restart_workers(self, worker_group: "WorkerGroup") -> None:
            reset_start_time()
            super()._restart_workers(worker_group)

        def _monitor_workers(self, worker_group: "WorkerGroup") -> RunResult:
            """Do what torch does, but after a failure set the remaining restarts to 0 if the restart policy refuses a restart."""
            result = super()._monitor_workers(worker_group)
            if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                exit_codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
                if is_orphan() or not policy.should_restart(exit_codes):
                    self._remaining_restarts = 0
            return result

    rendezvous.register(processes.RENDEZVOUS_BACKEND, state.read_rendezvous_key())
    # In the rendezvous torch polls once a second whether all pods are there. That is long compared with the rest of a restart.
    dynamic_rendezvous._delay = lambda seconds: time.sleep(_POLL_SECONDS)  # type: ignore[attr-defined]
    # This logger prints a traceback for each process that ends. The restart policy already logs the reason.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    launcher.LocalElasticAgent = Agent  # type: ignore[attr-defined] # torchrun has no argument for the agent class
    config, command, rest = run.config_from_args(run.parse_args([*arguments, "-m", module]))
    try:
        if fork_workers:
            config.start_method = "fork"
            launcher.launch_agent(config, run_worker, [module])
        else:
            launcher.launch_agent(config, command, rest)
    except ChildFailedError:
        return 1
    except (RendezvousError, FineTuneError) as error:
        refusal = error if isinstance(error, FineTuneError) else error.__cause__
        if not isinstance(refusal, FineTuneError):
            raise
        policy.give_up(refusal)
        return 1
    return 0


def is_orphan() -> bool:
    """Return whether the launcher is gone. Then nothing would monitor, stop or report a process that is started now."""
    return os.getppid() != int(os.environ[ENV_LAUNCHER_PID])


def wait_for_rendezvous_store(torchrun: list[str]) -> None:
    """Wait until the pod with index 0 listens: images may be pulled at different speeds, and torchrun itself gives up soon."""
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
