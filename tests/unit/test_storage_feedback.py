"""What was said of answers stays on disk; of each request and origin the last word holds."""

import pytest
from fakes import storage_values as values
from fakes.storage_values import NOW

from agent.errors import StorageError
from agent.records import Feedback, FeedbackOrigin, Said, Verdict


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


def said(number=1, **fields):
    given = {
        "id": f"0000-{number}",
        "request_id": "r1",
        "task": "mail",
        "origin": FeedbackOrigin.REVIEW,
        "verdict": Verdict.CORRECTED,
        "right": False,
        "served": True,
        "propensity": None,
        "created_at_ms": NOW,
        "said": Said(input="my card is gone", local_answer="hours", right_answer="card lost", score=0.4),
    }
    return Feedback(**{**given, **fields})


async def test_what_was_said_comes_back_whole(storage):
    await storage.feedback.put(said(propensity=0.25))
    assert await storage.feedback.list("mail") == [said(propensity=0.25)]
    assert list(await storage.feedback.of_request("r1")) == [said(propensity=0.25)]
    assert await storage.feedback.list("other") == []


async def test_the_last_word_of_an_origin_holds_and_other_origins_stand_beside_it(storage):
    await storage.feedback.put(said(1))
    await storage.feedback.put(said(2, verdict=Verdict.APPROVED, right=True))
    await storage.feedback.put(said(3, origin=FeedbackOrigin.CALLER))
    assert [one.id for one in await storage.feedback.list()] == ["0000-2", "0000-3"]
    assert await storage.feedback.counts("mail") == [
        {"origin": "caller", "verdict": "corrected", "rows": 1, "right": 0, "wrong": 1},
        {"origin": "review", "verdict": "approved", "rows": 1, "right": 1, "wrong": 0},
    ]


async def test_pages_go_on_where_the_last_one_ended(storage):
    for number in range(5):
        await storage.feedback.put(said(number, request_id=f"r{number}"))
    first = await storage.feedback.list(limit=3)
    rest = await storage.feedback.list(limit=3, after_id=first[-1].id)
    assert [one.request_id for one in (*first, *rest)] == [f"r{number}" for number in range(5)]


async def test_a_chance_that_is_none_is_refused_by_the_database(storage):
    with pytest.raises(StorageError):
        await storage.feedback.put(said(propensity=1.5))
    assert await storage.feedback.list() == []
