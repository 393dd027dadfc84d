"""Named prefixes through real worker processes and real files, on a runtime without weights."""

import asyncio
import logging
import time

import pytest
from fakes import weightless_worker
from fakes.fake_runtime import expected_answer

from agent.engine.frames import PrefixState
from agent.engine.supervisor import EnginePool, WorkerState
from agent.settings import EngineSettings, SharePrefixes
from agent.storage.prefix_store import PrefixStore
from agent.types import InferenceRequest, Message, ModelFile, NamedPrefix, Sampling

KEY = bytes(range(32))
SYSTEM = "You answer questions of travellers about cities."
MODEL = ModelFile(name="m", path="", sha256="5" * 64, context_tokens=256)
CITIES = NamedPrefix(name="cities", model="m", messages=(Message("system", SYSTEM),))
SHORT = NamedPrefix(name="short", model="m", messages=(Message("system", "brief"),))
PATIENCE_S = 60


class Life:
    """One life of a daemon's engine, on the files of the last."""

    def __init__(self, folder, model=MODEL, prefixes=(CITIES,), **settings):
        self.store = PrefixStore(folder, KEY, most_bytes=1 << 20)
        given = {"context_tokens": 256, "parallel": 2, "threads": 1}
        self.pool = EnginePool(
            EngineSettings(**(given | settings)),
            lambda _: model,
            worker_command=weightless_worker.COMMAND,
            prefixes=prefixes,
            shelf=self.store,
        )

    async def __aenter__(self):
        await self.pool.start(["m"])
        return self

    async def __aexit__(self, *_):
        await self.pool.stop(0)
        await self.store.close()

    async def until(self, reached):
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                await asyncio.sleep(0.005)

    async def settled(self, state, name="cities"):
        await self.until(lambda: self.status(name).state is state)
        return self.status(name)

    def status(self, name="cities"):
        return next(one for one in self.pool.prefixes() if one.name == name)

    async def saved(self):
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await self.store.all()):
                await asyncio.sleep(0.005)
        return found

    async def ask(self, text, **request):
        asked = InferenceRequest(
            **({"id": "r1"} | request),
            model="m",
            messages=(Message("system", SYSTEM), Message("user", text)),
            sampling=Sampling(max_tokens=8),
            received_at_ms=time.time_ns() // 1_000_000,
        )
        *_, answer = [event async for event in self.pool.generate(asked)]
        assert answer.failure is None
        prompt = f"{SYSTEM}\n{text}".encode()
        assert answer.text == expected_answer(prompt, context_tokens=256, max_tokens=8)[0]
        return answer.cached_tokens


async def test_it_is_computed_when_nobody_asks_and_saved(tmp_path):
    async with Life(tmp_path) as life:
        status = await life.settled(PrefixState.COMPUTED)
        assert status.tokens == len(SYSTEM) + 1
        (saved,) = await life.saved()
        assert (saved.name, saved.model, saved.model_digest) == ("cities", "m", MODEL.sha256)
        assert await life.ask("Rome") == len(SYSTEM) + 1


async def test_the_next_life_has_it_from_the_disk_for_its_first_request(tmp_path):
    async with Life(tmp_path) as life:
        await life.saved()
    async with Life(tmp_path) as life:
        assert await life.ask("Rome") == len(SYSTEM) + 1
        assert life.status().state is PrefixState.RESTORED


async def test_so_has_a_worker_that_was_unloaded_or_lost(tmp_path):
    async with Life(tmp_path, idle_unload_s=0.05) as life:
        await life.saved()
        await life.until(lambda: life.pool.status()["m"].state is WorkerState.IDLE)
        assert await life.ask("Rome") == len(SYSTEM) + 1
        assert life.status().state is PrefixState.RESTORED


