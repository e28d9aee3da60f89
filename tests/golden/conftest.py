"""`pytest tests/golden --update-golden` writes the current output to the golden files. The commit explains the difference."""

import pytest


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden", default=False))
