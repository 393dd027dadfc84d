"""What a worker does with the prefixes it is told to keep ready, on a runtime without weights."""

import msgspec
import pytest
from fakes.fake_runtime import FakeRuntime, expected_answer

from agent.engine import frames, named_prefixes
from agent.engine.label_scores import LabelScorer
from agent.engine.named_prefixes import NamedPrefixes
from agent.engine.scheduler import Scheduler
from agent.types import Message, ModelFile, Sampling

MODEL = ModelFile(name="m", path="/m.gguf", sha256="5" * 64, context_tokens=256)
SYSTEM = "You answer questions of travellers about cities."
BEGINNING = SYSTEM.encode() + b"\n"


class Life:
    """One life of a worker."""

    def __init__(self, model=MODEL, **runtime):
        given = {"slots": 2, "context_tokens": 256, "batch_tokens": 64, "saved_tokens": 400}
        self.runtime = FakeRuntime(**(given | runtime))
        self.scheduler = Scheduler(self.runtime, waiting_line=4)
        self.prefixes = NamedPrefixes(self.runtime, self.scheduler.prefixes, model)

    def pin(self, saved=None, data=b"", system=SYSTEM, name="cities"):
        self.prefixes.pin(frames.Pin(name=name, messages=(Message("system", system),), saved=saved))
        for at in range(0, len(data), 7):
            self.prefixes.take(data[at : at + 7])
        return self.prefixes.news()

    def ask(self, text, scope=""):
        messages = (Message("system", SYSTEM), Message("user", text))
        self.scheduler.submit(frames.Generate(id=1, messages=messages, sampling=Sampling(max_tokens=8), scope=scope))
        answer = ""
        while not self.scheduler.idle:
            step = self.scheduler.step()
            answer += "".join(part.text for part in (*step.pieces, *step.ended))
        assert answer == expected_answer(BEGINNING + text.encode(), context_tokens=256, max_tokens=8)[0]
        return step.ended[0].cached_tokens

    def computed(self):
        self.pin()
        self.ask("Rome")
        (news,) = self.prefixes.news()
        assert news.state is frames.PrefixState.COMPUTED
        return news.saved, self.fetched()

    def fetched(self, name="cities"):
        data = b""
        while True:
            self.prefixes.fetch(name, len(data))
            (piece,) = self.prefixes.news()
            assert (piece.name, piece.offset) == (name, len(data))
            data += piece.data
            if not piece.data:
                return data


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(frames, "PIECE_BYTES", 10)


def states(news):
    return [one.state for one in news]


def test_it_is_missing_until_somebody_has_asked_and_then_fetched():
    life = Life()
    assert states(life.pin()) == [frames.PrefixState.MISSING]
    assert life.prefixes.news() == []
    assert life.ask("Rome") == 0
    (news,) = life.prefixes.news()
    assert (news.state, news.tokens) == (frames.PrefixState.COMPUTED, len(BEGINNING))
    assert news.saved.size == len(BEGINNING)
    assert life.fetched() == BEGINNING
    assert life.prefixes.news() == []
    assert life.fetched() == b"", "kept for fetching no longer"


def test_a_later_life_takes_it_and_computes_the_rest_alone():
    saved, data = Life().computed()
    later = Life()
    (news,) = later.pin(saved, data)
    assert (news.state, news.tokens, news.saved) == (frames.PrefixState.RESTORED, len(BEGINNING), None)
    assert later.ask("Berlin") == len(BEGINNING)
    assert later.ask("Oslo", scope="a stranger") == len(BEGINNING)


@pytest.mark.parametrize(
    "other",
    [
        Life(msgspec.structs.replace(MODEL, sha256="6" * 64)),
        Life(msgspec.structs.replace(MODEL, chat_template="another")),
    ],
    ids=["file", "template"],
)
def test_what_another_model_has_computed_is_not_taken(other):
    saved, data = Life().computed()
    (news,) = other.pin(saved, data)
    assert (news.state, news.message) == (frames.PrefixState.MISSING, "it was saved under other settings")
    assert other.ask("Berlin") == 0


def test_neither_is_what_was_computed_of_another_text_or_kept_in_another_way():
    saved, data = Life().computed()
    assert states(Life().pin(saved, data, system=SYSTEM + "!")) == [frames.PrefixState.MISSING]
    life = Life()
    life.runtime.state_format = "fake, keys and values q8_0"
    assert states(life.pin(saved, data)) == [frames.PrefixState.MISSING]


