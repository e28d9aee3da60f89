"""The place in Kueue's queue: one Job without pods holds it, and the quota, for all attempts of a job."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.observed import Key, Manifest, write_time
from finetune_operator.parsing import read_child_job, read_job
from unit.operator.builders import KEY, UID, ago, job_manifest, pod_manifest, running, spec_fields
from unit.operator.fake_server import Answer, Killed
from unit.operator.harness import Harness

PLACE = names.queue_job_name(KEY.name)
LABELS = {names.LABEL_KUEUE_QUEUE: "gpus"}
SPEC: dict[str, Any] = {"output": {"claim": {"claimName": "mine"}}}


async def queue(status: FineTuneJobStatus | None = None, **spec: Any) -> Harness:
    """Return a cluster with a job in a queue, whose place exists."""
    harness = Harness()
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC, **spec), status=status, labels=LABELS), [], [])
    await harness.reconcile()
    return harness


async def step(harness: Harness, times: int = 1) -> None:
    """Reconcile with what the watches report."""
    for _ in range(times):
        for name in harness.server.names_of("jobs"):
            harness.store.put_child(KEY, read_child_job(harness.server.take("jobs", name)))
        await harness.reconcile()


def set_suspend(harness: Harness, value: bool, **template: Any) -> None:
    """Suspend or resume the Job that holds the place, as Kueue does."""
    place = harness.server.take("jobs", PLACE)
    place["spec"]["suspend"] = value
    place["spec"]["template"]["spec"] |= template
    harness.server.put("jobs", place)


async def start(**template: Any) -> Harness:
    harness = await queue()
    set_suspend(harness, False, **template)
    await step(harness)
    return harness


def change_spec(harness: Harness, **spec: Any) -> None:
    job = harness.server.take("finetunejobs", KEY.name)
    job["spec"] |= spec
    job["metadata"]["generation"] += 1
    harness.store.put_job(read_job(harness.server.put("finetunejobs", job)))


def place_uid(harness: Harness) -> str:
    return str(harness.server.take("jobs", PLACE)["metadata"]["uid"])


async def test_a_job_in_a_queue_has_a_place_and_no_pods_until_it_is_admitted() -> None:
    harness = await queue()
    place = harness.server.take("jobs", PLACE)
    assert harness.server.names_of("jobs") == [PLACE]
    assert (place["spec"]["managedBy"], place["spec"]["suspend"]) == ("finetune.dev/operator", True)
    assert place["metadata"]["labels"][names.LABEL_KUEUE_QUEUE] == "gpus"
    assert (harness.status["phase"], harness.status.get("attempt")) == ("Queued", None)
    await step(harness, 3)
    assert (harness.server.names_of("jobs"), harness.server.writes()) == ([PLACE], [])


async def test_a_place_waits_for_a_worker_where_creations_are_blocked() -> None:
    harness = Harness()
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC), labels=LABELS), [], [])
    creations = harness.reconciler._creations
    for number in range(4):
        creations.begin(Key(KEY.namespace, f"job-{number}"))
    creations.blocked(Key(KEY.namespace, "job-0"))
    await harness.reconcile()
    assert harness.server.names_of("jobs") == []
    creations.end(Key(KEY.namespace, "job-0"))
    await harness.reconcile()
    assert harness.server.names_of("jobs") == [PLACE]


async def test_an_attempt_belongs_to_the_place_and_runs_where_kueue_says() -> None:
    toleration = {"key": "spot", "operator": "Exists"}
    harness = await start(nodeSelector={"flavor": "spot"}, tolerations=[toleration], schedulingGates=[{"name": "kueue"}])
    job = harness.server.take("jobs", "news-1")
    owners = {owner["kind"]: (owner["uid"], owner["controller"]) for owner in job["metadata"]["ownerReferences"]}
    assert owners == {"Job": (place_uid(harness), True), names.KIND: (UID, False)}
    assert "suspend" not in job["spec"]
    assert names.LABEL_KUEUE_QUEUE not in job["metadata"]["labels"]
    pod = job["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["schedulingGates"]) == ({"flavor": "spot"}, [{"name": "kueue"}])
    assert toleration in pod["tolerations"]
    assert harness.server.take("jobs", PLACE)["status"] == {"active": 2, "ready": 2}
    assert (harness.status["phase"], harness.status["attempt"]) == ("Pending", 1)


async def test_a_restart_keeps_the_place() -> None:
    harness = await start()
    before = place_uid(harness)
    deleted = harness.server.objects.pop(("jobs", KEY.namespace, "news-1"))
    harness.store.children.forget(KEY)
    for _ in range(8):
        harness.advance(10)
        await step(harness)
    assert deleted["metadata"]["name"] == "news-1"
    assert harness.server.names_of("jobs") == ["news-2", PLACE]
    assert place_uid(harness) == before
    assert harness.server.take("jobs", PLACE)["status"]["active"] == 2


async def test_an_evicted_job_gives_the_quota_back_when_its_pods_have_ended_and_queues_with_its_place() -> None:
    harness = await start()
    pod = pod_manifest(0)
    pod["metadata"]["ownerReferences"][0]["uid"] = harness.server.take("jobs", "news-1")["metadata"]["uid"]
    harness.server.put("pods", pod)
    before = place_uid(harness)
    set_suspend(harness, True)
    await step(harness, 3)
    assert harness.server.names_of("jobs") == [PLACE]
    assert harness.status["phase"] == "Queued"
    assert harness.server.take("jobs", PLACE)["status"]["active"] == 2, "a pod still saves its checkpoint"
    del harness.server.objects["pods", KEY.namespace, pod["metadata"]["name"]]
    harness.store.pods.forget(KEY)
    await step(harness, 2)
    assert harness.server.take("jobs", PLACE)["status"]["active"] == 0
    set_suspend(harness, False)
    await step(harness)
    assert (harness.server.names_of("jobs"), place_uid(harness)) == (["news-2", PLACE], before)
    assert harness.status["attempts"][0]["reason"] == "EvictedByQueue"
    assert harness.status["restarts"]["total"] == 0


@pytest.mark.parametrize("phase", ["Succeeded", "Suspended"])
async def test_a_job_that_is_finished_or_suspended_leaves_the_queue(phase: Any) -> None:
    ended = Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(2)), nodes=2, reason="Completed")
    harness = await start()
    harness.server.objects.pop(("jobs", KEY.namespace, "news-1"))
    status = running(phase=phase, reason=phase, completion_time=write_time(ago(1)), attempts=[ended])
    suspend = {"suspend": True} if phase == "Suspended" else {}
    harness.server.put("finetunejobs", job_manifest(spec=spec_fields(**SPEC, **suspend), status=status, labels=LABELS))
    harness.start()
    for _ in range(2):
        await harness.reconcile()
    assert harness.server.names_of("jobs") == []


async def test_a_job_that_resumes_runs_as_soon_as_it_is_admitted() -> None:
    ended = Attempt(number=1, start_time=write_time(ago(90)), completion_time=write_time(ago(2)), nodes=2, reason="Suspended")
    harness = await queue(running(phase="Suspended", reason="Suspended", attempts=[ended], running_since=None))
    set_suspend(harness, False)
    await step(harness)
    assert harness.server.names_of("jobs") == ["news-2", PLACE]


async def test_a_queued_job_keeps_its_place_unless_it_asks_for_something_else() -> None:
    harness = await queue()
    before = place_uid(harness)
    change_spec(harness, ttlSecondsAfterFinished=60)
    await step(harness, 3)
    assert place_uid(harness) == before
    change_spec(harness, distributed={"nodes": 3})
    await step(harness, 3)
    assert place_uid(harness) != before
    assert harness.server.take("jobs", PLACE)["spec"]["completions"] == 3


async def test_a_cluster_that_would_run_the_place_as_a_job_gets_none() -> None:
    harness = Harness()
    created: Manifest = {"metadata": {"uid": "place", "name": PLACE, "namespace": KEY.namespace}, "spec": {"suspend": True}}
    harness.server.answers["POST jobs"] = Answer(201, created)
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC), labels=LABELS), [], [])
    await harness.reconcile()
    assert f"DELETE jobs {PLACE}" in harness.server.requests
    assert (harness.status["phase"], harness.status["reason"]) == ("Pending", "UnsupportedQueue")


async def test_a_queued_job_that_leaves_its_queue_starts() -> None:
    harness = await queue()
    job = harness.server.take("finetunejobs", KEY.name)
    job["metadata"]["labels"] = {}
    harness.store.put_job(read_job(harness.server.put("finetunejobs", job)))
    await step(harness, 3)
    assert harness.server.names_of("jobs") == ["news-1"]


@pytest.mark.parametrize("labels", [LABELS, {}])
async def test_a_queue_decides_itself_where_pods_run_so_they_get_no_pod_group_of_kubernetes(labels: dict[str, str]) -> None:
    harness = Harness()
    harness.store.scheduling_groups = True
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC), labels=labels), [], [])
    await harness.reconcile()
    for place in harness.server.names_of("jobs") if labels else ():
        assert "schedulingGroup" not in harness.server.take("jobs", place)["spec"]["template"]["spec"]
        set_suspend(harness, False)
        await step(harness)
    pod = harness.server.take("jobs", "news-1")["spec"]["template"]["spec"]
    groups = harness.server.names_of("podgroups")
    assert groups == ([] if labels else [pod["schedulingGroup"]["podGroupName"]])
    assert ("schedulingGroup" in pod) == bool(groups)


def add_default_queue(harness: Harness) -> None:
    """Let Kueue's webhook put each new Job without a queue into the queue `default`, but not those of a Job in a queue."""
    put = harness.server.put

    def put_with_queue(plural: str, manifest: Manifest) -> Manifest:
        owners = manifest["metadata"].get("ownerReferences", [])
        is_new = plural == "jobs" and "resourceVersion" not in manifest["metadata"]
        if is_new and not any(owner["kind"] == "Job" for owner in owners):
            manifest["metadata"]["labels"].setdefault(names.LABEL_KUEUE_QUEUE, "default")
            manifest["spec"]["suspend"] = True
        return put(plural, manifest)

    harness.server.put = put_with_queue  # type: ignore[method-assign]


