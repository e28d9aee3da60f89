"""The operator has exactly the permissions that it uses. This test runs last and compares what all other fault tests used."""

import pathlib

import pytest

from faults.permissions import Audit

pytestmark = pytest.mark.cluster
HERE = pathlib.Path(__file__)


def test_the_chart_grants_exactly_the_verbs_that_the_operator_uses(audit: Audit, request: pytest.FixtureRequest) -> None:
    usage = audit.read()
    tests = (path for path in HERE.parent.glob("test_*.py") if path != HERE)
    missing = sorted({path.name for path in tests if "Environment" in path.read_text(encoding="utf-8")} - usage.files)
    if missing or request.config.getoption("keyword"):
        pytest.skip(f"this test needs the calls of all fault tests; some did not run: {', '.join(missing)}")
    print(f"{len(usage.used)} verbs used: {sorted(usage.used)}")
    assert usage.used - usage.granted == set(), "used but not granted"
    assert usage.granted - usage.used == set(), "granted but not used"
