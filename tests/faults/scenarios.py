"""Scenarios: a FineTuneJob runs to its end. At one of its writes the operator is killed with SIGKILL, and started again."""

import concurrent.futures
import dataclasses
import queue
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from faults.calls import Call
from faults.environment import Environment
from faults.rules import Rule

When = Literal["before", "after"]
KillPoint = tuple[int, When]  # the number of a write, from 1, and whether the operator dies before or after it
PARALLEL_RUNS = 3  # a run spends most of its time waiting
RUN_SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state after a run, without what differs from run to run.

    phase, attempt, failures: from the status. children: kind/name of the job's objects.
    created: names of the Jobs, in the order of their creation. writes: verb and resource of each write.
    events: reasons, sorted. For Started this is the message, which names the attempt.
    """

    phase: str
    attempt: int
    failures: int
    children: list[str]
    created: list[str]
    events: list[str]
    writes: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a scenario with the operator killed at a write.

    killed: False if the job made fewer writes than write_number.
    """

    write_number: int
    when: When
    killed: bool
    outcome: Outcome


def run_job(env: Environment, name: str, write_number: int = 0, when: When = "after", **job: Any) -> Run:
    """Run a job to its end. Kill the operator at the write with this number (0: never), and start it again."""
    proxy, operator = env.proxy, env.operator
    first = len(proxy.records)
    rule = Rule(_writes_of(name), drop=when, callback=operator.kill, skip=write_number - 1, times=1 if write_number else 0)
    proxy.add(rule)
    uid = env.submit(name, **job)
    try:
        env.wait(f"{name} finishes or the operator is killed", lambda: rule.hits or _is_finished(env, name), RUN_SECONDS, name)
        if not rule.hits:  # The final event may still come, and the kill may be at its write.
            _wait_for_final_event(env, uid, rule)
        if rule.hits:
            operator.wait_exit()  # The rule counts the hit first. With "after", it kills only when the API server has answered.
            operator.restart()
            env.wait(f"{name} finishes", lambda: _is_finished(env, name), RUN_SECONDS, name)
            _wait_for_final_event(env, uid, rule)
    finally:
        proxy.remove(rule)
    run = Run(write_number, when, bool(rule.hits), _collect_outcome(env, name, uid, first))
    env.kubectl("delete", "finetunejob", name, "--wait=false")
    env.kubectl("delete", "persistentvolumeclaim", f"{name}-output", "--wait=false")
    return run


def run_scenarios(envs: list[Environment], kill_points: Iterable[KillPoint], title: str, **job: Any) -> list[Run]:
    """Run the job once for each kill point. The environments share the runs and work in parallel."""
    pending: queue.SimpleQueue[KillPoint] = queue.SimpleQueue()
    for kill_point in kill_points:
        pending.put(kill_point)

    def work(env: Environment) -> list[Run]:
        return [run_job(env, f"{title}-{when}-{number}", number, when, **job) for number, when in _drain(pending)]

    with concurrent.futures.ThreadPoolExecutor(len(envs)) as pool:
        return [run for runs in pool.map(work, envs) for run in runs]


def _drain(pending: "queue.SimpleQueue[KillPoint]") -> Iterator[KillPoint]:
    while True:
        try:
            yield pending.get_nowait()
        except queue.Empty:
            return


def _writes_of(name: str) -> Callable[[Call], bool]:
    return lambda call: call.is_write() and call.resource != "leases" and re.match(rf"{name}($|[-.])", call.target) is not None


def _is_finished(env: Environment, name: str) -> bool:
    return env.status(name).get("phase") in ("Succeeded", "Failed")


def _wait_for_final_event(env: Environment, uid: str, rule: Rule) -> None:
    """Wait up to 3 s for the event of the final phase. It is lost if the operator died between the status and the event."""

    def arrived() -> bool:
        return bool(rule.hits) or any(event["reason"] in ("Succeeded", "Failed") for event in env.job_events(uid))

    try:
        env.wait("the final event", arrived, 3)
    except AssertionError:
        print("the final event did not arrive")


def _collect_outcome(env: Environment, name: str, uid: str, first: int) -> Outcome:
    """Return the outcome, and check the conditions that hold for every run. first: index of the run's first record."""
    status = env.status(name)
    selector = f"finetune.dev/finetunejob={name}"

    def owners_of_run_files() -> set[str]:
        return {item["metadata"]["ownerReferences"][0]["uid"] for item in env.objects("configmaps", selector)}

    jobs = {job["metadata"]["uid"] for job in env.objects("jobs", selector)}
    env.wait("no run file of an earlier attempt", lambda: owners_of_run_files() <= jobs, 60, name)
    for kind in ("jobs", "services", "persistentvolumeclaims"):
        for item in env.objects(kind, selector):
            owners = [owner["uid"] for owner in item["metadata"].get("ownerReferences", ())]
            owners = owners or [item["metadata"].get("annotations", {}).get("finetune.dev/owner-uid")]
            assert owners == [uid], f"{kind}/{item['metadata']['name']} belongs to {owners}"
    events = env.job_events(uid)
    assert [event.get("count", 1) for event in events] == [1] * len(events)
    return Outcome(
        phase=status["phase"],
        attempt=status["attempt"],
        failures=status["restarts"]["failures"],
        children=sorted(_without_suffix(child).replace(name, "NAME") for child in env.children(name)),
        created=[item.replace(name, "NAME") for item in env.created() if re.fullmatch(rf"{name}-\d+", item)],
        # Timing decides which checkpoints the operator sees, and in which attempts it sees that the job trains.
        events=sorted(
            event["message"] if event["reason"] == "Started" else event["reason"]
            for event in events
            if event["reason"] != "CheckpointSaved"
        ),
        writes=[f"{record.call.verb} {record.call.rbac_resource}" for record in env.writes(_writes_of(name), first)],
    )


def _without_suffix(child: str) -> str:
    """Remove the part that differs from run to run: the random suffix of a pod's name, the uid in a run file's name."""
    return re.sub(r"^(pod/.*)-[a-z0-9]{5}$|^(configmap/.*)-[0-9a-f]{8}-[0-9]+$", lambda found: found[1] or found[2], child)
