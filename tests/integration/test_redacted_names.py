"""Names that a model finds are replaced before a text leaves: a real worker, a tagger that can be told by hand."""

import asyncio
import json

import pytest
from fakes import plain_encoders as plain
from fakes.escalation_values import record, row
from fakes.target_calls import CONNECTIVITY
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.supervisor import EnginePool
from agent.errors import CannotRedact
from agent.escalation.names import LONGEST_PIECE, NamesByModel
from agent.escalation.personal_data import CannotRedactNow
from agent.escalation.target import make_target
from agent.name_tagger import NameTagger
from agent.settings import EngineSettings, TargetSettings
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy, Message

TARGET = TargetSettings(name="main", base_url="http://127.0.0.1:9/v1", model="big", egress=EgressPolicy.REDACT)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taggers")
    plain.tagger(folder / "tags")
    plain.embedder(folder / "plain")
    return folder


async def outgoing(files, text, **redaction):
    """Return what would leave of a text."""
    pool = EnginePool(EngineSettings(threads=1), lambda name: plain.model_file(files / name, name, context_tokens=512))
    settings = RedactionSettings(**redaction)
    names = NamesByModel(NameTagger(pool, lambda: settings).tag, asyncio.get_running_loop())
    target = make_target(TARGET, CONNECTIVITY, settings, names=names)
    try:
        return await asyncio.to_thread(target.outgoing, record(messages=(Message("user", text),)), row())
    finally:
        await target.close()
        await pool.stop(0)


async def test_names_of_the_wanted_labels_are_replaced_and_come_back(files):
    text = "Anna Berta and Paris " + "good " * (LONGEST_PIECE // 3) + "Anna"
    found = await outgoing(files, text, names="tags", name_labels=("PER",))
    said = json.loads(found.body)["messages"][0]["content"]
    assert said.startswith("[NAME_1] and Paris good")
    assert said.endswith("good [NAME_2]")
    assert found.values == {"NAME_1": "Anna Berta", "NAME_2": "Anna"}
    whole = await outgoing(files, text, names="tags")
    assert json.loads(whole.body)["messages"][0]["content"].startswith("[NAME_1] and [NAME_2] good")


async def test_without_a_model_for_them_names_stay(files):
    assert b"Anna" in (await outgoing(files, "Anna")).body


@pytest.mark.parametrize(
    ("model", "kind", "why"), [("plain", CannotRedact, "not made to tag"), ("gone", CannotRedact, "cannot be searched")]
)
async def test_what_cannot_be_searched_does_not_leave(files, model, kind, why):
    with pytest.raises(kind, match=why):
        await outgoing(files, "Anna", names=model)


def test_without_the_daemon_nothing_leaves_unsearched():
    target = make_target(TARGET, CONNECTIVITY, RedactionSettings(names="tags"))
    with pytest.raises(CannotRedactNow, match="only the running daemon can ask"):
        target.outgoing(record(messages=(Message("user", "Anna"),)), row())


@given(text=st.text(alphabet="ab Z", max_size=1500), at=st.integers(0, 1500))
def test_a_name_is_found_wherever_it_stands(text, at):
    name = "Quentin Quux"
    whole = text[:at] + " " + name + " " + text[at:]

    async def told(texts):
        assert all(len(one) <= LONGEST_PIECE for one in texts)
        return [[(one.index(name), one.index(name) + len(name))] if name in one else [] for one in texts]

    async def found():
        finder = NamesByModel(told, asyncio.get_running_loop())
        return await asyncio.to_thread(finder, whole)

    start = whole.index(name)
    assert set(asyncio.run(found())) == {(start, start + len(name))}
