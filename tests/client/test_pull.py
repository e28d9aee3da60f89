"""`pull`: a model comes out of its volume whole, once, and leaves nothing behind."""

import errno
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from client.api_server import ApiServer, refusal
from client.builders import FAILED, RUNNING, SUCCEEDED, ended, job, pod
from client.conftest import Clock
from finetune_api import names
from finetune_client import FineTune, PullError, RefusedError, UnreachableError, helper_pod

Run = Callable[..., Any]
FILES = {"config.json": b"{}", "model.safetensors": random.Random(1).randbytes(300_000), "adapter/empty": b""}


@pytest.fixture
def finished(server: ApiServer, output: pathlib.Path) -> dict[str, Any]:
    """A job that has succeeded, its pod, its claim, and the model in it."""
    for name, content in FILES.items():
        (output / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (output / "model" / name).write_bytes(content)
    (output / "report.json").write_text("{}")
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}})
    server.put("pods", pod(state=ended(0), tolerations=[{"key": "gpu", "operator": "Exists"}]))
    return server.put("finetunejobs", job(status=SUCCEEDED))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(server: ApiServer) -> int:
    return sum("/exec" in request for request in server.requests) - 1  # one lists


@pytest.mark.usefixtures("finished")
def test_the_model_comes_whole_and_the_helper_pod_goes(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "model") == FILES
    assert f"The model: {tmp_path / 'model'}" in result.stdout
    assert server.names_of("pods") == ["news-1-0-abcde"]
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.usefixtures("finished")
def test_progress_counts_to_the_whole(cluster: FineTune, tmp_path: pathlib.Path) -> None:
    told: list[tuple[int, int, str]] = []
    assert cluster.job("news").pull(tmp_path / "a", lambda *news: told.append(news)) == tmp_path / "a"
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total, "model.safetensors")
    assert told == sorted(told)


