"""`pytest tests/golden --update-golden` writes what the code makes now; the commit explains the difference."""

import pytest


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden", default=False))
