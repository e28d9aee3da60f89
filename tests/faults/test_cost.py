"""What a job costs the API server."""

import itertools
import time

import pytest

from faults.calls import Call
from faults.place import Place

pytestmark = pytest.mark.cluster
MOST_WRITES = 12
QUIET_SECONDS = 25


def of_life(call: Call) -> bool:
    return call.is_of_life()


def test_a_whole_life_costs_at_most_twelve_writes(place: Place) -> None:
    place.submit("life")
    place.wait_phase("life", "Succeeded")
    writes = place.writes(of_life)
    told = [
        f"{record.call.verb} {record.call.kind} {((record.call.body or {}).get('status') or {}).get('phase', '')}"
        for record in writes
    ]
    print(f"{len(told)} writes: {told}")
    assert len(told) <= MOST_WRITES, told


def test_a_stable_job_costs_no_write_but_its_progress_and_a_finished_one_none(place: Place) -> None:
    place.submit("done")
    place.submit("long", "step 1", training={"maxSteps": 600})
    place.wait_phase("done", "Succeeded")
    place.wait_phase("long", "Running")
    time.sleep(3)
    first = len(place.proxy.records)
    time.sleep(QUIET_SECONDS)
    records = [record for record in place.proxy.records[first:] if record.call.is_write() and record.call.resource != "leases"]
    assert {(record.call.verb, record.call.kind, record.call.target) for record in records} <= {
        ("patch", "finetunejobs/status", "long")
    }
    gaps = [after.at - before.at for before, after in itertools.pairwise(records)]
    print(f"{len(records)} writes of progress in {QUIET_SECONDS} s, seconds between them: {gaps}")
    assert records, "the progress is told"
    assert all(gap >= 9 for gap in gaps)
