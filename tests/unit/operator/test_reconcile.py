"""Reconciles of one job against an in-memory API server: what each of them reads and writes."""

import dataclasses
import json
from typing import Any

import pytest

from finetune_api.status import Attempt, Published
from finetune_api.wire import Report
from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.observed import Key, write_time
from finetune_operator.parsing import read_job, read_pod, read_workload
from finetune_operator.policy.cleanup import seconds_to_next_reconcile
from finetune_operator.queue import RetryLaterError
from finetune_operator.store import LastReport
from unit.operator.builders import (
    IMAGE,
    KEY,
    NOW,
    ago,
    build_record,
    child_manifest,
    job_manifest,
    pod_manifest,
    running,
    spec_fields,
    workload_manifest,
)
from unit.operator.fake_server import refusal
from unit.operator.harness import Harness

LIVE_READ = ["GET finetunejobs news", "GET jobs", "GET pods"]
DELETE_CLAIM: dict[str, Any] = {"output": {"retention": {"whenFinished": "Delete"}}, "publish": {"repository": "team/news"}}


@pytest.fixture
def harness() -> Harness:
    return Harness()


def ended(seconds: float = 5, phase: str = "Succeeded", **changes: Any) -> Any:
    return running(phase=phase, reason="Completed", running_since=None, completion_time=write_time(ago(seconds)), **changes)


async def test_a_new_job_gets_its_children_its_status_and_its_event_in_that_order(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    assert await harness.reconcile() == 1
    children = ["POST services", "POST jobs", "POST configmaps", "POST persistentvolumeclaims"]
    assert harness.server.writes() == [*children, "PATCH finetunejobs news/status", "POST events"]
    assert (harness.status["phase"], harness.status["attempt"], harness.status["resolved"]["image"]) == ("Pending", 1, IMAGE)
    assert [child.name for child in harness.store.children.by_job(KEY)] == ["news-1"]


async def test_a_job_that_another_controller_runs_gets_nothing(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])  # an earlier one of this name, whose deletion the watch has not reported yet
    harness.server.put("finetunejobs", job_manifest(spec=spec_fields(managedBy="kueue.x-k8s.io/multikueue"), uid="another"))
    assert await harness.reconcile() is None
    assert (harness.server.writes(), harness.store.jobs) == ([], {})
    await harness.resync.list_active()
    assert harness.store.jobs == {}


