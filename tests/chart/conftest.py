"""Skips the tests in this folder if helm is not installed."""

import pytest

from chart.rendering import HELM


def pytest_runtest_setup() -> None:
    """Skip a test if helm is not on the PATH. A hook gives one line in pytest's summary, a fixture would give more."""
    if HELM is None:
        pytest.skip("helm is not on the PATH")
