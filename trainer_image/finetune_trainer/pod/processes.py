"""The training processes of one pod (or one machine): their command line, their environment, their start and their end."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.runtime.state import ENV_LAUNCHER_PID, ENV_STATE_DIR, RunState

# Our rendezvous, see rendezvous.py, which torchrun's agent registers under this name.
RENDEZVOUS_BACKEND = "signed"
_LOOPBACK = "127.0.0.1"
_WORKER = "finetune_trainer.pod.worker"
_AGENT = "finetune_trainer.pod.agent"
# Not a real limit: the agent asks the restart policy after each failure.
_MAX_RESTARTS = 1_000_000
# The pods of an attempt may start minutes apart, because images are pulled and nodes are added.
_JOIN_TIMEOUT_SECONDS = 1800
# Time for workers to end after SIGTERM. They do not handle it, so only a worker that hangs in the kernel takes longer.
_SHUTDOWN_SECONDS = 5
_AGENT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class PodRank:
    """This pod's position in the attempt. rendezvous_host and address are needed only with several nodes.

    index: completion index of the pod. address: its IP.
    """

    index: int = 0
    rendezvous_host: str | None = None
    address: str | None = None

    @classmethod
    def from_environment(cls) -> "PodRank":
        """Read the values that the operator and the Job controller set."""
        return cls(
            int(os.environ.get(names.ENV_NODE_INDEX, "0")),
            os.environ.get(names.ENV_RENDEZVOUS_HOST),
            os.environ.get(names.ENV_POD_IP),
        )


def command(config: RunConfig, pod: PodRank) -> list[str]:
    """Return the command line of the agent, which starts the workers. For several processes it has torchrun's arguments."""
    agent = [sys.executable, "-m", _AGENT, _WORKER]
    if config.nodes * config.processes_per_node == 1:
        return agent
    torchrun = [*agent, "--nproc-per-node", str(config.processes_per_node)]
    torchrun += ["--max-restarts", str(_MAX_RESTARTS), "--shutdown-timeout", str(_SHUTDOWN_SECONDS)]
    torchrun += ["--rdzv-backend", RENDEZVOUS_BACKEND, "--rdzv-id", f"{config.name}-{config.attempt}"]
    if config.nodes == 1:  # like --standalone, but nothing outside of the pod can reach it
        return [*torchrun, "--rdzv-endpoint", f"{_LOOPBACK}:0", "--local-addr", _LOOPBACK, "--rdzv-conf", "is_host=1"]
    host = "localhost" if pod.index == 0 else pod.rendezvous_host
    # torch sorts the nodes by this address and makes the first one rank 0. It must be the pod with index 0. An IP address begins
    # with a digit (IPv6: also with a to f), so it sorts before "node". Only the address of rank 0 is used for connections.
    local_address = pod.address if pod.index == 0 else f"node-{pod.index}"
    return [
        *torchrun,
        *("--nnodes", str(config.nodes), "--rdzv-endpoint", f"{host}:{names.PORT_RENDEZVOUS}"),
        *("--local-addr", str(local_address)),
        *("--rdzv-conf", f"is_host={int(pod.index == 0)},join_timeout={_JOIN_TIMEOUT_SECONDS}"),
    ]


def environment(config: RunConfig, base: Mapping[str, str], run_file: pathlib.Path, state: RunState, cpus: int) -> dict[str, str]:
    """Return the environment of the workers.

    base: the environment of the pod. What the user wrote in spec.pod.env is in it, so it comes before our defaults for libraries.
    cpus: for all processes of this pod together.
    """
    result = {
        **_default_environment(config, state, cpus),
        **base,
        names.ENV_RUN_FILE: str(run_file),
        ENV_STATE_DIR: str(state.directory),
        ENV_LAUNCHER_PID: str(os.getpid()),
        # torchrun does not remove its folders; this folder is removed with the run. If the user set TMPDIR, it lies in there.
        "TMPDIR": str(state.directory),
        "PROMETHEUS_MULTIPROC_DIR": str(state.metrics_dir),
        # A replaced pod can't rejoin with torch's default (docs/architecture.md).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if config.spec.hub.endpoint:
        result[names.ENV_HUB_ENDPOINT] = config.spec.hub.endpoint
    if config.nodes * config.processes_per_node == 1:
        # Only the first GPU: with several GPUs in one process, the Trainer would use nn.DataParallel.
        result["CUDA_VISIBLE_DEVICES"] = base.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return result


def _default_environment(config: RunConfig, state: RunState, cpus: int) -> dict[str, str]:
    """Return settings for libraries (threads, output, network) that a user may change."""
    threads = max(1, cpus // config.processes_per_node)
    result = {
        "OMP_NUM_THREADS": str(threads),
        # By default threads spin while they wait, and take the processor from the other processes of the machine. Intel's runtime
        # reads this variable too, and then sets its KMP_BLOCKTIME from 200 ms to 0.
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAYON_NUM_THREADS": str(cpus),  # of the tokenizer: usually only one process tokenises
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if config.spec.distributed.gpus_per_node:
        # NCCL's flight recorder writes what each rank waited for, if a collective takes too long.
        result |= {
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_FR_BUFFER_SIZE": "2000",
            "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(state.directory / "nccl-trace-"),
        }
    if config.nodes == 1 and any(name == "lo" for _, name in socket.if_nameindex()):
        # The processes of a single pod listen for each other, and for nobody else.
        result |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if not config.spec.uses_hub():
        result["HF_HUB_OFFLINE"] = "1"  # the job does not need the Hub, and there may be no network
    return result


def start(argv: list[str], env: Mapping[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Start the workers in a session of their own, so that Ctrl-C on a terminal reaches only the launcher."""
    return subprocess.Popen(  # noqa: S603 - our own command line
        argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


def kill(process: "subprocess.Popen[bytes]", state: RunState) -> None:
    """Kill the workers now, even one that is stopped, and then torchrun.

    The workers are killed first. When torchrun sees them fail, it ends and informs the other pods. Nothing is restarted.
    """
    state.forbid_restarts()
    alive = state.live_pids()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not alive:
        _signal_group(process, signal.SIGTERM)  # torchrun, which may be waiting for the other pods
    try:
        process.wait(_AGENT_SECONDS)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        for pid in state.pids().values():  # workers that started in the meantime
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