async def test_with_a_backlog_the_first_status_comes_after_the_children_of_other_jobs(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.backlog = True
    assert await harness.reconcile() == 2
    assert harness.server.writes()[-1] == "POST persistentvolumeclaims"
    harness.advance(2)
    assert await harness.reconcile() == 2
    assert harness.server.requests == []
    harness.backlog = False
    await harness.reconcile()
    assert harness.server.requests == ["PATCH finetunejobs news/status", "POST events"]
    assert (harness.status["phase"], harness.status["attempt"]) == ("Pending", 1)
    assert harness.status["startTime"] == write_time(NOW)


async def test_a_backlog_delays_the_first_status_for_a_limited_time(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.backlog = True
    await harness.reconcile()
    harness.advance(20)
    await harness.reconcile()
    assert "PATCH finetunejobs news/status" in harness.server.requests


async def test_an_operator_that_is_restarted_during_a_backlog_creates_nothing_twice(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.backlog = True
    await harness.reconcile()
    harness.start()
    harness.backlog = False
    harness.add_objects(harness.server.take("finetunejobs", KEY.name), [], [])
    await harness.reconcile()
    assert harness.status["attempt"] == 1
    assert harness.server.names_of("jobs") == ["news-1"]


async def test_a_stable_job_costs_no_request(harness: Harness) -> None:
    harness.add_running_job()
    for _ in range(5):
        assert await harness.reconcile() == 20
        assert harness.server.requests == []
        harness.advance(60)


async def test_progress_costs_one_write_every_ten_seconds(harness: Harness) -> None:
    harness.add_running_job()
    writes = []
    for step in range(60):
        harness.store.last_reports[KEY] = LastReport("news-1-0-x", Report(attempt=1, phase="Running", step=step, total_steps=100))
        await harness.reconcile()
        assert set(harness.server.requests) <= {"PATCH finetunejobs news/status"}
        writes += harness.server.requests
        harness.advance(1)
    assert len(writes) == 6


async def test_a_failure_is_read_live_before_it_is_written(harness: Harness) -> None:
    harness.add_running_job()
    deleted = pod_manifest(1)
    deleted["metadata"] |= {"deletionTimestamp": write_time(NOW), "resourceVersion": "900"}
    harness.store.put_pod(KEY, read_pod(deleted))
    await harness.reconcile()
    assert harness.server.requests == LIVE_READ
    assert harness.status["phase"] == "Running", "the watch was wrong: the pod is unchanged"
    harness.server.put("pods", deleted)
    await harness.reconcile()
    assert harness.server.requests == [*LIVE_READ, "PATCH finetunejobs news/status", "POST events"]
    assert (harness.status["phase"], harness.status["reason"]) == ("Restarting", "PodLost")


async def test_the_final_report_of_a_pod_that_was_gone_before_the_list_is_written(harness: Harness) -> None:
    stopped = running(
        phase="Suspended",
        reason="Suspended",
        running_since=None,
        attempts=[Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(2)), nodes=2)],
    )
    harness.add_objects(job_manifest(spec=spec_fields(suspend=True), status=stopped), [], [])
    report = {"attempt": 1, "phase": "Interrupted", "step": 120, "checkpoint": {"step": 120, "time": write_time(ago(1))}}
    end = {"terminated": {"exitCode": 75, "finishedAt": write_time(ago(1)), "message": json.dumps(report)}}
    harness.store.drop_pod(KEY, read_pod(pod_manifest(0, state=end)))
    await harness.reconcile()
    assert harness.status["checkpoint"]["step"] == 120
    assert harness.status["message"].startswith("suspended, the checkpoint of step 120 is kept")


async def test_a_job_that_requires_a_live_read_is_read_live_once(harness: Harness) -> None:
    harness.add_running_job()
    harness.store.requires_live_read.add(KEY)
    await harness.reconcile()
    assert harness.server.requests == LIVE_READ
    await harness.reconcile()
    assert harness.server.requests == []


async def test_a_restart_deletes_waits_and_creates_in_separate_reconciles(harness: Harness) -> None:
    status = running(phase="Restarting", reason="PodLost")
    harness.add_objects(job_manifest(status=status), [child_manifest()], [pod_manifest(0)])
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE jobs news-1"]
    await harness.reconcile()
    assert harness.server.writes() == []
    del harness.server.objects["pods", "team", "news-1-0-x"]
    await harness.reconcile()
    assert harness.server.names_of("jobs") == ["news-2"]
    assert harness.status["attempt"] == 2


async def test_a_status_conflict_leads_to_a_live_read(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.answers["PATCH finetunejobs"] = refusal(409, "Conflict")
    assert await harness.reconcile() == 0.2
    assert harness.store.requires_live_read == {KEY}
    assert harness.server.names_of("jobs") == ["news-1"]
    del harness.server.answers["PATCH finetunejobs"]
    await harness.reconcile()
    assert harness.server.names_of("jobs") == ["news-1"]
    assert (harness.status["phase"], harness.status["attempt"]) == ("Pending", 1)


async def test_a_deleted_job_is_dropped_from_the_store_and_the_metrics(harness: Harness) -> None:
    harness.add_running_job()
    await harness.reconcile()
    del harness.server.objects["finetunejobs", "team", "news"]
    harness.store.requires_live_read.add(KEY)
    assert await harness.reconcile() is None
    assert not any(
        [harness.store.jobs, harness.store.requires_live_read, harness.store.last_refusal_check, harness.store.pods.by_job(KEY)]
    )
    labels = {"namespace": "team", "finetunejob": "news", "phase": "Running"}
    assert harness.registry.get_sample_value("finetune_job_phase", labels) is None


@pytest.mark.parametrize("code", [429, 503])
async def test_an_error_of_the_server_is_retried_after_the_requested_delay(harness: Harness, code: int) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.answers["POST jobs"] = refusal(code, "Busy", **{"Retry-After": "9"})
    with pytest.raises(RetryLaterError) as caught:
        await harness.reconcile()
    assert caught.value.after_seconds == 9
    assert harness.registry.get_sample_value("finetune_operator_reconcile_errors_total") == 1


async def test_a_process_that_does_not_hold_the_lease_retries_later(harness: Harness) -> None:
    def refuse() -> None:
        raise NotLeadingError("this process does not hold the Lease")

    harness.add_objects(job_manifest(), [], [])
    harness.api.set_write_check(refuse)
    with pytest.raises(RetryLaterError):
        await harness.reconcile()


async def test_an_event_that_can_not_be_written_is_no_error(harness: Harness) -> None:
    harness.add_objects(job_manifest(), [], [])
    harness.server.answers["POST events"] = refusal(403, "Forbidden", "no")
    assert await harness.reconcile() == 1
    assert harness.status["phase"] == "Pending"


async def test_a_finished_job_is_read_once_and_costs_no_further_request(harness: Harness) -> None:
    harness.server.put("finetunejobs", job_manifest(status=ended()))
    assert await harness.reconcile() is None
    assert harness.server.requests == LIVE_READ
    assert not any([harness.store.jobs, harness.store.last_refusal_check])


async def test_a_finished_job_whose_spec_changed_is_reconciled_once(harness: Harness) -> None:
    harness.server.put("finetunejobs", job_manifest(status=ended(400), generation=2))
    await harness.reconcile()
    assert harness.status["observedGeneration"] == 2
    assert seconds_to_next_reconcile(harness.server.take("finetunejobs", KEY.name), harness.now) is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_nothing_is_ever_created_for_a_finished_job(harness: Harness, phase: str) -> None:
    harness.server.put("finetunejobs", job_manifest(status=ended(phase=phase)))
    for _ in range(3):
        await harness.reconcile()
        assert harness.server.writes() == []


async def test_a_finished_job_is_deleted_after_its_time_to_live(harness: Harness) -> None:
    spec = spec_fields(ttlSecondsAfterFinished=60)
    harness.server.put("finetunejobs", job_manifest(spec, ended(20)))
    assert await harness.reconcile() == 40
    harness.advance(40)
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE finetunejobs news"]
    assert await harness.reconcile() is None


async def test_only_the_volume_of_the_published_job_itself_is_deleted(harness: Harness) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    harness.server.put("finetunejobs", job_manifest(spec_fields(**DELETE_CLAIM), ended(published=published)))
    harness.server.put("persistentvolumeclaims", {"metadata": {"namespace": "team", "name": "news-output"}})
    await harness.reconcile()
    assert harness.server.writes() == []
    uid = job_manifest()["metadata"]["uid"]
    metadata = {"namespace": "team", "name": "news-output", "annotations": {"finetune.dev/owner-uid": uid}}
    harness.server.put("persistentvolumeclaims", {"metadata": metadata})
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE persistentvolumeclaims news-output"]


async def test_the_pods_that_use_the_volume_are_deleted_first(harness: Harness) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    harness.server.put("finetunejobs", job_manifest(spec_fields(**DELETE_CLAIM), ended(published=published)))
    metadata = {
        "namespace": "team",
        "name": "news-output",
        "annotations": {"finetune.dev/owner-uid": job_manifest()["metadata"]["uid"]},
    }
    harness.server.put("persistentvolumeclaims", {"metadata": metadata})
    harness.server.put("jobs", child_manifest())
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE jobs news-1"]
    await harness.reconcile()
    assert harness.server.writes() == ["DELETE persistentvolumeclaims news-output"]


async def test_a_job_whose_volume_was_deleted_needs_no_further_reconcile(harness: Harness) -> None:
    published = Published(url="https://hub/team/news", commit="abc")
    harness.server.put("finetunejobs", job_manifest(spec_fields(**DELETE_CLAIM), ended(published=published)))
    assert await harness.reconcile() is None


async def test_the_refusal_of_pods_is_checked_every_fifteen_seconds(harness: Harness) -> None:
    status = running(phase="Pending", reason="PodsPending", message="0 of 2 pods created", running_since=None)
    harness.add_objects(job_manifest(status=status), [child_manifest()], [])
    await harness.reconcile()
    assert harness.server.requests == []
    harness.advance(16)
    await harness.reconcile()
    assert harness.server.requests == ["GET events"]
    await harness.reconcile()
    assert harness.server.requests == []


async def test_ten_thousand_jobs_in_a_queue_are_checked_less_often_and_a_running_job_is_not(harness: Harness) -> None:
    harness.add_running_job()
    queued = build_record(running(phase="Queued"))
    for number in range(10_000):
        harness.store.put_job(dataclasses.replace(queued, key=Key("queue", f"job-{number}")))
    assert await harness.reconcile() == 20
    harness.add_objects(
        job_manifest(status=running(phase="Queued")), [child_manifest(spec={"completions": 2, "suspend": True})], []
    )
    seconds = await harness.reconcile()
    assert seconds is not None
    assert seconds > 400


async def test_a_change_of_the_spec_before_the_first_status_trains_the_changed_spec(harness: Harness) -> None:
    harness.backlog = True  # so the status comes later than the children
    harness.add_objects(job_manifest(), [], [])
    await harness.reconcile()
    assert harness.server.names_of("jobs") == ["news-1"]
    changed = harness.server.take("finetunejobs", KEY.name)
    changed["spec"]["training"] = {"learningRate": 0.5}
    changed["metadata"]["generation"] = 2
    harness.store.put_job(read_job(harness.server.put("finetunejobs", changed)))
    harness.backlog = False
    assert await harness.reconcile() == 1
    assert harness.server.names_of("jobs") == []
    assert (harness.status["phase"], harness.status["reason"]) == ("Pending", "SpecChanged")
    assert "startTime" not in harness.status
    await harness.reconcile()
    assert (harness.status["attempt"], harness.status["observedGeneration"]) == (1, 2)
    [volume] = [
        volume
        for volume in harness.server.take("jobs", "news-1")["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "config"
    ]
    assert '"learningRate": 0.5' in harness.server.take("configmaps", volume["configMap"]["name"])["data"]["run.json"]


async def test_a_suspended_job_that_is_resized_resumes_on_the_changed_nodes(harness: Harness) -> None:
    """The second change of the spec comes after the attempt was created, but before the status says so."""
    ended = Attempt(number=1, start_time=write_time(NOW), completion_time=write_time(NOW), nodes=2, reason="Suspended")
    status = running(phase="Suspended", reason="Suspended", running_since=None, attempts=[ended])
    job = job_manifest(status=status, spec=spec_fields(distributed={"nodes": 3}, output={"claim": {"claimName": "mine"}}))
    harness.add_objects(job, [], [])
    harness.server.answers["PATCH finetunejobs"] = OSError("the process ends")
    with pytest.raises(RetryLaterError):
        await harness.reconcile()
    assert harness.server.take("jobs", "news-2")["spec"]["completions"] == 3
    changed = harness.server.take("finetunejobs", KEY.name)
    changed["spec"]["distributed"]["nodes"], changed["metadata"]["generation"] = 4, 2
    harness.server.put("finetunejobs", changed)
    del harness.server.answers["PATCH finetunejobs"]
    harness.start()
    for _ in range(3):
        await harness.reconcile()
    assert harness.server.take("jobs", "news-2")["spec"]["completions"] == 4
    assert (harness.status["attempt"], harness.status["resolved"]["nodes"]) == (2, 4)


OWN_CLAIM = {"output": {"claim": {"claimName": "shared"}}}


@pytest.fixture
def synced(harness: Harness) -> Harness:
    """Return the harness of a leader that has listed everything, and whose watch has reported the creation of the job."""
    harness.store.listed_as_leader = True
    harness.store.announced.add(KEY)
    return harness


async def test_a_new_job_costs_one_request_for_each_child_its_status_and_its_event(synced: Harness) -> None:
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM)), [], [])
    await synced.reconcile()
    children = ["POST services", "POST jobs", "POST configmaps"]
    assert synced.server.requests == [*children, "PATCH finetunejobs news/status", "POST events"]
    assert synced.status["attempt"] == 1