@pytest.mark.usefixtures("finished")
def test_a_broken_transfer_goes_on_where_it_ended(cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.cut_after = {"config.json": [0, 0], "model.safetensors": [100_000, 0, 50_000]}
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES
    assert sent(server) == len(FILES) + 5


@pytest.mark.usefixtures("finished")
def test_a_connection_that_breaks_ever_again_is_no_trouble_while_something_comes(
    cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path
) -> None:
    server.cut_after = {"model.safetensors": [1] * 8}  # one frame each
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES
    assert server.cut_after == {"model.safetensors": []}


@pytest.mark.usefixtures("finished")
def test_given_up_it_keeps_what_came_and_the_next_call_needs_the_rest_only(
    cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "model"
    server.cut_after = {"model.safetensors": [100_000, *[0] * 9]}
    with pytest.raises(UnreachableError, match="the same command goes on with it"):
        cluster.job("news").pull(target)
    assert not target.exists()
    kept = (tmp_path / "model.partial/model.safetensors").stat().st_size
    assert 0 < kept < len(FILES["model.safetensors"])
    assert server.names_of("pods") == ["news-1-0-abcde"], "the helper pod is gone all the same"
    server.cut_after = {}
    (tmp_path / "model.partial/of-another-model.bin").write_bytes(b"x")
    told: list[int] = []
    cluster.job("news").pull(target, lambda done, size, file: told.append(done))
    assert contents(target) == FILES
    assert min(told) >= len(FILES["config.json"])


@pytest.mark.usefixtures("finished")
def test_what_is_there_of_another_model_is_fetched_anew(cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"other" * 1000)
    (partial / "config.json").write_bytes(b"longer than the one that is wanted")
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == FILES


@pytest.mark.usefixtures("finished")
def test_a_damaged_file_is_fetched_anew_once_and_then_refused(
    cluster: FineTune, server: ApiServer, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (output / "model/adapter/empty").unlink()
    server.damage = 1
    cluster.job("news").pull(tmp_path / "model")
    assert contents(tmp_path / "model") == {name: content for name, content in FILES.items() if content}
    server.damage = 9
    with pytest.raises(PullError, match=r"config\.json is not here as it is in the volume"):
        cluster.job("news").pull(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.usefixtures("finished")
def test_nothing_is_overwritten(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for target in (tmp_path, tmp_path / "mine"):
        result = run("pull", "news", target)
        assert result.exit_code == 1
        assert f"{target} is there already and is not overwritten" in " ".join(result.output.split())
    assert not any(request.startswith("POST") for request in server.requests)
    (tmp_path / "empty").mkdir()
    assert run("pull", "news", tmp_path / "empty").exit_code == 0
    assert contents(tmp_path / "empty") == FILES


@pytest.mark.usefixtures("finished")
def test_a_disk_that_is_full_is_one_sentence_and_keeps_what_came(
    run: Run, server: ApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 1
    assert "can't be written: No space left on device; what has come is kept" in result.output
    assert (tmp_path / "model.partial").is_dir()
    assert server.names_of("pods") == ["news-1-0-abcde"]


def test_a_job_that_goes_on_has_no_finished_model(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.put("finetunejobs", job(status=RUNNING))
    result = run("pull", "news", tmp_path / "model")
    assert result.exit_code == 1
    assert "news is Running: it has no finished model yet" in result.output


def test_commands_in_what_goes_wrong_lead_to_the_same_job(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.put("finetunejobs", job(status=RUNNING), "other")
    result = run("pull", "news", tmp_path / "model", "-n", "other")
    assert "`kubectl finetune watch news --namespace other` waits for it" in result.output
    server.put("finetunejobs", job(status={"phase": "Failed"}), "other")
    server.put("persistentvolumeclaims", {"metadata": {"name": "news-output"}}, "other")
    result = run("pull", "news", tmp_path / "model", "-n", "other")
    assert "`kubectl finetune why news --namespace other` says what it waits for" in result.output


def test_a_job_that_failed_before_its_model_was_written_says_so(
    cluster: FineTune, server: ApiServer, finished: dict[str, Any], output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    finished["status"] = FAILED
    (output / "model").rename(output / "elsewhere")
    with pytest.raises(PullError, match="the volume holds no finished model"):
        cluster.job("news").pull(tmp_path / "model")
    assert server.names_of("pods") == ["news-1-0-abcde"]


def test_a_volume_that_was_given_back_leads_to_the_hub(cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path) -> None:
    status = {**SUCCEEDED, "published": {"url": "https://hub.example.com/team/news", "commit": "0" * 40}}
    server.put("finetunejobs", job(status=status))
    with pytest.raises(PullError, match=r"news-output\) is gone; the model is at https://hub\.example\.com/team/news"):
        cluster.job("news").pull(tmp_path / "model")


@pytest.mark.usefixtures("finished")
def test_a_pod_that_never_starts_is_given_up_and_deleted(
    cluster: FineTune, server: ApiServer, clock: Clock, tmp_path: pathlib.Path
) -> None:
    server.pods_start = False
    with pytest.raises(PullError, match="has not started within 300 s"):
        cluster.job("news").pull(tmp_path / "model")
    assert server.names_of("pods") == ["news-1-0-abcde"]

    def refuse() -> None:
        helper = next(name for name in server.names_of("pods") if "-pull-" in name)
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        server.take("pods", helper)["status"] = {"phase": "Pending", "containerStatuses": [{"name": "reader", "state": waiting}]}

    clock.pauses.clear()
    clock.then = [refuse]
    with pytest.raises(PullError, match=r"can't start \(ImagePullBackOff: no such image\)"):
        cluster.job("news").pull(tmp_path / "model")


@pytest.mark.usefixtures("finished")
def test_whoever_may_not_run_commands_in_pods_is_told_so(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.answers["POST pods"] = refusal(403, "Forbidden", 'User "me" cannot create resource "pods"')
    assert "you may not create pods in namespace team" in run("pull", "news", tmp_path / "model").output
    server.answers = {"POST pods": refusal(403, "Forbidden", 'violates PodSecurity "restricted:latest"')}
    assert 'violates PodSecurity "restricted:latest"' in run("pull", "news", tmp_path / "model").output


@pytest.mark.usefixtures("finished")
def test_what_is_refused_to_commands_in_pods_is_told_apart(run: Run, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.answers["GET pods/exec"] = refusal(403, "Forbidden", 'User "me" cannot create resource "pods/exec"')
    assert "you may not create pods/exec in namespace team" in run("pull", "news", tmp_path / "model").output
    server.answers["GET pods/exec"] = refusal(404, "NotFound", 'pods "x" not found', kind="pods")
    assert "there is no pod news-pull-" in run("pull", "news", tmp_path / "model").output
    server.answers["GET pods/exec"] = refusal(500, "InternalError", "container not found")
    assert "can't answer at the moment (500 container not found)" in run("pull", "news", tmp_path / "model").output
    assert server.names_of("pods") == ["news-1-0-abcde"]


@pytest.mark.usefixtures("finished")
def test_a_name_that_leads_out_of_the_directory_is_refused(
    cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"path": "../evil", "size": 1}\n'
    monkeypatch.setattr(cluster.api, "execute", lambda *_: iter([(1, line)]))
    with pytest.raises(PullError, match="a name that leads elsewhere"):
        cluster.job("news").pull(tmp_path / "model")
    assert not (tmp_path / "evil").exists()


@pytest.mark.usefixtures("finished")
def test_what_earlier_calls_left_is_removed_once_it_has_ended(
    cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path
) -> None:
    for name, phase in (("news-pull-old", "Failed"), ("news-pull-other", "Running")):
        metadata = {"name": name, "labels": {helper_pod.LABEL_PULL: "news"}}
        server.put("pods", {"metadata": metadata, "status": {"phase": phase}})
    cluster.job("news").pull(tmp_path / "model")
    assert server.names_of("pods") == ["news-1-0-abcde", "news-pull-other"]


def test_the_helper_pod_passes_pod_security_and_goes_with_the_job(cluster: FineTune, finished: dict[str, Any]) -> None:
    handle = cluster.job("news")
    built = helper_pod.build_helper_pod(handle.refresh(), handle.pods()[0])
    spec, [container] = built["spec"], built["spec"]["containers"]
    [owner] = built["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (finished["metadata"]["uid"], False)
    assert names.LABEL_JOB not in built["metadata"]["labels"], "the operator would count it as one of the gang"
    assert spec["activeDeadlineSeconds"] == helper_pod.DEADLINE_SECONDS
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "runAsUser": 4711, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert container["image"] == "trainer:1"
    assert container["volumeMounts"] == [{"name": "output", "mountPath": names.OUTPUT_DIR, "readOnly": True}]
    assert "env" not in container
    near = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"]
    assert near == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}


def test_without_a_pod_of_the_job_its_spec_tells_how_to_run(cluster: FineTune, server: ApiServer) -> None:
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
def test_a_refused_helper_pod_is_an_error_of_its_own(cluster: FineTune, server: ApiServer, tmp_path: pathlib.Path) -> None:
    server.answers["POST pods"] = refusal(403, "Forbidden", "exceeded quota: pods=10")
    with pytest.raises(RefusedError, match="exceeded quota"):
        cluster.job("news").pull(tmp_path / "model")
