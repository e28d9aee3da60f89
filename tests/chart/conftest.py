"""Nothing here runs without helm."""

import pytest

from chart.rendering import HELM


def pytest_runtest_setup() -> None:
    """Skip where there is no helm. As a hook, and not a fixture, it is one line in pytest's summary."""
    if HELM is None:
        pytest.skip("helm is not on the PATH")
