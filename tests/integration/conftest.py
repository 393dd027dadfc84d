"""A storage and a target for the tests of what leaves; a file that needs others has its own of the same names."""

import shutil

import pytest
from fakes.cloud import Cloud
from fakes.dispatching import QUEUE, now_ms
from fakes.storage_values import fast_folder, opened


@pytest.fixture
async def storage():
    """A real database in a folder that is quick to write to."""
    folder = fast_folder()
    opened_storage = await opened(folder, queue=QUEUE, now_ms=now_ms())
    yield opened_storage
    await opened_storage.close()
    shutil.rmtree(folder)


@pytest.fixture
async def cloud():
    """A target on loopback that answers everything."""
    async with Cloud() as server:
        yield server
