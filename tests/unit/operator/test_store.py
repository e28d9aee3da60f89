"""The store: what it keeps of watch events and lists, and what it ignores."""

import dataclasses

import pytest

from finetune_api.resource import read_spec
from finetune_api.wire import Report
from finetune_operator.observed import CreatedAttempt, Key, Observation, PodState
from finetune_operator.parsing import read_job
from finetune_operator.store import Children, LastReport, Store
from unit.operator.builders import KEY, NOW, build_child, build_pod, build_record, end, job_manifest

OTHER = Key("other", "news")


def filled() -> Store:
    store = Store()
    store.put_observation(Observation(build_record(), [build_child(version=5)], [build_pod(0, version=5)]), read_at=50.0)
    store.last_reports[KEY] = LastReport("news-1-0-x", Report(attempt=1, phase="Running"))
    return store


def test_an_observation_from_the_store_is_not_marked_as_live() -> None:
    observation = filled().observation(KEY)
    assert observation == Observation(build_record(), [build_child(version=5)], [build_pod(0, version=5)], live=False)
    assert Store().observation(KEY) is None


def test_a_job_that_is_being_deleted_is_not_observed() -> None:
    store = Store()
    store.put_job(build_record(deleting=True))
    assert store.observation(KEY) is None


@pytest.mark.parametrize(("version", "kept"), [(8, 8), (7, 7), (6, 7)])
def test_an_older_version_does_not_replace_a_later_one(version: int, kept: int) -> None:
    store = Store()
    store.put_job(build_record())
    store.put_job(build_record(version=version))
    assert store.jobs[KEY].version == kept
    store.pods.put(KEY, build_pod(0, version=7))
    store.pods.put(KEY, build_pod(0, version=version))
    assert [pod.version for pod in store.pods.by_job(KEY)] == [kept]


def test_a_new_job_of_the_same_name_replaces_the_old_one() -> None:
    store = Store()
    store.put_job(build_record())
    store.put_job(build_record(uid="another", version=9))
    assert store.jobs[KEY].uid == "another"


def test_a_late_event_of_the_old_job_of_that_name_does_not_replace_the_new_one() -> None:
    store = Store()
    store.put_job(build_record(uid="another", version=9))
    store.put_job(build_record(version=7))
    assert store.jobs[KEY].uid == "another"


def terminated_pods(store: Store, *present: PodState) -> list[tuple[str, int]]:
    observation = store.complete(Observation(build_record(), [], present))
    return [(pod.name, pod.version) for pod in observation.terminated_pods]


def test_a_terminated_pod_is_kept_until_another_pod_replaces_it() -> None:
    store = filled()
    ended = build_pod(0, version=8, terminated=end(75, phase="Interrupted"))
    store.put_pod(KEY, ended)
    assert terminated_pods(store) == [(ended.name, 8)], "the list without the pod is newer than the watch event"
    assert terminated_pods(store, ended) == []
    store.drop_pod(KEY, dataclasses.replace(ended, version=9))
    assert store.pods.by_job(KEY) == []
    assert terminated_pods(store) == [(ended.name, 9)]
    assert terminated_pods(store, build_pod(0, attempt=2)) == []
    store.drop_pod(KEY, build_pod(1, attempt=2, version=12))
    assert terminated_pods(store) == [], "it does not belong to the later attempt"


def test_only_the_later_of_two_pods_with_one_index_is_kept_as_a_terminated_pod() -> None:
    store = filled()
    store.drop_pod(KEY, build_pod(0, name="evicted", version=8, terminated=end(75, phase="Interrupted")))
    store.drop_pod(KEY, build_pod(1, version=9, terminated=end(75)))
    store.drop_pod(KEY, build_pod(0, name="killed", version=10))
    assert terminated_pods(store) == [(build_pod(1).name, 9)]
    store.drop_job(KEY)
    assert terminated_pods(store) == []


def test_children_of_an_unknown_job_are_not_kept() -> None:
    store = Store()
    store.put_child(KEY, build_child())
    store.put_pod(KEY, build_pod(0))
    assert (store.children.by_job(KEY), store.pods.by_job(KEY)) == ([], [])


