"""Named prefixes on the real weights: the answer after a restart is that of the life before, to the bit."""

import asyncio
import time

import numpy as np
import pytest
from fakes import smollm2

from agent.engine.frames import PrefixState
from agent.engine.supervisor import EnginePool
from agent.settings import EngineSettings
from agent.storage.prefix_store import PrefixStore
from agent.types import InferenceRequest, KvType, Message, NamedPrefix, Sampling

pytestmark = pytest.mark.model
KEY = bytes(range(32))
SYSTEM = "You answer questions of travellers about cities, in one short sentence, and never about anything else. " * 3
CITIES = NamedPrefix(name="cities", model="smollm2", messages=(Message("system", SYSTEM),))


async def life(folder, reached, **settings):
    """Ask one question in a life of its own once the prefix has reached a state; return the answer."""
    store = PrefixStore(folder, KEY, most_bytes=64 << 20)
    given = {"context_tokens": 512, "parallel": 2, "threads": 1}
    pool = EnginePool(
        EngineSettings(**(given | settings)), lambda _: smollm2.model_file(), prefixes=(CITIES,), shelf=store
    )
    await pool.start(["smollm2"])
    async with asyncio.timeout(100):
        while pool.prefixes()[0].state is not reached or not await store.all():
            await asyncio.sleep(0.01)
    request = InferenceRequest(
        id="r",
        model="smollm2",
        messages=(*CITIES.messages, Message("user", "In which country is Rome?")),
        sampling=Sampling(max_tokens=16, logprobs=True, top_logprobs=3),
        received_at_ms=time.time_ns() // 1_000_000,
    )
    *_, answer = [event async for event in pool.generate(request)]
    assert answer.failure is None
    await pool.stop(0)
    await store.close()
    return answer


async def test_after_a_restart_the_answer_is_the_same_to_the_bit(tmp_path):
    before = await life(tmp_path, PrefixState.COMPUTED)
    after = await life(tmp_path, PrefixState.RESTORED)
    assert before.cached_tokens > 55
    assert (after.text, after.cached_tokens) == (before.text, before.cached_tokens)
    assert after.tokens == before.tokens
    (path,) = (tmp_path / "prefixes").iterdir()
    content = path.read_bytes()
    assert SYSTEM.encode()[:16] not in content
    ids = np.array([token.id for token in before.tokens[:3]], np.int32)
    assert ids.tobytes() not in content
    # What was kept in 16 bits is not read as 8.
    other = await life(tmp_path, PrefixState.COMPUTED, kv_type=KvType.Q8_0)
    assert other.cached_tokens == before.cached_tokens