async def test_a_job_that_kueue_puts_into_the_default_queue_keeps_its_place_like_one_that_names_a_queue() -> None:
    harness = Harness()
    add_default_queue(harness)
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC)), [], [])
    await harness.reconcile()
    assert harness.server.names_of("configmaps") == [], "nothing else is created for an attempt that waits"
    await step(harness, 3)
    assert harness.server.names_of("jobs") == [PLACE]
    assert harness.server.take("jobs", PLACE)["metadata"]["labels"][names.LABEL_KUEUE_QUEUE] == "default"
    assert (harness.status["phase"], harness.status.get("attempt")) == ("Queued", None)
    before = place_uid(harness)

    set_suspend(harness, False)
    await step(harness)
    assert (harness.server.names_of("jobs"), harness.status["attempt"]) == (["news-1", PLACE], 1)
    assert "suspend" not in harness.server.take("jobs", "news-1")["spec"]
    harness.server.objects.pop(("jobs", KEY.namespace, "news-1"))
    harness.store.children.forget(KEY)
    for _ in range(8):
        harness.advance(10)
        await step(harness)
    assert (harness.server.names_of("jobs"), place_uid(harness)) == (["news-2", PLACE], before)


async def test_an_operator_that_ends_while_it_gives_a_job_its_place_is_followed_by_one_that_completes_it() -> None:
    harness = Harness()
    add_default_queue(harness)
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC)), [], [])
    for _ in range(3):  # after the Service, after the Job, after the deletion of the Job
        harness.server.kill_after = len(harness.server.done) + 1
        with pytest.raises(Killed):
            await harness.reconcile()
        harness.start()
    harness.server.kill_after = None
    await step(harness, 2)
    assert harness.server.names_of("jobs") == [PLACE]
    assert harness.status["phase"] == "Queued"


async def test_a_job_in_the_default_queue_that_changes_takes_another_place() -> None:
    harness = Harness()
    add_default_queue(harness)
    harness.add_objects(job_manifest(spec=spec_fields(**SPEC)), [], [])
    await harness.reconcile()
    before = place_uid(harness)
    await step(harness, 2)
    assert place_uid(harness) == before
    change_spec(harness, distributed={"nodes": 3})
    await step(harness, 4)
    assert place_uid(harness) != before
    assert harness.server.take("jobs", PLACE)["spec"]["completions"] == 3
