"""What many tests need: a storage, a target, the API. A file that needs others has its own of the same names."""

import shutil

import pytest
from fakes.api_server import served, target_at
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


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The API without a target: what is not sure waits for a person."""
    with served(tmp_path_factory.mktemp("api") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """The API with comments after each 20 ms of silence."""
    with served(tmp_path_factory.mktemp("impatient") / "data", heartbeat_s=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def joined(tmp_path_factory, cloud):
    """The API with a target that answers: the file's own ``cloud``, of a thread."""
    targets = (target_at(cloud.base_url),)
    with served(tmp_path_factory.mktemp("joined") / "data", targets=targets) as server:
        yield server