@pytest.mark.parametrize("reason", ["not listed as the leader", "only listed", "the name was used", "a conflict", "no new job"])
async def test_the_children_of_other_jobs_are_created_after_a_live_read(synced: Harness, reason: str) -> None:
    status = {"phase": "Pending", "reason": "QuotaExceeded", "message": "m"} if reason == "no new job" else None
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM), status=status), [], [])
    if reason == "not listed as the leader":
        synced.store.listed_as_leader = False
    elif reason == "only listed":
        synced.store.announced.clear()
    elif reason == "the name was used":
        synced.store.drop_job(KEY)
        synced.store.announced.add(KEY)
        synced.store.put_job(read_job(synced.server.take("finetunejobs", KEY.name)))
    elif reason == "a conflict":
        synced.store.requires_live_read.add(KEY)
    await synced.reconcile()
    assert synced.server.requests[:4] == [*LIVE_READ, "POST services"]


async def test_a_new_job_whose_name_is_taken_is_read_live(synced: Harness) -> None:
    synced.server.put("jobs", child_manifest(uid="an earlier job"))
    synced.server.put("pods", pod_manifest(0))
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM)), [], [])
    assert await synced.reconcile() == 1
    assert synced.server.writes() == ["POST services", "POST jobs"]
    await synced.reconcile()
    assert synced.server.requests[:3] == LIVE_READ
    assert (synced.status["phase"], synced.status["reason"]) == ("Pending", "WaitingForDeletion")


