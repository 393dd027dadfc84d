"""A draft model beside its model, both tiny: the same text with fewer steps, and a clear refusal of other tokens."""

import msgspec
import pytest
from fakes import tiny_gguf

from agent.compute import DraftingMode
from agent.engine import frames
from agent.engine.drafting import drafting_of
from agent.engine.llama_cpp_draft import LlamaCppDraft
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.runtime import ModelUnloadable
from agent.engine.scheduler import Scheduler
from agent.engine.supervisor import EnginePool
from agent.errors import ModelNotFound
from agent.settings import EngineSettings
from agent.types import Message, ModelFile, ModelFormat, Sampling

ANSWER_TOKENS = 40
PROMPTS = ("the the ea st", "a st e", "t t t s e a")


def model_file(path, **changes):
    return ModelFile(name=path.stem, path=str(path), sha256="a" * 64, context_tokens=512, **changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    large = tiny_gguf.write(folder / "large.gguf", kind="F32", chats=True)
    other = tiny_gguf.write(folder / "other.gguf", kind="F32", seed=2, chats=True)
    return model_file(large), model_file(other)


def order(model, draft=None, **changes):
    file = msgspec.structs.replace(model, draft=draft)
    load = frames.Load(model=file, context_tokens=128, parallel=3, waiting_line=0, threads=1, confine=False)
    return msgspec.structs.replace(load, **changes)


def answers(load):
    """Return the texts of all prompts at once, the steps they took, and the guesses that were right and wrong."""
    runtime = LlamaCppRuntime(load)
    try:
        scheduler = Scheduler(runtime, waiting_line=0, drafting=drafting_of(load, runtime))
        endless = Sampling(max_tokens=ANSWER_TOKENS, logit_bias=((0, -100.0), (1, -100.0), (2, -100.0)))
        for number, text in enumerate(PROMPTS):
            scheduler.submit(frames.Generate(id=number, messages=(Message("user", text),), sampling=endless))
        texts, steps, right, wrong = dict.fromkeys(range(len(PROMPTS)), ""), 0, 0, 0
        while not scheduler.idle:
            step = scheduler.step()
            steps += 1
            for event in (*step.pieces, *step.ended):
                texts[event.id] += event.text
            right += sum(ended.accepted_tokens for ended in step.ended)
            wrong += sum(ended.rejected_tokens for ended in step.ended)
        return texts, steps, right, wrong
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def plain(models):
    return answers(order(models[0], drafting=DraftingMode.OFF))


@pytest.mark.parametrize("which", [0, 1], ids=["the model itself", "a stranger of the same tokens"])
def test_whoever_drafts_the_text_is_the_same(models, plain, which, monkeypatch):
    from agent.engine import model_guesses, prompt_lookup

    monkeypatch.setattr(model_guesses, "TRIAL_STEPS", 1000)  # it guesses whatever it costs
    monkeypatch.setattr(prompt_lookup.PromptLookup, "chances", lambda *_: [])
    texts, steps, right, wrong = answers(order(models[0], models[which]))
    assert texts == plain[0]
    if which == 0:
        assert wrong == 0
        assert steps < plain[1] / 2
    else:
        assert wrong > right


def test_it_holds_on_to_what_stayed_and_forgets_what_did_not(models):
    draft = LlamaCppDraft(order(models[1], models[1]), threads=lambda: 1)
    text = [1, *range(100, 140)]
    alone = draft.guess([(0, text)], 4)[0]
    assert draft.unread([(0, [*text, *alone])]) == 1  # its last guess it has not read
    draft.guess([(0, text[:20]), (1, text)], 2)
    assert draft.guess([(0, text), (2, text[:7])], 4)[0] == alone
    draft.read([(1, [*text, 5, 6])])
    assert draft.unread([(1, [*text, 5, 6])]) == 1
    assert draft.guess([(slot, text * 9) for slot in range(3)], 8) == [[], [], []]  # more than it has room for
    assert draft.guess([(0, text)], 4)[0] == alone
    draft.close()


def test_a_model_of_other_tokens_is_refused(models, tmp_path):
    changed = tiny_gguf.WORDS.copy()
    changed[-1] = "x"
    path = tmp_path / "changed.gguf"
    words = tiny_gguf.WORDS
    try:
        tiny_gguf.WORDS = changed
        tiny_gguf.write(path, chats=True)
        tiny_gguf.WORDS = words[:-1]
        tiny_gguf.write(tmp_path / "shorter.gguf", chats=True)
    finally:
        tiny_gguf.WORDS = words
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    graph = model_file(path, format=ModelFormat.ONNX_GENERATION)
    for draft, message in (
        (model_file(path), "changed cannot draft for large: token 264 differs; take a model of the same family"),
        (model_file(tmp_path / "shorter.gguf"), "264 tokens, not 265"),
        (model_file(broken), "refuses the file of broken"),
        (graph, "only GGUF models draft"),
    ):
        with pytest.raises(ModelUnloadable, match=message):
            LlamaCppDraft(order(models[0], draft), threads=lambda: 1)


@pytest.mark.asyncio
async def test_the_configuration_names_it_for_the_default_model_alone(models):
    files = {"large": models[0], "other": models[1]}

    def resolve(name):
        if name not in files:
            raise ModelNotFound(name)
        return files[name]

    pool = EnginePool(EngineSettings(model="large", draft_model="other"), resolve)
    assert pool._resolved("large").draft == models[1]
    assert pool._resolved("other").draft is None
    pool = EnginePool(EngineSettings(model="large", draft_model="missing"), resolve)
    with pytest.raises(ModelNotFound):
        pool._resolved("large")
