"""The launcher's pure functions: command lines, environment, exit codes and the termination message."""

import errno
import json
import pathlib
import re
import signal
import sys
from typing import Any

import pytest
import torch

from finetune_api import names, resource
from finetune_api.reasons import FineTuneError
from finetune_api.spec.containers import RESERVED_VARIABLES
from finetune_api.status import Failure, Finding, Guess, Resolved, SampleAnswer
from finetune_api.wire import Report, RunConfig
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.pod.launch import Launcher
from finetune_trainer.pod.processes import PodRank, command, environment
from finetune_trainer.pod.termination_message import exit_code, termination_message
from finetune_trainer.runtime.distributed import World, init_process_group
from finetune_trainer.runtime.state import RunState

SPEC = {
    "task": "text-classification",
    "model": {"claim": {"claimName": "m"}},
    "datasets": [{"claim": {"claimName": "d"}}],
}


def config(nodes: int = 1, processes: int = 1, **spec: Any) -> RunConfig:
    return RunConfig(
        name="news",
        namespace="team",
        attempt=2,
        spec=resource.parse_spec(SPEC | spec),
        nodes=nodes,
        processes_per_node=processes,
        claims={"m": "/m", "d": "/d"},
        output="/out",
    )


def test_one_process_runs_without_torchrun() -> None:
    agent = [sys.executable, "-m", "finetune_trainer.pod.agent", "finetune_trainer.pod.worker"]
    assert command(config(), PodRank()) == agent


def test_several_processes_on_one_node_need_no_network() -> None:
    line = command(config(processes=2), PodRank())
    assert line[line.index("--rdzv-endpoint") + 1] == "127.0.0.1:0"
    assert line[line.index("--local-addr") + 1] == "127.0.0.1"


def test_the_pod_with_index_0_hosts_the_store_and_sorts_first() -> None:
    lines = [command(config(nodes=12), PodRank(index, "news-2-0.gang", f"10.0.0.{200 - index}")) for index in range(12)]
    hosts = [line[line.index("--rdzv-conf") + 1].split(",")[0] for line in lines]
    assert hosts == ["is_host=1"] + ["is_host=0"] * 11
    addresses = [line[line.index("--local-addr") + 1] for line in lines]
    assert min(addresses) == addresses[0] == "10.0.0.200"
    endpoints = {line[line.index("--rdzv-endpoint") + 1] for line in lines[1:]}
    assert endpoints == {"news-2-0.gang:29400"}


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::1", "2001:db8::1"])
def test_any_ip_address_sorts_before_the_other_nodes(address: str) -> None:
    assert address < "node-1"


def test_processes_share_the_cpus_and_the_hub_is_offline_unless_the_job_uses_it() -> None:
    state = RunState(pathlib.Path("/state"))
    env = environment(config(processes=2), {"HF_TOKEN": "t"}, pathlib.Path("/run.json"), state, cpus=8)
    assert env["OMP_NUM_THREADS"] == "4"
    assert env["HF_HUB_OFFLINE"] == "1"
    published = config(publish={"repository": "a/b"}, hub={"endpoint": "https://hub.example.com"})
    env = environment(published, {}, pathlib.Path("/run.json"), state, cpus=1)
    assert "HF_HUB_OFFLINE" not in env
    assert env["HF_ENDPOINT"] == "https://hub.example.com"


OWN_SETTINGS = {
    "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "50", "RAYON_NUM_THREADS": "5",
    "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "0",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "0", "PYTORCH_CUDA_ALLOC_CONF": "backend:native", "TORCH_CPP_LOG_LEVEL": "INFO",
    "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0", "TORCH_FR_BUFFER_SIZE": "7",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/mnt/traces/rank-", "PYTHONUNBUFFERED": "0",
}  # fmt: skip


