"""The operator's rights are what it uses: no verb more. Runs last, and counts what all other fault tests used."""

import pathlib

import pytest

from faults.rights import Audit

pytestmark = pytest.mark.cluster
HERE = pathlib.Path(__file__)


def test_the_verbs_that_the_chart_grants_are_those_that_the_operator_uses(audit: Audit, request: pytest.FixtureRequest) -> None:
    files = {path.name for path in HERE.parent.glob("test_*.py") if path != HERE and "Place" in path.read_text(encoding="utf-8")}
    missing = sorted(files - audit.ran)
    if missing or request.config.getoption("keyword"):
        pytest.skip(f"counts what all fault tests use, and some did not run: {', '.join(missing)}")
    print(f"{len(audit.used)} verbs used: {sorted(audit.used)}")
    assert audit.used - audit.granted == set(), "used, and not granted"
    assert audit.granted - audit.used == set(), "granted, and never used"
