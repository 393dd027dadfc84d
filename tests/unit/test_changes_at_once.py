"""What several calls write into one file at the same time is all there afterwards."""

import hashlib
import threading

import msgspec
import pytest

from agent.compute import DeviceKind, DeviceVerdict
from agent.engine.device_verdicts import DeviceVerdicts
from agent.models.aliases import Aliases
from agent.models.artifact import StoredFile, StoredModel
from agent.models.lock_file import LockedModel, LockFile
from agent.models.manifest import Manifest
from agent.models.minisign import PublicKey, own_key
from agent.models.quality import MeasuredSpeed, Speed
from agent.models.store import ModelStore
from agent.models.trusted_keys import TrustedKeys
from agent.types import ModelFormat

MANY = range(16)
TEXT = b"{}"
FILE = StoredFile(name="config.json", bytes=len(TEXT), sha256=hashlib.sha256(TEXT).hexdigest())

VERDICT = DeviceVerdict(
    model_digest="", kind=DeviceKind.NPU, provider="p", version="1", driver="", processor="c", device="d", holds=True,
    reason="",
)  # fmt: skip


def at_once(change):
    """Call it with each number, in a thread of its own; return what failed."""
    failed = []

    def call(number):
        try:
            change(number)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in MANY]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_aliases(tmp_path):
    at_once(lambda number: Aliases(tmp_path, "m").promote(f"alias-{number}", "m"))
    assert len(Aliases(tmp_path, "m").all()) == len(MANY) + 1


def test_pins(tmp_path):
    pin = LockedModel(source="hub a/b", revision="", files=(), licence="MIT", pulled_at_ms=0)
    at_once(lambda number: LockFile(tmp_path).put(f"model-{number}", pin))
    assert all(LockFile(tmp_path).get(f"model-{number}") == pin for number in MANY)


def test_trusted_keys(tmp_path):
    keys = [PublicKey(bytes(8), bytes([number] * 32)) for number in MANY]
    trusted = TrustedKeys(tmp_path / "keys.json")
    at_once(lambda number: trusted.trust(keys[number]))
    assert set(trusted.keys()) == set(keys)
    at_once(lambda number: trusted.distrust(keys[number]))
    assert trusted.keys() == ()


def test_the_own_key_is_made_once(tmp_path):
    found = set()
    at_once(lambda _: found.add(own_key(tmp_path / "key", make=True)))
    assert found == {own_key(tmp_path / "key", make=False)}
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_verdicts_on_devices(tmp_path):
    verdicts = DeviceVerdicts(tmp_path)
    at_once(lambda number: verdicts.keep([msgspec.structs.replace(VERDICT, model_digest=str(number))]))
    assert {one.model_digest for one in verdicts.all()} == {str(number) for number in MANY}


@pytest.mark.parametrize("again", [False, True], ids=["noted", "taken in again"])
def test_what_is_noted_of_a_model(tmp_path, again):
    store = ModelStore(tmp_path / "models", Manifest(()))
    model = StoredModel(
        name="m",
        title="M",
        format=ModelFormat.CHECKPOINT,
        files=(FILE,),
        licence="MIT",
        source="here",
        context_tokens=128,
    )
    (tmp_path / FILE.name).write_bytes(TEXT)
    store.add(model, {FILE.name: tmp_path / FILE.name})
    speed = MeasuredSpeed(
        digest="0" * 64, device="d", version="1", context_tokens=1, threads=1, measured_at_ms=0,
        speed=Speed(tokens_per_second=1, first_token_ms=1, prompt_tokens=1, memory_bytes=1),
    )  # fmt: skip
    changes = [{"checked_on": "this"}, {"speeds": (speed,)}, {"allowed": True}]

    def change(number):
        if again and number == 0:
            store.add(model, {FILE.name: tmp_path / FILE.name})
        elif number < len(changes) + 1:
            store.note("m", **changes[number - 1])

    at_once(change)
    found = store.get("m")
    assert (found.speeds, found.allowed) == ((speed,), True)