def test_what_the_user_writes_in_pod_env_comes_before_our_own_settings() -> None:
    """The few that a run depends on are refused by spec.pod.env, except for TMPDIR, in which the folder of the run lies."""
    job, state = config(distributed={"gpusPerNode": 1}, hub={"endpoint": "https://hub.example.com"}), RunState(pathlib.Path("/s"))
    ours = environment(job, {}, pathlib.Path("/run.json"), state, cpus=2)
    needed = {name for name in ours if name not in OWN_SETTINGS and not re.search(RESERVED_VARIABLES, name)}
    assert needed == {"TMPDIR", "CUDA_VISIBLE_DEVICES"}
    assert environment(job, OWN_SETTINGS, pathlib.Path("/run.json"), state, cpus=2).items() >= OWN_SETTINGS.items()


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("3", "3"), ("2,3", "2"), ("", "")])
def test_a_single_process_uses_only_the_first_visible_gpu(given: str | None, used: str) -> None:
    base = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    env = environment(config(), base, pathlib.Path("/run.json"), RunState(pathlib.Path("/state")), cpus=1)
    assert env["CUDA_VISIBLE_DEVICES"] == used


def test_more_processes_than_gpus_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FineTuneError, match=r"processesPerNode .*there are 1 GPU\(s\) here"):
        init_process_group(World(rank=1, local_rank=1, size=2), b"key", 1)


@pytest.mark.parametrize(
    ("phase", "reason", "expected"),
    [
        ("Succeeded", None, names.EXIT_SUCCEEDED),
        ("Interrupted", None, names.EXIT_INTERRUPTED),
        ("Failed", "ConfigurationError", names.EXIT_REFUSED),
        ("Failed", "WorkerDied", names.EXIT_FAILED),
        ("Failed", "OutOfMemory", names.EXIT_FAILED),
    ],
)
def test_the_exit_code_says_whether_a_retry_may_help(phase: Any, reason: str | None, expected: int) -> None:
    failure = Failure(reason=reason, message="m") if reason else None
    assert exit_code(Report(attempt=1, phase=phase, failure=failure)) == expected


def test_a_long_termination_message_loses_samples_and_traceback_but_never_the_reason() -> None:
    report = Report(
        attempt=1,
        phase="Failed",
        samples=[SampleAnswer(text="ä" * 200, label="l", score=0.5)] * 16,
        failure=Failure(reason="CodeError", message="m" * 1000, traceback="t" * 4000),
    )
    text = termination_message(report)
    assert len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES
    parsed = Report.model_validate_json(text)
    assert parsed.failure is not None
    assert parsed.failure.message == "m" * 1000
    assert json.loads(text)["phase"] == "Failed"


def test_the_termination_message_keeps_as_many_samples_as_fit() -> None:
    guesses = [Guess(token=f"word{number}", score=0.1234) for number in range(5)]
    filled = SampleAnswer(text="t" * 200, guesses=guesses, guesses_before=guesses)
    for samples in ([filled] * 16, [SampleAnswer(text="t" * 200, answer="é" * 400)] * 16):
        text = termination_message(Report(attempt=1, phase="Succeeded", step=9, samples=samples))
        assert 3500 < len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES
        parsed = Report.model_validate_json(text).samples
        assert parsed is not None
        assert 6 <= len(parsed) < 16
        assert parsed[0].guesses == samples[0].guesses


@pytest.mark.parametrize("letter", ["m", "é", "語", "😀", "\x00"])
def test_the_termination_message_of_a_failure_fits_in_any_script(letter: str) -> None:
    failure = Failure(reason="DataError", message=letter * 1000, hint="h" * 200, traceback=letter * 3000)
    text = termination_message(Report(attempt=1, phase="Failed", message=letter * 1000, failure=failure))
    assert len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES
    parsed = Report.model_validate_json(text)
    assert parsed.failure is not None
    assert parsed.failure.message.startswith(letter * 300)


def test_the_root_failure_is_the_earliest_that_is_not_a_symptom(tmp_path: pathlib.Path) -> None:
    state = RunState(tmp_path)
    state.write_failure(1, Failure(reason="CollectiveFailed", message="peer lost"), secondary=True)
    assert state.failures()[0].failure == Failure(reason="CollectiveFailed", message="peer lost")
    state.write_failure(0, Failure(reason="DataError", message="row 7"), secondary=False)
    state.write_failure(2, Failure(reason="CodeError", message="later"), secondary=False)
    assert [entry.failure.reason for entry in state.failures()] == ["DataError", "CodeError", "CollectiveFailed"]
    assert state.failures(since=state.failures()[1].time) == []


