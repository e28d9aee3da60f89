"""Errors of the API server: the job still succeeds with a single Job, and the operator does not retry too often."""

import itertools
import re

import pytest

from faults.calls import Call, Record
from faults.environment import Environment
from faults.rules import Match, Response, Rule, calls

pytestmark = pytest.mark.cluster
ONE_POD = {"distributed": {"nodes": 1}, "training": {"maxSteps": 3}}


def tries(env: Environment, verb: str, rbac_resource: str, name: str | None = None) -> list[Record]:
    return env.proxy.find(calls(verb, rbac_resource, name))


def delays(records: list[Record]) -> list[float]:
    """Return the seconds between each record and the next."""
    return [later.at - earlier.at for earlier, later in itertools.pairwise(records)]


def test_the_operator_retries_a_status_patch_after_a_conflict(env: Environment) -> None:
    rule = env.proxy.add(Rule(calls("patch", "finetunejobs/status"), response=Response(409), times=3))
    env.submit("job", **ONE_POD)
    env.wait_phase("job", "Succeeded")
    assert rule.hits == 3
    assert env.created() == ["job-1"]


@pytest.mark.parametrize("rbac_resource", ["jobs", "finetunejobs/status"])
def test_the_operator_waits_for_the_seconds_in_retry_after(env: Environment, rbac_resource: str) -> None:
    seconds = 4
    verb = "create" if rbac_resource == "jobs" else "patch"
    rule = env.proxy.add(Rule(calls(verb, rbac_resource), response=Response(429, retry_after=seconds), times=2))
    env.submit("job", **ONE_POD)
    env.wait_phase("job", "Succeeded")
    assert rule.hits == 2
    waited = delays(tries(env, verb, rbac_resource)[:3])
    print(f"Retry-After {seconds} s: waited {waited}")
    assert all(delay >= seconds for delay in waited), waited
    assert all(delay < 3 * seconds for delay in waited), waited
    assert env.created() == ["job-1"]


@pytest.mark.parametrize("code", [500, 503])
def test_the_operator_retries_server_errors_with_growing_random_delays(env: Environment, code: int) -> None:
    names = ["one", "two", "three"]
    for name in names:
        env.proxy.add(Rule(calls("create", "jobs", f"{name}-1"), response=Response(code), times=4))
        env.submit(name, **ONE_POD)
    waited = []
    for name in names:
        env.wait_phase(name, "Succeeded")
        waited.append(delays(tries(env, "create", "jobs", f"{name}-1")))
    print(f"delays after {code}: {waited}")
    for seconds in waited:
        assert len(seconds) == 4
        assert seconds[3] > 1.5 * seconds[0], f"the delays do not grow: {waited}"
    spread = max(seconds[3] for seconds in waited) - min(seconds[3] for seconds in waited)
    assert spread > 0.01, f"the delays of the jobs are equal: {waited}"
    assert sorted(env.created()) == sorted(f"{name}-1" for name in names)


def test_a_connection_closed_before_or_after_any_write_never_creates_a_second_job(env: Environment) -> None:
    env.submit("baseline", **ONE_POD)
    env.wait_phase("baseline", "Succeeded")
    number = len(env.writes(Call.is_job_write))
    jobs = {}
    for when in ("before", "after"):
        for index in range(number):
            name = f"{when}-{index}"
            rule = Rule(writes_for(name), drop=when, skip=index)
            jobs[name] = env.proxy.add(rule)
            env.submit(name, **ONE_POD)
    for name in jobs:
        status = env.wait_phase(name, "Succeeded", timeout=150)
        assert (status["attempt"], status["restarts"]["failures"]) == (1, 0), name
    print(f"{number} writes; rules without a hit: {[name for name, rule in jobs.items() if not rule.hits]}")
    # A busy operator writes fewer statuses than it did for the first job, because it writes only the newest one.
    assert sum(rule.hits for rule in jobs.values()) >= len(jobs) // 2
    assert sorted(env.created()) == sorted(f"{name}-1" for name in ["baseline", *jobs])


def writes_for(name: str) -> Match:
    """Match the writes of a FineTuneJob and of its children."""
    return lambda call: call.is_job_write() and re.fullmatch(rf"{name}(-(\d|gang|output))?", call.target) is not None


def test_the_status_names_a_missing_permission_and_the_job_runs_when_it_is_granted(env: Environment) -> None:
    def set_rules(rules: list[dict]) -> None:
        env.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "operator", "namespace": env.name},
                "rules": rules,
            }
        )

    without_create = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "create"]} if "jobs" in rule["resources"] else rule
        for rule in env.rules
    ]
    set_rules(without_create)
    env.wait("the permission is removed", lambda: not may_create_jobs(env), 10)
    env.submit("job", **ONE_POD)
    status = env.wait("the status has the reason Forbidden", lambda: status_with_reason(env, "Forbidden"), 20, "job")
    print(status["message"])
    assert "create" in status["message"]
    assert "jobs" in status["message"]
    blocked = {item["type"]: item for item in status["conditions"]}["Blocked"]
    assert (blocked["status"], blocked["reason"]) == ("True", "Forbidden")
    assert "create" in blocked["message"]
    set_rules(env.rules)
    status = env.wait_phase("job", "Succeeded", timeout=60)
    assert [item["status"] for item in status["conditions"] if item["type"] == "Blocked"] == ["False"]
    assert env.created() == ["job-1"]


def status_with_reason(env: Environment, reason: str) -> dict | None:
    """Return the job's status if it has this reason, else None."""
    status = env.status("job")
    return status if status.get("reason") == reason else None


def may_create_jobs(env: Environment) -> bool:
    account = f"system:serviceaccount:{env.name}:operator"
    done = env.kubectl("auth", "can-i", "create", "jobs.batch", f"--as={account}", check=False)
    return done.stdout.strip() == "yes"