async def test_a_worker_that_nobody_uses_stays_until_its_prefixes_are_saved(tmp_path, monkeypatch):
    written = asyncio.Event()
    write = PrefixStore.write

    async def slowly(store, prefix, pieces):
        await written.wait()
        return await write(store, prefix, pieces)

    monkeypatch.setattr(PrefixStore, "write", slowly)
    async with Life(tmp_path, idle_unload_s=0.01) as life:
        await life.settled(PrefixState.COMPUTED)
        await asyncio.sleep(0.1)  # ten times what it waits for a use
        assert life.pool.status()["m"].state is WorkerState.READY
        written.set()
        await life.saved()
        await life.until(lambda: life.pool.status()["m"].state is WorkerState.IDLE)


async def test_of_another_model_under_the_name_it_is_computed_anew(tmp_path):
    async with Life(tmp_path) as life:
        await life.saved()
    other = ModelFile(name="m", path="", sha256="6" * 64, context_tokens=256)
    async with Life(tmp_path, model=other) as life:
        await life.settled(PrefixState.COMPUTED)
        async with asyncio.timeout(PATIENCE_S):
            while (await life.saved())[0].model_digest != other.sha256:
                await asyncio.sleep(0.005)
    async with Life(tmp_path, model=other) as life:
        await life.settled(PrefixState.RESTORED)


async def test_another_text_under_the_name_takes_its_place(tmp_path, caplog):
    async with Life(tmp_path) as life:
        (before,) = await life.saved()
    changed = NamedPrefix(name="cities", model="m", messages=(Message("system", SYSTEM + " Be brief."),))
    async with Life(tmp_path, prefixes=(changed,)) as life:
        await life.settled(PrefixState.COMPUTED)
        (after,) = await life.saved()
    assert "other settings" in caplog.text
    assert (after.tokens, before.tokens) == (len(SYSTEM) + 11, len(SYSTEM) + 1)


async def test_what_is_damaged_is_computed_anew(tmp_path, caplog):
    async with Life(tmp_path) as life:
        await life.saved()
    (path,) = (tmp_path / "prefixes").iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    async with Life(tmp_path) as life:
        await life.settled(PrefixState.COMPUTED)
        await life.saved()
        assert await life.ask("Rome") == len(SYSTEM) + 1
    assert SYSTEM not in caplog.text
    async with Life(tmp_path) as life:
        await life.settled(PrefixState.RESTORED)


async def test_what_cannot_be_kept_says_why_and_the_rest_is(tmp_path, caplog):
    async with Life(tmp_path, prefixes=(SHORT, CITIES)) as life:
        assert "tokens" in (await life.settled(PrefixState.REFUSED, "short")).message
        await life.settled(PrefixState.COMPUTED)
    assert "prefix short cannot be kept ready" in caplog.text


async def test_what_killed_a_worker_is_not_begun_again(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    async with Life(tmp_path, crashes_to_quarantine=5) as life:
        supervisor = await life.pool._supervisor("m")
        supervisor.prefixes._under_way.add("cities")
        await life.settled(PrefixState.MISSING)
        assert "not computed ahead" in caplog.text
        assert await life.ask("Rome") == 0
        await life.settled(PrefixState.COMPUTED)


@pytest.mark.parametrize("share", SharePrefixes)
async def test_who_may_find_what_others_asked(tmp_path, share):
    async with Life(tmp_path, share_prefixes=share) as life:
        await life.settled(PrefixState.COMPUTED)
        named, text = len(SYSTEM) + 1, "Is Rome older than Athens?"
        await life.ask(text, id="r1")
        shared = await life.ask(text, id="r2")
        assert shared == (named + len(text) - 1 if share is SharePrefixes.ALL else named)
        assert await life.ask(text, id="r3", cache_salt="mine") == named
        assert await life.ask(text, id="r4", cache_salt="mine") == named + len(text) - 1
        assert await life.ask(text, id="r5", cache_salt="another's") == named


async def test_nothing_of_the_text_is_on_the_disk(tmp_path):
    import numpy as np

    async with Life(tmp_path) as life:
        await life.saved()
        await life.ask("Rome")
    tokens = list(SYSTEM.encode())
    needles = [SYSTEM.encode()[:16], *(np.array(tokens[:8], kind).tobytes() for kind in (np.int16, np.int32, np.int64))]
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(needle in content for needle in needles)
