"""The number of writes that a job costs the API server."""

import itertools
import time

import pytest

from faults.calls import Call
from faults.environment import Environment

pytestmark = pytest.mark.cluster
MAX_WRITES = 12
OBSERVED_SECONDS = 25


def test_a_job_costs_at_most_twelve_writes(env: Environment) -> None:
    env.submit("run")
    env.wait_phase("run", "Succeeded")
    writes = [
        f"{record.call.verb} {record.call.rbac_resource} {((record.call.body or {}).get('status') or {}).get('phase', '')}"
        for record in env.writes(Call.is_job_write)
    ]
    print(f"{len(writes)} writes: {writes}")
    assert len(writes) <= MAX_WRITES, writes


def test_a_running_job_costs_only_writes_of_progress_and_a_finished_job_costs_none(env: Environment) -> None:
    env.submit("done")
    env.submit("long", "step 1", training={"maxSteps": 600})
    env.wait_phase("done", "Succeeded")
    env.wait_phase("long", "Running")
    time.sleep(3)
    first = len(env.proxy.records)
    time.sleep(OBSERVED_SECONDS)
    records = [record for record in env.proxy.records[first:] if record.call.is_write() and record.call.resource != "leases"]
    assert {(record.call.verb, record.call.rbac_resource, record.call.target) for record in records} <= {
        ("patch", "finetunejobs/status", "long")
    }
    intervals = [after.at - before.at for before, after in itertools.pairwise(records)]
    print(f"{len(records)} writes of progress in {OBSERVED_SECONDS} s, seconds between them: {intervals}")
    assert records, "the operator does not write the progress"
    assert all(interval >= 9 for interval in intervals)