async def test_a_job_that_waits_for_its_turn_in_a_blocked_namespace_costs_no_request(synced: Harness) -> None:
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM)), [], [])
    synced.reconciler._creations.begin = lambda key: False  # type: ignore[method-assign]
    for _ in range(3):
        assert await synced.reconcile() == 1
        assert synced.server.requests == []


async def test_a_job_whose_status_can_wait_is_not_decided_again_meanwhile(
    synced: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM)), [], [])
    synced.backlog = True
    assert await synced.reconcile() == 2
    decided: list[Any] = []
    monkeypatch.setattr(synced.reconciler, "_decide", decided.append)
    for _ in range(9):
        synced.advance(2)
        assert await synced.reconcile() == 2
    assert (decided, synced.server.requests) == ([], [])
    for name in ("duration", "work"):
        assert synced.registry.get_sample_value(f"finetune_operator_reconcile_{name}_seconds_count", {"read": "cache"}) == 1


async def test_a_pod_that_has_ended_is_not_kept_waiting_by_other_jobs(synced: Harness) -> None:
    synced.add_objects(job_manifest(spec=spec_fields(**OWN_CLAIM)), [], [])
    synced.backlog = True
    await synced.reconcile()
    end = {"terminated": {"exitCode": 1, "finishedAt": write_time(ago(1)), "reason": "Error"}}
    synced.store.put_pod(KEY, read_pod(synced.server.put("pods", pod_manifest(0, state=end))))
    await synced.reconcile()
    assert "PATCH finetunejobs news/status" in synced.server.requests


