"""`pull` downloads a complete model from its volume, verifies it, and deletes its helper pod."""

import errno
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from client.builders import FAILED, RUNNING, SUCCEEDED, ended, job, pod
from client.conftest import Clock
from client.fake_api_server import FakeApiServer, error_response
from finetune_api import names
from finetune_client import FineTune, PullError, RefusedError, UnreachableError, helper_pod

Run = Callable[..., Any]
FILES = {"config.json": b"{}", "model.safetensors": random.Random(1).randbytes(300_000), "adapter/empty": b""}


@pytest.fixture
def finished(server: FakeApiServer, output: pathlib.Path) -> dict[str, Any]:
    """A job that has succeeded, its pod, and its claim with the model."""
    for name, content in FILES.items():
        (output / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (output / "model" / name).write_bytes(content)
    (output / "report.json").write_text("{}")
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}})
    server.put("pods", pod(state=ended(0), tolerations=[{"key": "gpu", "operator": "Exists"}]))
    return server.put("finetunejobs", job(status=SUCCEEDED))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_transfers(server: FakeApiServer) -> int:
    return sum("/exec" in request for request in server.requests) - 1  # one command lists the files


@pytest.mark.usefixtures("finished")
def test_pull_downloads_the_model_and_deletes_the_helper_pod(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "model") == FILES
    assert f"The model: {tmp_path / 'model'}" in result.stdout
    assert server.list_names("pods") == ["news-1-0-abcde"]
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.usefixtures("finished")
def test_progress_ends_at_the_total_size(cluster: FineTune, tmp_path: pathlib.Path) -> None:
    calls: list[tuple[int, int, str]] = []
    assert cluster.job("news").pull(tmp_path / "a", lambda *values: calls.append(values)) == tmp_path / "a"
    total = sum(map(len, FILES.values()))
    assert calls[-1] == (total, total, "model.safetensors")
    assert calls == sorted(calls)


