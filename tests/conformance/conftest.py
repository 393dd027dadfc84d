"""Each runtime in turn, loaded once a file, empty for each test."""

import pytest
from fakes.runtimes import EACH, LOADERS


@pytest.fixture(scope="module", params=EACH)
def loaded(request):
    runtime = LOADERS[request.param]()
    yield runtime
    runtime.close()


@pytest.fixture
def runtime(loaded):
    yield loaded
    for slot in range(loaded.slots):
        loaded.clear(slot)
