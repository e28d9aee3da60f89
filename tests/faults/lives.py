"""Whole lives of jobs, cut short by kill -9 of the operator at one write after the other."""

import concurrent.futures
import dataclasses
import queue
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from faults.calls import Call
from faults.place import Place
from faults.rules import Rule

When = Literal["before", "after"]
LANES = 3  # places at work at the same time; a life is mostly waiting
LIFE_SECONDS = 90


@dataclasses.dataclass(frozen=True)
class End:
    """How a life ended.

    children: kind/name without what differs from life to life. told: the events' reasons, sorted; of a start which attempt's.
    """

    phase: str
    attempt: int
    failures: int
    children: list[str]
    created: list[str]
    told: list[str]
    writes: list[str]


@dataclasses.dataclass(frozen=True)
class Life:
    """One life in which the operator dies at a write. killed: whether it did (a life may have fewer writes than another)."""

    number: int
    when: When
    killed: bool
    end: End


def live(place: Place, name: str, number: int = 0, when: When = "after", **job: Any) -> Life:
    """Let a job live, with the operator killed at its n-th write (0: never) and started again."""
    proxy, operator = place.proxy, place.operator
    first = len(proxy.records)
    rule = Rule(_writes_of(name), drop=when, effect=operator.kill, skip=number - 1, times=1 if number else 0)
    proxy.add(rule)
    uid = place.submit(name, **job)
    try:
        place.wait(f"{name} ends, or the operator dies", lambda: rule.hits or _ended(place, name), LIFE_SECONDS, name)
        if not rule.hits:  # its last event, or the kill at it, may still come
            _last_event(place, uid, rule)
        if rule.hits:
            operator.wait_end()  # the rule kills it, once the write has got where it was to get
            operator.restart()
            place.wait(f"{name} ends", lambda: _ended(place, name), LIFE_SECONDS, name)
            _last_event(place, uid, rule)
    finally:
        proxy.remove(rule)
    life = Life(number, when, bool(rule.hits), _end(place, name, uid, first))
    place.kubectl("delete", "finetunejob", name, "--wait=false")
    place.kubectl("delete", "persistentvolumeclaim", f"{name}-output", "--wait=false")
    return life


def kill_at_each_write(places: list[Place], cuts: Iterable[tuple[int, When]], title: str, **job: Any) -> list[Life]:
    """A life for each of the cuts, shared out among the places."""
    waiting: queue.SimpleQueue[tuple[int, When]] = queue.SimpleQueue()
    for cut in cuts:
        waiting.put(cut)

    def work(place: Place) -> list[Life]:
        return [live(place, f"{title}-{when}-{number}", number, when, **job) for number, when in _drain(waiting)]

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return [life for lives in pool.map(work, places) for life in lives]


def _drain(waiting: "queue.SimpleQueue[tuple[int, When]]") -> Iterator[tuple[int, When]]:
    while True:
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return


def _writes_of(name: str) -> Callable[[Call], bool]:
    return lambda call: call.is_write() and call.resource != "leases" and re.match(rf"{name}($|[-.])", call.target) is not None


def _ended(place: Place, name: str) -> bool:
    return place.status(name).get("phase") in ("Succeeded", "Failed")


def _last_event(place: Place, uid: str, rule: Rule) -> None:
    """Give the event of the end its time; it is lost if the operator died between status and event."""

    def told() -> bool:
        return bool(rule.hits) or any(event["reason"] in ("Succeeded", "Failed") for event in place.job_events(uid))

    try:
        place.wait("the last event", told, 3)
    except AssertionError:
        print("the event of the end did not come")


def _end(place: Place, name: str, uid: str, first: int) -> End:
    """Collect, and check what must hold for every life."""
    status = place.status(name)
    for kind in ("jobs", "services", "configmaps", "persistentvolumeclaims"):
        for item in place.objects(kind, f"finetune.dev/finetunejob={name}"):
            owners = [owner["uid"] for owner in item["metadata"].get("ownerReferences", ())]
            owners = owners or [item["metadata"].get("annotations", {}).get("finetune.dev/owner-uid")]
            assert owners == [uid], f"{kind}/{item['metadata']['name']} belongs to {owners}"
    events = place.job_events(uid)
    assert [event.get("count", 1) for event in events] == [1] * len(events)
    return End(
        phase=status["phase"],
        attempt=status["attempt"],
        failures=status["restarts"]["failures"],
        children=sorted(_without_suffix(child).replace(name, "NAME") for child in place.children(name)),
        created=[item.replace(name, "NAME") for item in place.created() if re.fullmatch(rf"{name}-\d+", item)],
        # Which checkpoints the operator hears of is chance, and so is of which attempt it sees that it trains.
        told=sorted(
            event["message"] if event["reason"] == "Started" else event["reason"]
            for event in events
            if event["reason"] != "CheckpointSaved"
        ),
        writes=[f"{record.call.verb} {record.call.kind}" for record in place.writes(_writes_of(name), first)],
    )


def _without_suffix(child: str) -> str:
    """Without what differs from life to life: the random part of a pod's name, the uid in that of a run file."""
    return re.sub(r"^(pod/.*)-[a-z0-9]{5}$|^(configmap/.*)-[0-9a-f]{8}$", lambda found: found[1] or found[2], child)
