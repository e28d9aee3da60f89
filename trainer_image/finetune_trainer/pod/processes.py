"""The training processes of one pod (or one machine): how they are started, with which environment, and ended."""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.runtime.state import ENV_LAUNCHER_PID, ENV_STATE_DIR, RunState

_WORKER = "finetune_trainer.pod.worker"
_AGENT = "finetune_trainer.pod.agent"
# It is no limit: the agent decides after each failure.
_MAX_RESTARTS = 1_000_000
# The gang's pods may start minutes apart: images are pulled, machines are added.
_JOIN_TIMEOUT_SECONDS = 1800
# For workers to end after SIGTERM, of which they take no notice: only one that hangs in the kernel takes longer.
_SHUTDOWN_SECONDS = 5
_AGENT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Gang:
    """This pod's place in the gang. rendezvous_host and address are only needed with several nodes.

    index: completion index of the pod; address: its IP.
    """

    index: int = 0
    rendezvous_host: str | None = None
    address: str | None = None

    @classmethod
    def from_environment(cls) -> "Gang":
        """As the operator and the Job controller set it."""
        return cls(
            int(os.environ.get(names.ENV_NODE_INDEX, "0")),
            os.environ.get(names.ENV_RENDEZVOUS_HOST),
            os.environ.get(names.ENV_POD_IP),
        )


def command(config: RunConfig, gang: Gang) -> list[str]:
    """Command line of the agent, which starts the workers: alone for one process, with torchrun's arguments for more."""
    agent = [sys.executable, "-m", _AGENT, _WORKER]
    if config.nodes * config.processes_per_node == 1:
        return agent
    torchrun = [*agent, "--nproc-per-node", str(config.processes_per_node)]
    torchrun += ["--max-restarts", str(_MAX_RESTARTS), "--shutdown-timeout", str(_SHUTDOWN_SECONDS)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", f"{config.name}-{config.attempt}"]
    if config.nodes == 1:  # as --standalone, and without looking for a name of this machine
        return [*torchrun, "--rdzv-endpoint", "localhost:0", "--local-addr", "localhost"]
    host = "localhost" if gang.index == 0 else gang.rendezvous_host
    # torch sorts the nodes by this address and takes the first as rank 0, which must be the pod with index 0: an IP address
    # begins with a digit (or, IPv6, with a to f) and so comes before "node". Only rank 0's is ever connected to.
    local_address = gang.address if gang.index == 0 else f"node-{gang.index}"
    return [
        *torchrun,
        *("--nnodes", str(config.nodes), "--rdzv-endpoint", f"{host}:{names.PORT_RENDEZVOUS}"),
        *("--local-addr", str(local_address)),
        *("--rdzv-conf", f"is_host={int(gang.index == 0)},join_timeout={_JOIN_TIMEOUT_SECONDS}"),
    ]


def environment(config: RunConfig, base: Mapping[str, str], run_file: pathlib.Path, state: RunState, cpus: int) -> dict[str, str]:
    """Environment of the workers: what the pod has, and what keeps libraries quiet, fast and at home."""
    threads = max(1, cpus // config.processes_per_node)
    result = {
        **base,
        names.ENV_RUN_FILE: str(run_file),
        ENV_STATE_DIR: str(state.directory),
        ENV_LAUNCHER_PID: str(os.getpid()),
        "TMPDIR": str(state.directory),  # torchrun leaves its folders behind; this one goes away with the run
        "PROMETHEUS_MULTIPROC_DIR": str(state.metrics_dir),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        # A replaced pod can't rejoin with torch's default (docs/architecture.md).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": base.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if config.spec.distributed.gpus_per_node:
        # NCCL's flight recorder: what each rank was waiting for, written down when a collective takes too long.
        result |= {
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_FR_BUFFER_SIZE": "2000",
            "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(state.directory / "nccl-trace-"),
        }
    if config.spec.hub.endpoint:
        result[names.ENV_HUB_ENDPOINT] = config.spec.hub.endpoint
    if not config.spec.uses_hub():
        result["HF_HUB_OFFLINE"] = "1"  # nothing is looked up on a network that may not be there
    if config.nodes * config.processes_per_node == 1:
        # The first of those that are given: one process with several GPUs would fall into nn.DataParallel.
        result["CUDA_VISIBLE_DEVICES"] = base.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return result


def usable_cpus(cgroup: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> int:
    """Processors that this container may use: its affinity, cut by the limit of its cgroup.

    Threads beyond the limit would spin until the kernel throttles all of them: measured, a job took three times as long.
    """
    cpus = len(os.sched_getaffinity(0))
    quota, period = _cpu_limit(cgroup)
    return min(cpus, max(1, math.ceil(quota / period))) if quota > 0 and period > 0 else cpus


def _cpu_limit(cgroup: pathlib.Path) -> tuple[int, int]:
    """Microseconds of processor time per period of microseconds, from cgroup v2 or v1; (0, 0) where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return (0, 0) if quota == "max" else (int(quota), int(period))
    with contextlib.suppress(OSError, ValueError):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((cgroup / "cpu" / name).read_text() for name in files)
        return int(quota), int(period)  # a quota of -1 is no limit
    return 0, 0


def start(argv: list[str], env: Mapping[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Start the workers in a session of their own, so that Ctrl-C on a terminal reaches the launcher alone."""
    return subprocess.Popen(  # noqa: S603 - our own command line
        argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


def kill(process: "subprocess.Popen[bytes]", state: RunState) -> None:
    """End the workers now, also one that is stopped, and torchrun with them.

    The workers first: when torchrun sees them fail it ends by itself, and tells the other pods. Nothing is started again.
    """
    state.forbid_restarts()
    alive = state.alive()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not alive:
        _signal_group(process, signal.SIGTERM)  # torchrun, which waits for the other pods
    try:
        process.wait(_AGENT_SECONDS)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        for pid in state.pids().values():  # started since
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
