"""`put` copies a file or a folder into a claim, verifies it, and deletes its helper pod."""

import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from client.builders import SUCCEEDED, job, pod
from client.conftest import Clock
from client.fake_api_server import FakeApiServer, error_response
from finetune_api.spec.common import Claim
from finetune_client import FineTune, PutError, UnreachableError, helper_pod
from finetune_client.put import NewClaim, PodOptions

Run = Callable[..., Any]
# No byte of the content is text, so the fake server can tell it from the request.
BIG = bytes(random.Random(1).choices(range(128, 256), k=3 << 20))
FILES = {"train.jsonl": BIG, "test.jsonl": BIG[:70_000], "more/empty": b"", "more/ä b": BIG[:5]}
CLAIM = {"metadata": {"name": "datasets"}, "spec": {"accessModes": ["ReadWriteOnce"]}}


@pytest.fixture
def claim(server: FakeApiServer) -> dict[str, Any]:
    return server.put("persistentvolumeclaims", {**CLAIM, "metadata": {"name": "datasets"}})


@pytest.fixture
def reviews(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder to send."""
    return write(tmp_path / "reviews", FILES)


def write(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("claim")
def test_put_copies_a_folder_prints_its_claim_and_deletes_the_helper_pod(
    run: Run, server: FakeApiServer, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    result = run("put", reviews, "datasets/2026/reviews")
    assert result.exit_code == 0, result.output
    assert contents(output) == {f"2026/reviews/{name}": content for name, content in FILES.items()}
    sent = sum(map(len, FILES.values()))
    first, second = result.stdout.splitlines()
    assert first == f"4 files in the claim ({sent:,} bytes sent); in a FineTuneJob:"
    assert yaml.safe_load(second) == {"claim": {"claimName": "datasets", "path": "2026/reviews"}}
    assert Claim.model_validate(yaml.safe_load(second)["claim"])
    assert server.list_names("pods") == []


@pytest.mark.usefixtures("claim")
def test_what_is_in_the_claim_already_is_not_sent(run: Run, reviews: pathlib.Path) -> None:
    for source in (reviews, reviews / "train.jsonl"):
        run("put", source, "datasets")
        assert "(nothing to send)" in run("put", source, "datasets").output


@pytest.mark.usefixtures("claim")
@pytest.mark.parametrize(
    ("target", "path"),
    [("datasets", "test.jsonl"), ("datasets/", "test.jsonl"), ("datasets/a/", "a/test.jsonl"), ("datasets/a/b.json", "a/b.json")],
)
def test_a_source_keeps_its_name_unless_the_path_names_another_one(
    cluster: FineTune, reviews: pathlib.Path, output: pathlib.Path, target: str, path: str
) -> None:
    placed = cluster.put(reviews / "test.jsonl", target)
    assert (placed.path, contents(output)) == (path, {path: FILES["test.jsonl"]})


@pytest.mark.usefixtures("claim")
def test_progress_ends_at_the_total_size(cluster: FineTune, reviews: pathlib.Path) -> None:
    calls: list[tuple[int, int, str]] = []
    cluster.put(reviews, "datasets", on_progress=lambda *values: calls.append(values))
    total = sum(map(len, FILES.values()))
    sent = [done for done, _, what in calls if what in {"train.jsonl", "test.jsonl", "ä b"}]
    assert sent == sorted(sent)
    assert calls[-1] == (total, total, "train.jsonl")
    assert (total, total, "reading train.jsonl") in calls


@pytest.mark.usefixtures("claim")
def test_a_broken_connection_continues_where_it_stopped(
    cluster: FineTune, server: FakeApiServer, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    # Each of the first seven tries confirms a further MiB or nothing, and never five in a row confirm nothing.
    server.cut_uploads = [10, 10, (1 << 20) + 150_000, 10, 10, 10, (1 << 20) + 150_000]
    placed = cluster.put(reviews, "datasets")
    assert contents(output / "reviews") == FILES
    assert placed.sent <= sum(map(len, FILES.values())), "no confirmed byte is sent twice"
    assert not server.cut_uploads


@pytest.mark.usefixtures("claim")
def test_after_too_many_tries_what_arrived_is_kept_and_the_next_call_continues(
    cluster: FineTune, server: FakeApiServer, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    server.cut_uploads = [(2 << 20) + 150_000, 10, 10, 10, 10, 10]
    with pytest.raises(UnreachableError, match="what has arrived is kept: run the same command again to continue"):
        cluster.put(reviews / "train.jsonl", "datasets")
    assert [path.name for path in output.iterdir()] == ["train.jsonl.partial"], "an incomplete file has another name"
    assert server.list_names("pods") == [], "the helper pod is deleted"
    placed = cluster.put(reviews / "train.jsonl", "datasets")
    assert contents(output) == {"train.jsonl": BIG}
    assert placed.sent <= 1 << 20


@pytest.mark.usefixtures("claim")
def test_what_an_earlier_call_left_of_other_files_is_not_used(
    cluster: FineTune, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    left = {"train.jsonl": b"of another file", "test.jsonl": BIG[:90_000], "gone": b"x", "more/empty/file": b"x"}
    write(output / "reviews.partial", left)
    cluster.put(reviews, "datasets")
    assert contents(output) == {f"reviews/{name}": content for name, content in FILES.items()}


@pytest.mark.usefixtures("claim")
def test_a_corrupt_file_is_sent_again_once_and_then_refused(
    cluster: FineTune, server: FakeApiServer, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    server.corrupt_uploads = 1
    cluster.put(reviews, "datasets")
    assert contents(output / "reviews") == FILES
    server.corrupt_uploads = 9
    with pytest.raises(PutError, match=r"test\.jsonl arrives with another SHA-256"):
        cluster.put(reviews / "test.jsonl", "datasets")
    assert not (output / "test.jsonl").exists()


@pytest.mark.usefixtures("claim")
def test_what_exists_and_differs_is_replaced_only_if_asked(run: Run, reviews: pathlib.Path, output: pathlib.Path) -> None:
    run("put", reviews, "datasets")
    before = (output / "reviews/train.jsonl").stat().st_ino
    (reviews / "test.jsonl").write_bytes(b"\xff")
    (reviews / "more/empty").unlink()
    for source, name in ((reviews, "reviews"), (reviews / "test.jsonl", "reviews/test.jsonl")):
        result = run("put", source, f"datasets/{name}")
        assert result.exit_code == 1
        assert f"{name} exists in the claim and differs" in result.output
    assert "(more/empty and 1 more): choose another path, or use --replace" in run("put", reviews, "datasets").output
    assert contents(output / "reviews") == FILES
    assert "(1 bytes sent)" in run("put", reviews, "datasets", "--replace").output
    assert contents(output) == {f"reviews/{name}": content for name, content in contents(reviews).items()}
    assert (output / "reviews/train.jsonl").stat().st_ino == before, "a file that stays is not copied"


@pytest.mark.usefixtures("claim")
def test_a_replacement_deletes_no_other_folder(run: Run, reviews: pathlib.Path, output: pathlib.Path) -> None:
    run("put", reviews, "datasets")
    run("put", reviews, "datasets/reviews.old")
    (reviews / "test.jsonl").write_bytes(b"\xff")
    assert "(1 bytes sent)" in run("put", reviews, "datasets", "--replace").output
    assert contents(output / "reviews.old") == FILES
    assert {path.name for path in output.iterdir()} == {"reviews", "reviews.old"}


@pytest.mark.usefixtures("claim")
def test_an_interrupted_replacement_does_not_change_what_is_there(
    cluster: FineTune, server: FakeApiServer, reviews: pathlib.Path, output: pathlib.Path
) -> None:
    cluster.put(reviews, "datasets")
    (reviews / "test.jsonl").write_bytes(BIG)
    server.cut_uploads = [150_000, 10, 10, 10, 10, 10]
    with pytest.raises(UnreachableError):
        cluster.put(reviews, "datasets", replace=True)
    (reviews / "train.jsonl").write_bytes(BIG + BIG)
    server.cut_uploads = [150_000, 10, 10, 10, 10, 10]
    with pytest.raises(UnreachableError):
        cluster.put(reviews, "datasets", replace=True)
    assert contents(output / "reviews") == FILES


@pytest.mark.usefixtures("claim")
def test_a_file_and_a_folder_do_not_replace_each_other(run: Run, reviews: pathlib.Path, output: pathlib.Path) -> None:
    (output / "folder").mkdir()
    (output / "file").touch()
    place = run("put", reviews / "test.jsonl", "datasets/folder", "--replace").output
    assert "folder is a folder in the claim: write folder/ to put the file into it" in place
    assert "file is a file in the claim" in run("put", reviews, "datasets/file", "--replace").output
    assert "the claim can't be written: " in run("put", reviews, "datasets/file/inside").output


def test_a_missing_claim_is_created_only_if_asked(run: Run, server: FakeApiServer, reviews: pathlib.Path) -> None:
    result = run("put", reviews, "datasets")
    assert result.exit_code == 1
    assert "there is no claim datasets in namespace team: add --create --size 10Gi" in result.output
    assert run("put", reviews, "datasets", "--create").exit_code == 2
    created = run(
        "put", reviews, "datasets", "--create", "--size", "1Gi", "--access-mode", "ReadWriteMany", "--storage-class", "fast"
    )
    assert created.exit_code == 0, created.output
    assert server.get("persistentvolumeclaims", "datasets")["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }
    again = run("put", reviews, "datasets", "--create", "--size", "1Gi")
    assert "(nothing to send)" in again.output, "the same command continues in the claim that it has created"


def test_without_a_storage_class_the_cluster_chooses(cluster: FineTune, server: FakeApiServer, reviews: pathlib.Path) -> None:
    cluster.put(reviews, "datasets", NewClaim("1Gi"))
    spec = server.get("persistentvolumeclaims", "datasets")["spec"]
    assert spec == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


@pytest.mark.usefixtures("claim")
def test_what_can_not_be_sent_is_refused_before_a_pod_starts(
    run: Run, server: FakeApiServer, reviews: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "none").mkdir()
    linked = write(tmp_path / "linked", {"a": b"x"})
    (linked / "b").symlink_to(reviews / "train.jsonl")
    refusals = {
        (tmp_path / "absent", "datasets"): "there is no file or folder",
        (tmp_path / "none", "datasets"): "contains no file",
        (linked, "datasets"): "is a symbolic link, which a pod can't follow: replace it with a copy, as `cp -rL` does",
        (pathlib.Path("/dev/null"), "datasets"): "is not a regular file",
        (reviews, "datasets/../x"): "'../x' is not a path in the claim: write names separated by /, without . and ..",
        (reviews, "datasets//x"): "'/x' is not a path in the claim",
        (reviews, "Data_Sets"): "'Data_Sets' is not the name of a claim: write CLAIM or CLAIM/PATH",
    }
    for (source, target), sentence in refusals.items():
        result = run("put", source, target)
        assert result.exit_code == 1
        assert sentence in " ".join(result.output.split())
    assert not any(request.startswith("POST") for request in server.requests)


@pytest.mark.usefixtures("claim")
def test_a_symbolic_link_in_the_claim_is_not_followed(
    cluster: FineTune, reviews: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "outside").mkdir()
    (output / "out").symlink_to(tmp_path / "outside")
    (output / "reviews.partial").symlink_to(tmp_path / "outside")
    for target in ("datasets/out", "datasets/out/x", "datasets/reviews"):
        with pytest.raises(PutError, match="leads through a symbolic link in the claim"):
            cluster.put(reviews, target)
    assert not any((tmp_path / "outside").iterdir())


@pytest.mark.usefixtures("claim")
def test_a_claim_without_room_is_reported_before_and_while_files_are_sent(
    run: Run, reviews: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    patch = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", str(patch))  # the fake pod's Python imports it
    small = "import os, types\nos.statvfs = lambda path: types.SimpleNamespace(f_bavail=1, f_frsize=1 << 20)\n"
    write(patch, {"sitecustomize.py": small.encode()})
    result = run("put", reviews, "datasets")
    assert result.exit_code == 1
    assert "the claim has 1.0 MiB free, but 3.1 MiB are still to be sent: make room" in " ".join(result.output.split())
    full = "import errno, os\ndef fsync(file):\n    raise OSError(errno.ENOSPC, 'No space left on device')\nos.fsync = fsync\n"
    write(patch, {"sitecustomize.py": full.encode()})
    result = run("put", reviews, "datasets")
    assert result.exit_code == 1
    assert "error: the claim is full; what has arrived is kept" in result.output


@pytest.mark.usefixtures("claim")
def test_a_claim_that_the_user_may_not_write_to_is_reported(
    run: Run, reviews: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    refused = (
        "import pathlib\ndef mkdir(*_, **__):\n    raise PermissionError(13, 'Permission denied')\npathlib.Path.mkdir = mkdir\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(write(tmp_path / "site", {"sitecustomize.py": refused.encode()})))
    assert (
        "may not write to the claim (Permission denied): choose its owner with --user" in run("put", reviews, "datasets").output
    )


@pytest.mark.usefixtures("claim")
def test_a_claim_in_use_on_another_node_is_reported(run: Run, server: FakeApiServer, clock: Clock, reviews: pathlib.Path) -> None:
    volumes = [{"name": "x", "persistentVolumeClaim": {"claimName": "datasets"}}]
    server.put("pods", pod(volumes=volumes))
    server.put("pods", pod("done", state={"terminated": {"exitCode": 0}}, volumes=volumes, nodeName="node-z"))
    server.pods_start = False

    def schedule() -> None:
        [name] = (name for name in server.list_names("pods") if "-put-" in name)
        helper = server.get("pods", name)
        near = helper["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"]
        assert near["matchFields"][0]["values"] == ["node-a"], "the node that uses the claim is preferred"
        helper["spec"]["nodeName"] = "node-b"
        about = {"name": name, "uid": helper["metadata"]["uid"]}
        event = {"metadata": {"name": "e"}, "involvedObject": about, "type": "Warning", "reason": "FailedAttachVolume"}
        server.put("events", {**event, "message": 'Multi-Attach error for volume "pvc-1"'})

    clock.then = [schedule]
    result = run("put", reviews, "datasets")
    assert result.exit_code == 1
    sentence = "the claim datasets can't be mounted on two nodes at the same time, and pod news-1-0-abcde uses it on node node-a"
    assert sentence in " ".join(result.output.split())
    assert len(clock.pauses) == 1, "it does not wait for the time limit"
    assert not any("-put-" in name for name in server.list_names("pods"))


@pytest.mark.usefixtures("claim")
def test_a_helper_pod_that_does_not_start_says_why(run: Run, server: FakeApiServer, clock: Clock, reviews: pathlib.Path) -> None:
    server.pods_start = False

    def refuse() -> None:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        [name] = server.list_names("pods")
        server.get("pods", name)["status"] = {"phase": "Pending", "containerStatuses": [{"name": "helper", "state": waiting}]}

    clock.then = [refuse]
    result = run("put", reviews, "datasets")
    assert "the pod that writes to the claim can't start (ImagePullBackOff: no such image)" in " ".join(result.output.split())
    assert "choose another image with --image" in " ".join(result.output.split())


@pytest.mark.usefixtures("claim")
def test_missing_rights_are_named(run: Run, server: FakeApiServer, reviews: pathlib.Path) -> None:
    for request, what in (("POST pods", "pods"), ("GET pods/exec", "pods/exec")):
        server.responses = {request: error_response(403, "Forbidden", f'User "me" cannot create resource "{what}"')}
        assert f"you may not create {what} in namespace team" in " ".join(run("put", reviews, "datasets").output.split())


def test_the_helper_pod_passes_pod_security_and_is_deleted_with_the_claim(claim: dict[str, Any]) -> None:
    built = helper_pod.build_put_pod(claim, None, None, None, None, None)
    spec, [container] = built["spec"], built["spec"]["containers"]
    assert built["metadata"]["ownerReferences"][0]["uid"] == claim["metadata"]["uid"]
    ids = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **ids}
    assert spec["automountServiceAccountToken"] is False
    assert container["image"] == helper_pod.PUT_IMAGE
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": helper_pod.PUT_DIR}]
    long = {"metadata": {**claim["metadata"], "name": "a" * 49 + ".b"}}
    assert helper_pod.build_put_pod(long, None, None, None, None, None)["metadata"]["generateName"] == "a" * 49 + "-put-"


@pytest.mark.usefixtures("claim")
def test_the_helper_pod_has_the_settings_of_the_newest_job(
    cluster: FineTune, server: FakeApiServer, clock: Clock, reviews: pathlib.Path
) -> None:
    server.put("finetunejobs", job("waits"))
    status = {**SUCCEEDED, "resolved": {"image": "trainer:old"}}
    server.put("finetunejobs", job("old", status) | {"metadata": {"name": "old", "creationTimestamp": "2020-01-01T00:00:00Z"}})
    server.put("finetunejobs", job("news", SUCCEEDED, pod={"tolerations": [{"key": "gpu", "operator": "Exists"}]}))
    server.pods_start = False
    seen: list[dict[str, Any]] = []

    def look() -> None:
        [name] = (name for name in server.list_names("pods") if "-put-" in name)
        seen.append(server.get("pods", name)["spec"])
        server.get("pods", name)["status"] = {"phase": "Failed"}

    for options in (PodOptions(), PodOptions(image="python:3", user=7)):
        clock.then = [look]
        with pytest.raises(PutError):
            cluster.put(reviews, "datasets", pod=options)
    assert [spec["containers"][0]["image"] for spec in seen] == ["trainer:1", "python:3"]
    assert [spec["securityContext"]["runAsUser"] for spec in seen] == [1000, 7]
    assert seen[0]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
