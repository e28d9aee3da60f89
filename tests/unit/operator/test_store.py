"""What is remembered of what watches and lists told, and what is not believed."""

import dataclasses

import pytest

from finetune_api.wire import Report
from finetune_operator.observed import Key, Observation, PodState
from finetune_operator.store import Children, Heard, Store
from unit.operator.builders import KEY, build_child, build_pod, build_record, end

OTHER = Key("other", "news")


def filled() -> Store:
    store = Store()
    store.put_observation(Observation(build_record(), [build_child(version=5)], [build_pod(0, version=5)]), at=50.0)
    store.heard[KEY] = Heard("news-1-0-x", Report(attempt=1, phase="Running"), 5.0)
    return store


def test_an_observation_of_the_store_says_that_it_is_one() -> None:
    seen = filled().observation(KEY)
    assert seen == Observation(build_record(), [build_child(version=5)], [build_pod(0, version=5)], live=False)
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
    assert [pod.version for pod in store.pods.of(KEY)] == [kept]


def test_a_job_of_the_same_name_that_was_created_anew_replaces_the_old_one() -> None:
    store = Store()
    store.put_job(build_record())
    store.put_job(build_record(uid="another", version=9))
    assert store.jobs[KEY].uid == "another"


def test_a_late_word_of_the_old_job_of_that_name_does_not_replace_the_new_one() -> None:
    store = Store()
    store.put_job(build_record(uid="another", version=9))
    store.put_job(build_record(version=7))
    assert store.jobs[KEY].uid == "another"


def departed(store: Store, *present: PodState) -> list[tuple[str, int]]:
    seen = store.with_departed(Observation(build_record(), [], present))
    return [(pod.name, pod.version) for pod in seen.departed]


def test_a_pod_that_is_gone_is_known_by_its_end_until_another_has_its_place() -> None:
    store = filled()
    ended = build_pod(0, version=8, finished=end(75, phase="Interrupted"))
    store.put_pod(KEY, ended)
    assert departed(store) == [(ended.name, 8)], "the list that does not have it is later than the watch"
    assert departed(store, ended) == []
    store.drop_pod(KEY, dataclasses.replace(ended, version=9))
    assert store.pods.of(KEY) == []
    assert departed(store) == [(ended.name, 9)]
    assert departed(store, build_pod(0, attempt=2)) == []
    store.drop_pod(KEY, build_pod(1, attempt=2, version=12))
    assert departed(store) == [], "it has nothing to say of a later attempt"


def test_of_two_pods_in_the_same_place_the_later_one_alone_is_known_by_its_end() -> None:
    store = filled()
    store.drop_pod(KEY, build_pod(0, name="evicted", version=8, finished=end(75, phase="Interrupted")))
    store.drop_pod(KEY, build_pod(1, version=9, finished=end(75)))
    store.drop_pod(KEY, build_pod(0, name="killed", version=10))
    assert departed(store) == [(build_pod(1).name, 9)]
    store.drop_job(KEY)
    assert departed(store) == []


def test_children_of_a_job_that_is_not_known_are_not_kept() -> None:
    store = Store()
    store.put_child(KEY, build_child())
    store.put_pod(KEY, build_pod(0))
    assert (store.children.of(KEY), store.pods.of(KEY)) == ([], [])


def test_with_a_job_everything_of_it_is_forgotten() -> None:
    store = filled()
    store.doubtful.add(KEY)
    store.drop_job(KEY)
    assert not any([store.jobs, store.heard, store.looked, store.doubtful, store.children.of(KEY), store.pods.of(KEY)])


@pytest.mark.parametrize(("version", "there"), [(6, True), (7, False), (None, False)])
def test_a_late_word_of_an_end_does_not_drop_a_later_job(version: int | None, there: bool) -> None:
    store = filled()
    store.drop_job(KEY, version)
    assert (KEY in store.jobs, KEY in store.heard, bool(store.pods.of(KEY))) == (there, there, there)


def test_a_fresh_look_ends_the_doubts() -> None:
    store = filled()
    store.doubtful.add(KEY)
    store.put_observation(Observation(build_record()), at=77.0)
    assert (store.doubtful, store.looked) == (set(), {KEY: 77.0})


@pytest.mark.parametrize(("version", "there"), [(4, True), (5, False), (6, False)])
def test_a_deletion_older_than_what_is_known_is_of_an_earlier_child(version: int, there: bool) -> None:
    children: Children[object] = Children()  # type: ignore[type-var]
    children.put(KEY, build_pod(0, version=5))
    children.drop(KEY, "news-1-0-x", version)
    assert bool(children.of(KEY)) == there
    children.drop(OTHER, "news-1-0-x", version)


def pods(key: Key, *versions: int) -> Store:
    store = Store()
    for index, version in enumerate(versions):
        store.pods.put(key, build_pod(index, version=version))
    return store


def test_what_a_list_lacks_is_gone_and_its_job_is_named() -> None:
    store = pods(KEY, 5, 5)
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == {KEY}
    assert [pod.index for pod in store.pods.of(KEY)] == [0]
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()


def test_what_is_newer_than_a_list_stays() -> None:
    store = pods(KEY, 5, 11)
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()
    assert [pod.index for pod in store.pods.of(KEY)] == [0, 1]


def test_what_only_a_list_has_is_taken_over() -> None:
    store = Store()
    assert store.pods.replace({KEY: [build_pod(0, version=5)]}, 10, None) == set()
    assert [pod.index for pod in store.pods.of(KEY)] == [0]


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    store = pods(OTHER, 5)
    assert store.pods.replace({}, 10, "team") == set()
    assert store.pods.replace({}, 10, "other") == {OTHER}


def test_nothing_is_left_of_jobs_whose_children_are_gone() -> None:
    store = pods(KEY, 5)
    store.pods.replace({}, 10, None)
    assert not store.pods._by_job
