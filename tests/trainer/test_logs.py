"""Logs of real trainings, as a pod writes them: every line names its source, and every line of JSON is an object."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api import names
from finetune_api.files import read_job
from finetune_trainer.__main__ import local_config
from trainer.runner import Runner


def pod_log(runner: Runner, log_format: str, processes: int) -> list[str]:
    """Run a pod; return the lines that its launcher and workers write."""
    job = read_job(runner.job(logging={"format": log_format}, training={"maxSteps": 4, "epochs": None}))
    output = runner.directory / log_format
    config = local_config(job, {name: str(path) for name, path in runner.claims.items()}, output, processes, True)
    run_file = runner.directory / "run.json"
    run_file.write_text(config.model_dump_json(by_alias=True, exclude_none=True))
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), names.ENV_RUN_FILE: str(run_file), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", LAUNCH.format(port=free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = (ended.stdout + ended.stderr).splitlines()
    assert (output / "logs" / "news-1-0.log").read_text().splitlines() == lines, "the output keeps the log of the pod"
    return lines


# The pod's port may be taken on this machine.
LAUNCH = """
import sys
from finetune_api import names
names.PORT_TELEMETRY = {port}
from finetune_trainer.pod.launch import main
sys.exit(main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def runner(make_runner: Callable[..., Runner]) -> Runner:
    return make_runner()


def test_each_text_line_has_time_and_source(runner: Runner) -> None:
    lines = pod_log(runner, "Text", 2)
    wrong = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (launcher|rank \d) [A-Z]+ \S", line)]
    assert wrong == []
    assert any(re.search(r"rank 0 INFO step 4 of 4: loss \d", line) for line in lines)
    assert any("launcher INFO news, attempt 1, pod 0 of 1" in line for line in lines)


def test_each_line_of_json_is_an_object_with_job_attempt_and_rank(runner: Runner) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in pod_log(runner, "JSON", 2)]
    for line in lines:
        assert {"time", "level", "job", "attempt", "logger", "message"} <= line.keys()
        assert (line["job"], line["attempt"]) == ("news", 1)
        assert ("rank" in line) != ("process" in line)
    assert {line.get("process") for line in lines} == {None, "launcher"}
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert line["rank"] == 0
        assert line.keys() >= {"learningRate", "gradientNorm", "samplesPerSecond", "tokensPerSecond", "stepSeconds", "epoch"}
    assert [line["evaluation"].keys() >= {"loss", "accuracy"} for line in lines if "evaluation" in line] == [True, True]