@pytest.mark.usefixtures("finished")
def test_an_interrupted_transfer_continues_where_it_stopped(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    server.cut_after = {"config.json": [0, 0], "model.safetensors": [100_000, 0, 50_000]}
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES
    assert count_transfers(server) == len(FILES) + 5


@pytest.mark.usefixtures("finished")
def test_pull_retries_without_limit_while_each_try_receives_bytes(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    server.cut_after = {"model.safetensors": [1] * 8}  # one frame per try
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES
    assert server.cut_after == {"model.safetensors": []}


@pytest.mark.usefixtures("finished")
def test_after_too_many_tries_the_data_is_kept_and_the_next_call_continues(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "model"
    server.cut_after = {"model.safetensors": [100_000, *[0] * 9]}
    with pytest.raises(UnreachableError, match="run the same command again to continue"):
        cluster.job("news").pull(target)
    assert not target.exists()
    kept = (tmp_path / "model.partial/model.safetensors").stat().st_size
    assert 0 < kept < len(FILES["model.safetensors"])
    assert server.list_names("pods") == ["news-1-0-abcde"], "the helper pod is deleted"
    server.cut_after = {}
    (tmp_path / "model.partial/of-another-model.bin").write_bytes(b"x")
    sizes: list[int] = []
    cluster.job("news").pull(target, lambda done, size, file: sizes.append(done))
    assert contents(target) == FILES
    assert min(sizes) >= len(FILES["config.json"])


@pytest.mark.usefixtures("finished")
def test_partial_files_of_another_model_are_downloaded_again(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"other" * 1000)
    (partial / "config.json").write_bytes(b"longer than the one that is wanted")
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES


@pytest.mark.usefixtures("finished")
def test_a_corrupt_file_is_downloaded_again_once_and_then_refused(
    cluster: FineTune, server: FakeApiServer, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (output / "model/adapter/empty").unlink()
    server.corrupt_transfers = 1
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == {name: content for name, content in FILES.items() if content}
    server.corrupt_transfers = 9
    with pytest.raises(PullError, match=r"config\.json differs from the file in the volume"):
        cluster.job("news").pull(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.usefixtures("finished")
def test_nothing_is_overwritten(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for target in (tmp_path, tmp_path / "mine"):
        result = run("pull", "news", target)
        assert result.exit_code == 1
        assert f"{target} exists already and is not overwritten" in " ".join(result.output.split())
    assert not any(request.startswith("POST") for request in server.requests)
    (tmp_path / "empty").mkdir()
    assert run("pull", "news", tmp_path / "empty").exit_code == 0
    assert contents(tmp_path / "empty") == FILES


@pytest.mark.usefixtures("finished")
def test_a_full_disk_is_reported_in_one_sentence_and_the_data_is_kept(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 1
    assert "can't be written: No space left on device; the data received so far is kept" in result.output
    assert (tmp_path / "model.partial").is_dir()
    assert server.list_names("pods") == ["news-1-0-abcde"]


def test_an_unfinished_job_has_no_finished_model(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 1
    assert "news is Running: it has no finished model yet" in result.output


def test_commands_in_error_messages_have_the_flags_for_the_same_job(
    run: Run, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    server.put("finetunejobs", job(status=RUNNING), "other")
    result = run("pull", "news", tmp_path / "model", "-n", "other")
    assert "`kubectl finetune watch news --namespace other` waits for it" in result.output
    server.put("finetunejobs", job(status={"phase": "Failed"}), "other")
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}}, "other")
    result = run("pull", "news", tmp_path / "model", "-n", "other")
    assert "`kubectl finetune why news --namespace other` shows what it waits for" in result.output


def test_a_job_that_failed_before_its_model_was_written_says_so(
    cluster: FineTune, server: FakeApiServer, finished: dict[str, Any], output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    finished["status"] = FAILED
    (output / "model").rename(output / "elsewhere")
    with pytest.raises(PullError, match="the volume holds no finished model"):
        cluster.job("news").pull(tmp_path / "model")
    assert server.list_names("pods") == ["news-1-0-abcde"]


def test_the_error_for_a_deleted_volume_names_the_hub_repository(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    status = {**SUCCEEDED, "published": {"url": "https://hub.example.com/team/news", "commit": "0" * 40}}
    server.put("finetunejobs", job(status=status))
    with pytest.raises(PullError, match=r"news-output\) is gone; the model is at https://hub\.example\.com/team/news"):
        cluster.job("news").pull(tmp_path / "model")


@pytest.mark.usefixtures("finished")
def test_a_helper_pod_that_does_not_start_is_deleted(
    cluster: FineTune, server: FakeApiServer, clock: Clock, tmp_path: pathlib.Path
) -> None:
    server.pods_start = False
    with pytest.raises(PullError, match="has not started within 300 s"):
        cluster.job("news").pull(tmp_path / "model")
    assert server.list_names("pods") == ["news-1-0-abcde"]

    def refuse() -> None:
        helper = next(name for name in server.list_names("pods") if "-pull-" in name)
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        server.get("pods", helper)["status"] = {"phase": "Pending", "containerStatuses": [{"name": "reader", "state": waiting}]}

    clock.pauses.clear()
    clock.then = [refuse]
    with pytest.raises(PullError, match=r"can't start \(ImagePullBackOff: no such image\)"):
        cluster.job("news").pull(tmp_path / "model")


@pytest.mark.usefixtures("finished")
def test_a_refused_creation_of_the_helper_pod_is_reported(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.responses["POST pods"] = error_response(403, "Forbidden", 'User "me" cannot create resource "pods"')
    assert "you may not create pods in namespace team" in run("pull", "news", tmp_path / "model").output
    server.responses = {"POST pods": error_response(403, "Forbidden", 'violates PodSecurity "restricted:latest"')}
    assert 'violates PodSecurity "restricted:latest"' in run("pull", "news", tmp_path / "model").output


@pytest.mark.usefixtures("finished")
def test_each_error_of_exec_is_reported(run: Run, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.responses["GET pods/exec"] = error_response(403, "Forbidden", 'User "me" cannot create resource "pods/exec"')
    assert "you may not create pods/exec in namespace team" in run("pull", "news", tmp_path / "model").output
    server.responses["GET pods/exec"] = error_response(404, "NotFound", 'pods "x" not found', kind="pods")
    assert "there is no pod news-pull-" in run("pull", "news", tmp_path / "model").output
    server.responses["GET pods/exec"] = error_response(500, "InternalError", "container not found")
    assert "can't answer at the moment (500 container not found)" in run("pull", "news", tmp_path / "model").output
    assert server.list_names("pods") == ["news-1-0-abcde"]


@pytest.mark.usefixtures("finished")
def test_a_path_out_of_the_directory_is_refused(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"path": "../evil", "size": 1}\n'
    monkeypatch.setattr(cluster.api, "execute", lambda *_: iter([(1, line)]))
    with pytest.raises(PullError, match="path leads out of the directory"):
        cluster.job("news").pull(tmp_path / "model")
    assert not (tmp_path / "evil").exists()


@pytest.mark.usefixtures("finished")
def test_finished_helper_pods_of_earlier_calls_are_deleted(
    cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path
) -> None:
    for name, phase in (("news-pull-old", "Failed"), ("news-pull-other", "Running")):
        metadata = {"name": name, "labels": {helper_pod.LABEL_PULL: "news"}}
        server.put("pods", {"metadata": metadata, "status": {"phase": phase}})
    cluster.job("news").pull(tmp_path / "model")
    assert server.list_names("pods") == ["news-1-0-abcde", "news-pull-other"]


def test_the_helper_pod_passes_pod_security_and_is_deleted_with_the_job(cluster: FineTune, finished: dict[str, Any]) -> None:
    handle = cluster.job("news")
    built = helper_pod.build_helper_pod(handle.refresh(), handle.pods()[0])
    spec, [container] = built["spec"], built["spec"]["containers"]
    [owner] = built["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (finished["metadata"]["uid"], False)
    assert names.LABEL_JOB not in built["metadata"]["labels"], "the operator would count it as a training pod"
    assert spec["activeDeadlineSeconds"] == helper_pod.DEADLINE_SECONDS
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "runAsUser": 4711, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert container["image"] == "trainer:1"
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": names.OUTPUT_DIR, "readOnly": True}]
    assert "env" not in container
    near = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"]
    assert near == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}


def test_without_a_training_pod_the_helper_pod_uses_the_spec(cluster: FineTune, server: FakeApiServer) -> None:
    given = {"securityContext": {"runAsUser": 5}, "nodeSelector": {"disk": "fast"}, "imagePullSecrets": [{"name": "pull"}]}
    output = {"claim": {"claimName": "models", "path": "news/1"}}
    server.put("finetunejobs", job(status=SUCCEEDED, pod=given, output=output))
    record = cluster.job("news").refresh()
    spec = helper_pod.build_helper_pod(record, None)["spec"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 5}
    assert (spec["nodeSelector"], spec["imagePullSecrets"]) == (given["nodeSelector"], given["imagePullSecrets"])
    assert "affinity" not in spec
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models"}
    assert helper_pod.output_claim(record) == ("models", f"{names.OUTPUT_DIR}/news/1")
    server.put("finetunejobs", job(status={"phase": "Failed"}))
    with pytest.raises(PullError, match="has never started"):
        helper_pod.build_helper_pod(cluster.job("news").refresh(), None)


@pytest.mark.usefixtures("finished")
def test_a_helper_pod_over_quota_raises_refused_error(cluster: FineTune, server: FakeApiServer, tmp_path: pathlib.Path) -> None:
    server.responses["POST pods"] = error_response(403, "Forbidden", "exceeded quota: pods=10")
    with pytest.raises(RefusedError, match="exceeded quota"):
        cluster.job("news").pull(tmp_path / "model")
