"""Options of pytest that several tests know."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write down anew what is compared with what the code makes")