def test_dropping_a_job_drops_everything_that_belongs_to_it() -> None:
    store = filled()
    store.requires_live_read.add(KEY)
    store.drop_job(KEY)
    assert not any(
        [
            store.jobs,
            store.last_reports,
            store.last_refusal_check,
            store.requires_live_read,
            store.children.by_job(KEY),
            store.pods.by_job(KEY),
        ]
    )


@pytest.mark.parametrize(("version", "there"), [(6, True), (7, False), (None, False)])
def test_a_late_deletion_event_does_not_drop_a_later_job(version: int | None, there: bool) -> None:
    store = filled()
    store.drop_job(KEY, version)
    assert (KEY in store.jobs, KEY in store.last_reports, bool(store.pods.by_job(KEY))) == (there, there, there)


def test_a_live_read_is_required_once() -> None:
    store = filled()
    store.requires_live_read.add(KEY)
    store.put_observation(Observation(build_record()), read_at=77.0)
    assert (store.requires_live_read, store.last_refusal_check) == (set(), {KEY: 77.0})


@pytest.mark.parametrize(("version", "there"), [(4, True), (5, False), (6, False)])
def test_a_deletion_event_that_is_older_than_the_known_child_is_ignored(version: int, there: bool) -> None:
    children: Children[object] = Children()  # type: ignore[type-var]
    children.put(KEY, build_pod(0, version=5))
    children.drop(KEY, "news-1-0-x", version)
    assert bool(children.by_job(KEY)) == there
    children.drop(OTHER, "news-1-0-x", version)


def pods(key: Key, *versions: int) -> Store:
    store = Store()
    for index, version in enumerate(versions):
        store.pods.put(key, build_pod(index, version=version))
    return store


def test_a_child_that_a_list_lacks_is_dropped_and_its_job_is_returned() -> None:
    store = pods(KEY, 5, 5)
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == {KEY}
    assert [pod.index for pod in store.pods.by_job(KEY)] == [0]
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()


def test_a_child_that_is_newer_than_the_list_is_kept() -> None:
    store = pods(KEY, 5, 11)
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()
    assert [pod.index for pod in store.pods.by_job(KEY)] == [0, 1]


def test_a_child_that_only_the_list_has_is_added() -> None:
    store = Store()
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()
    assert [pod.index for pod in store.pods.by_job(KEY)] == [0]


def test_a_list_of_one_namespace_does_not_affect_others() -> None:
    store = pods(OTHER, 5)
    assert store.pods.replace({}, 10, "team") == set()
    assert store.pods.replace({}, 10, "other") == {OTHER}


def test_a_job_whose_children_are_all_dropped_leaves_no_entry() -> None:
    store = pods(KEY, 5)
    store.pods.replace({}, 10, None)
    assert not store.pods._by_job


def test_a_new_job_of_the_same_name_does_not_inherit_the_attempt_that_was_created_for_the_earlier_one() -> None:
    store = filled()
    earlier = store.jobs[KEY]
    store.created_attempts[KEY] = CreatedAttempt(earlier.uid, 1, 1, NOW, "trainer:1", 2)
    observation = store.observation(KEY)
    assert observation is not None
    assert observation.created_attempt is not None
    store.put_job(dataclasses.replace(earlier, uid="another", version=earlier.version + 5))
    store.drop_job(KEY, earlier.version + 1)  # the deletion of the earlier job is reported late
    observation = store.observation(KEY)
    assert observation is not None
    assert observation.created_attempt is None


def test_a_job_is_parsed_only_if_it_has_changed_and_its_spec_only_if_that_has() -> None:
    store, manifest = Store(), job_manifest(generation=1)
    manifest["metadata"]["resourceVersion"] = "7"
    store.put_job(read_job(manifest))
    known = store.jobs[KEY]
    assert store.read_job(manifest) is known

    manifest["metadata"]["resourceVersion"], manifest["status"] = "8", {"phase": "Pending"}
    later = store.read_job(manifest)
    assert (later.status.phase, later.version) == ("Pending", 8)
    assert later.spec is known.spec

    manifest["metadata"]["generation"], manifest["spec"]["suspend"] = 2, True
    assert store.read_job(manifest).spec == read_spec(manifest["spec"])
    manifest["metadata"].update(uid="another", generation=1, resourceVersion="7")
    assert store.read_job(manifest).spec == read_spec(manifest["spec"])