@pytest.mark.parametrize(("code", "reason"), [(-signal.SIGKILL, "OutOfMemory"), (1, "WorkerDied")])
def test_an_agent_that_the_kernel_killed_for_memory_is_reported_with_the_limit(
    tmp_path: pathlib.Path, code: int, reason: str
) -> None:
    state = RunState(tmp_path / "state")
    state.create()
    launcher = Launcher(config().model_copy(update={"output": str(tmp_path)}), PodRank(), state, cgroup_root=tmp_path)
    for name, content in {"memory.events": "oom_kill 1", "memory.max": "314572800", "memory.peak": "314572800"}.items():
        (tmp_path / name).write_text(content + "\n")
    report = launcher._outcome(None, code)
    assert report is not None
    assert report.failure is not None
    assert report.failure.reason == reason
    assert ("memory limit of 300 MiB" in report.failure.message) == (reason == "OutOfMemory")


def adopting(output: pathlib.Path) -> Launcher:
    state = RunState(output.parent / "state")
    state.create()
    return Launcher(config().model_copy(update={"output": str(output), "adopted": True}), PodRank(), state)


def test_the_output_of_an_earlier_job_is_not_resumed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "output/checkpoints/step-10").mkdir(parents=True)
    report = adopting(tmp_path / "output").run()
    assert report.failure is not None
    assert report.failure.reason == "OutputConflict"
    assert "news-output" in report.failure.message
    assert [item.name for item in (tmp_path / "output").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(
    "left", [(), ("run.json", "history.jsonl", "best/step-3/x", "checkpoints/.step-10/x", "trackers.json", "wandb/x")]
)
def test_a_job_without_results_leaves_its_volume_to_the_next_job_of_its_name(
    tmp_path: pathlib.Path, left: tuple[str, ...]
) -> None:
    """For example after a wrong column: the user deletes the job, corrects the file, and applies it again."""
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"name": "news", "digest": "of another spec", "uid": "an earlier one"}')
    output, mine = OutputDirectory(tmp_path), config().model_copy(update={"adopted": True, "job_uid": "this one"})
    assert not output.has_unfinished_run_of_other_job(mine)
    output.remove_previous_job(mine)
    assert output.acquire(mine) is None
    assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "checkpoints"}
    (tmp_path / "checkpoints/step-10").mkdir(parents=True)
    output.save_resolved(mine, Resolved(model_revision="abc"))
    again = mine.model_copy(update={"attempt": 2})
    assert not output.has_unfinished_run_of_other_job(again), "the directory belongs to this job now"
    output.remove_previous_job(again)
    resolved = output.acquire(again)
    assert resolved is not None
    assert resolved.model_revision == "abc"
    assert output.has_unfinished_run_of_other_job(mine.model_copy(update={"job_uid": "a later one"}))


def test_files_that_cannot_be_removed_give_one_sentence(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "output").mkdir()
    (tmp_path / "output/history.jsonl").touch()
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    report = adopting(tmp_path / "output").run()
    assert report.failure is not None
    assert (report.failure.reason, report.failure.traceback) == ("ConfigurationError", None)
    assert "can't be written: Permission denied; remove what an earlier job has left there" in report.failure.message


def test_the_finished_model_of_an_earlier_job_of_the_same_spec_ends_the_job(tmp_path: pathlib.Path) -> None:
    output = OutputDirectory(tmp_path / "output")
    output.acquire(config())
    output.model.mkdir()
    output.report.write_text(Report(attempt=1, phase="Succeeded", step=3, total_steps=3).model_dump_json(by_alias=True))
    report = adopting(tmp_path / "output").run()
    assert (report.phase, report.attempt, report.step) == ("Succeeded", 2, 3)


def test_the_termination_message_has_the_findings_before_the_samples() -> None:
    findings = [Finding(type="RowsCut", message="m" * 350)] * 5
    samples = [SampleAnswer(text="t" * 200, answer="é" * 400)] * 16
    text = termination_message(Report(attempt=1, phase="Succeeded", step=9, samples=samples, findings=findings))
    assert len(text.encode()) <= names.TERMINATION_LOG_LIMIT_BYTES
    parsed = Report.model_validate_json(text)
    assert parsed.findings == findings
    assert parsed.samples
    long = [Finding(type="RowsCut", message="語" * 400)] * 5
    shortened = Report.model_validate_json(termination_message(Report(attempt=1, phase="Succeeded", step=9, findings=long)))
    assert shortened.findings == long[:1]
