from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """What is here is left to `make test-all`: importing the libraries alone takes longer than many tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
