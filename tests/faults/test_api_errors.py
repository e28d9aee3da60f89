"""What the API server answers in bad moments: the job ends the same, with one Job, and the server is not pestered."""

import itertools
import re

import pytest

from faults.calls import Call, Record
from faults.place import Place
from faults.rules import Answer, Rule, calls

pytestmark = pytest.mark.cluster
ONE = {"distributed": {"nodes": 1}, "training": {"maxSteps": 3}}


def tries(place: Place, verb: str, kind: str, name: str | None = None) -> list[Record]:
    return place.proxy.find(calls(verb, kind, name))


def gaps(records: list[Record]) -> list[float]:
    return [later.at - earlier.at for earlier, later in itertools.pairwise(records)]


def test_a_conflict_at_the_status_is_read_again_and_written_again(place: Place) -> None:
    rule = place.proxy.add(Rule(calls("patch", "finetunejobs/status"), answer=Answer(409), times=3))
    place.submit("job", **ONE)
    place.wait_phase("job", "Succeeded")
    assert rule.hits == 3
    assert place.created() == ["job-1"]


@pytest.mark.parametrize("kind", ["jobs", "finetunejobs/status"])
def test_too_many_requests_with_retry_after_is_obeyed(place: Place, kind: str) -> None:
    seconds = 4
    verb = "create" if kind == "jobs" else "patch"
    rule = place.proxy.add(Rule(calls(verb, kind), answer=Answer(429, retry_after=seconds), times=2))
    place.submit("job", **ONE)
    place.wait_phase("job", "Succeeded")
    assert rule.hits == 2
    waited = gaps(tries(place, verb, kind)[:3])
    print(f"Retry-After {seconds} s: waited {waited}")
    assert all(gap >= seconds for gap in waited), waited
    assert all(gap < 3 * seconds for gap in waited), waited
    assert place.created() == ["job-1"]


@pytest.mark.parametrize("code", [500, 503])
def test_an_error_of_the_server_is_tried_again_with_pauses_that_grow_and_differ(place: Place, code: int) -> None:
    names = ["one", "two", "three"]
    for name in names:
        place.proxy.add(Rule(calls("create", "jobs", f"{name}-1"), answer=Answer(code), times=4))
        place.submit(name, **ONE)
    waited = []
    for name in names:
        place.wait_phase(name, "Succeeded")
        waited.append(gaps(tries(place, "create", "jobs", f"{name}-1")))
    print(f"pauses after {code}: {waited}")
    for pauses in waited:
        assert len(pauses) == 4
        assert pauses[3] > 1.5 * pauses[0], f"pauses grow: {waited}"
    assert max(pauses[3] for pauses in waited) - min(pauses[3] for pauses in waited) > 0.01, f"pauses differ: {waited}"
    assert sorted(place.created()) == sorted(f"{name}-1" for name in names)


def test_connections_cut_at_any_write_before_or_after_it_never_make_a_second_job(place: Place) -> None:
    place.submit("whole", **ONE)
    place.wait_phase("whole", "Succeeded")
    number = len(place.writes(lambda call: call.is_of_life()))
    jobs = {}
    for when in ("before", "after"):
        for index in range(number):
            name = f"{when}-{index}"
            rule = Rule(written_for(name), drop=when, skip=index)
            jobs[name] = place.proxy.add(rule)
            place.submit(name, **ONE)
    for name in jobs:
        status = place.wait_phase(name, "Succeeded", timeout=150)
        assert (status["attempt"], status["restarts"]["failures"]) == (1, 0), name
    print(f"{number} writes; never struck: {[name for name, rule in jobs.items() if not rule.hits]}")
    assert sum(rule.hits for rule in jobs.values()) >= len(jobs) * 3 // 4
    assert sorted(place.created()) == sorted(f"{name}-1" for name in ["whole", *jobs])


def written_for(name: str):  # type: ignore[no-untyped-def]
    def match(call: Call) -> bool:
        return call.is_of_life() and re.fullmatch(rf"{name}(-(\d|gang|output))?", call.target) is not None

    return match


def test_a_missing_right_is_named_in_the_status_and_heals_when_it_is_given(place: Place) -> None:
    def set_rules(rules: list[dict]) -> None:
        place.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "operator", "namespace": place.name},
                "rules": rules,
            }
        )

    lesser = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "create"]} if "jobs" in rule["resources"] else rule
        for rule in place.rules
    ]
    set_rules(lesser)
    place.wait("the right is gone", lambda: not may_create_jobs(place), 10)
    place.submit("job", **ONE)
    status = place.wait("it is said", lambda: told(place, "Forbidden"), 20, "job")
    print(status["message"])
    assert "create" in status["message"]
    assert "jobs" in status["message"]
    blocked = {item["type"]: item for item in status["conditions"]}["Blocked"]
    assert (blocked["status"], blocked["reason"]) == ("True", "Forbidden")
    assert "create" in blocked["message"]
    set_rules(place.rules)
    status = place.wait_phase("job", "Succeeded", timeout=60)
    assert [item["status"] for item in status["conditions"] if item["type"] == "Blocked"] in ([], ["False"])
    assert place.created() == ["job-1"]


def told(place: Place, reason: str) -> dict | None:
    status = place.status("job")
    return status if status.get("reason") == reason else None


def may_create_jobs(place: Place) -> bool:
    account = f"system:serviceaccount:{place.name}:operator"
    done = place.kubectl("auth", "can-i", "create", "jobs.batch", f"--as={account}", check=False)
    return done.stdout.strip() == "yes"