def test_a_model_that_has_moved_is_the_same():
    saved, data = Life().computed()
    moved = Life(msgspec.structs.replace(MODEL, path="/elsewhere.gguf", name="n"))
    assert states(moved.pin(saved, data)) == [frames.PrefixState.RESTORED]


def test_bytes_that_are_cut_short_or_do_not_fit_are_not_taken():
    saved, data = Life().computed()
    life = Life()
    life.pin(saved, data[:-3])
    life.prefixes.take(b"")
    (news,) = life.prefixes.news()
    assert news.state is frames.PrefixState.MISSING
    assert "of 49 bytes" in news.message
    assert life.ask("Rome") == 0
    crooked = frames.SavedPrefix(saved.fingerprint, saved.tokens, ((0, 40, 49),))
    (news,) = Life().pin(crooked, data)
    assert news.state is frames.PrefixState.MISSING
    gap = frames.SavedPrefix(saved.fingerprint, saved.tokens, ((9, 49, 40),))
    assert states(Life().pin(gap, data[9:])) == [frames.PrefixState.MISSING]


def test_unwanted_bytes_of_one_are_not_taken_for_the_next():
    saved, data = Life().computed()
    life = Life()
    assert states(life.pin(saved, data, system=SYSTEM + "!", name="other")) == [frames.PrefixState.MISSING]
    assert states(life.pin(saved, data)) == [frames.PrefixState.RESTORED]


def test_what_cannot_be_kept_says_why():
    for life, system, reason in [
        (Life(), "short", "it has 6 tokens; from 8 to 400"),
        (Life(saved_tokens=40), SYSTEM, "from 8 to 40"),
        (Life(), "x" * 300, "the context has 256"),
        (Life(saved_tokens=0), SYSTEM, "cannot be shared"),
    ]:
        (news,) = life.pin(system=system)
        assert news.state is frames.PrefixState.REFUSED
        assert reason in news.message


def test_two_that_begin_alike_are_kept_in_parts_and_both_come_back(monkeypatch):
    monkeypatch.setattr(frames, "PIECE_BYTES", 1000)
    life = Life()
    life.pin()
    life.pin(system=SYSTEM + " Be brief.", name="brief")
    life.ask("Rome")
    first = life.prefixes.news()[0].saved
    life.scheduler.submit(
        frames.Generate(id=2, messages=(Message("user", SYSTEM + " Be brief.\nRome"),), sampling=Sampling(max_tokens=1))
    )
    while not life.scheduler.idle:
        life.scheduler.step()
    (news,) = life.prefixes.news()
    assert news.name == "brief"
    assert len(news.saved.parts) == 2
    pieces = {}
    for name in ("cities", "brief"):
        life.prefixes.fetch(name, 0)
        pieces[name] = life.prefixes.news()[0].data
    later = Life()
    assert states(later.pin(news.saved, pieces["brief"], system=SYSTEM + " Be brief.", name="brief")) == ["restored"]
    assert states(later.pin(first, pieces["cities"])) == ["restored"]
    assert later.scheduler.prefixes.tokens == news.tokens + 1, "the end of the other line"


def test_probes_differ_from_their_first_character_on():
    one, other = named_prefixes.PROBES
    assert one.content[0] != other.content[0]


def scored(scorer, text, scope):
    prompt = tuple(BEGINNING + text.encode())
    scorer.submit(frames.Score(id=1, prompt=prompt, labels=("yes", "no"), scope=scope))
    while not (ended := scorer.step()):
        pass
    return ended[0].cached_tokens


def test_scores_of_labels_take_over_from_their_own_scope_and_what_is_named():
    scorer = LabelScorer(FakeRuntime(context_tokens=256), waiting_line=4, named=lambda _: 0)
    whole = len(BEGINNING) + 3
    assert [scored(scorer, "Rome", scope) for scope in ("", "", "a", "a", "b")] == [0, whole, 0, whole, 0]
    life = Life()
    life.pin()
    scorer = LabelScorer(FakeRuntime(context_tokens=256), waiting_line=4, named=life.scheduler.prefixes.named)
    assert [scored(scorer, "Rome", scope) for scope in ("a", "b")] == [0, len(BEGINNING)]
