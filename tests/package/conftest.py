"""One machine for all tests of the package, in the order of its life: install, use, upgrade, remove."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config, items):
    """Only on request: these take minutes and a built package."""
    if config.getoption("-m") == "package":
        return
    skip = pytest.mark.skip(reason="the built package is tested by `make package-test`")
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(skip)