QUEUED = running(phase="Queued", reason="Pending", message="no quota", running_since=None)
STOPPED = [Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(2)), nodes=2)]
SUSPENDED = running(phase="Suspended", reason="Suspended", running_since=None, attempts=STOPPED)


@pytest.mark.parametrize(
    ("status", "spec", "children"),
    [
        pytest.param(QUEUED, {}, [child_manifest(spec={"completions": 2, "suspend": True})], id="in a queue"),
        pytest.param(SUSPENDED, {"suspend": True}, [], id="suspended by its user"),
        pytest.param(None, {"suspend": True}, [], id="created suspended"),
    ],
)
async def test_a_waiting_job_costs_no_request(harness: Harness, status: Any, spec: dict[str, Any], children: list[Any]) -> None:
    harness.add_objects(job_manifest(spec=spec_fields(**spec), status=status), children, [])
    await harness.reconcile()  # it may write the status once
    await harness.reconcile()
    for _ in range(60):
        harness.advance(1)
        await harness.reconcile()
        assert harness.server.requests == []


async def test_the_message_of_a_queue_is_written_less_often_if_many_jobs_wait(harness: Harness) -> None:
    queued = child_manifest(spec={"completions": 2, "suspend": True})
    harness.add_objects(job_manifest(status=QUEUED), [queued], [])
    for number in range(999):
        harness.store.put_job(dataclasses.replace(build_record(QUEUED), key=Key("queue", f"job-{number}")))
    writes = []
    for minute in range(100):
        waiting = ("QuotaReserved", "False", "Pending", f"{minute} more needed")
        manifest = harness.server.put("workloads", workload_manifest(waiting))
        harness.store.put_workload(KEY, read_workload(manifest))
        await harness.reconcile()
        writes += harness.server.requests
        harness.advance(10)
    assert writes == ["PATCH finetunejobs news/status"] * 2, "every 500 seconds"
