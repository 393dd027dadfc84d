"""Guessing changes no token: on weights and a cache in 32 bits the text is the same, whatever is guessed."""

import ctypes

import llama_cpp.llama_cpp as native
import msgspec
import pytest
from fakes import smollm2

from agent.engine import frames
from agent.engine.drafting import Drafting
from agent.engine.llama_cpp_draft import LlamaCppDraft
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.model_guesses import ModelGuesses
from agent.engine.scheduler import Scheduler
from agent.types import Message, Sampling

pytestmark = pytest.mark.model
TEXT = "The ferry leaves the old harbour at seven and passes two lighthouses, a wreck and a small reef on its way."


class ExactRuntime(LlamaCppRuntime):
    """Keys and values in 32 bits and no flash attention: a row depends on its tokens, not on the batch."""

    def _context_parameters(self, load, room_bytes):
        parameters = super()._context_parameters(load, room_bytes)
        parameters.type_k = parameters.type_v = native.GGML_TYPE_F32
        parameters.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return parameters


class Always(Drafting):
    """Guesses as much as it can, whether it pays or not."""

    def drafts(self, requests, room):
        lookups = [self._followed(request) for request in requests]
        return [
            lookup.draft(len(lookup.chances(max(0, min(5, request.limit - request.generated - 1)))))
            for request, lookup in zip(requests, lookups, strict=True)
        ]


class Unceasing(ModelGuesses):
    """Guesses three tokens of each request in every step, whether it pays or not."""

    def _count(self, together, most, costs):
        return min(3, most)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    path = tmp_path_factory.mktemp("f32") / "f32.gguf"
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype = native.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    parameters.nthread = 1
    source = smollm2.model_file().path
    assert native.llama_model_quantize(source.encode(), str(path).encode(), ctypes.byref(parameters)) == 0
    order = frames.Load(
        model=smollm2.model_file(path=str(path)),
        context_tokens=512,
        parallel=3,
        waiting_line=0,
        threads=0,
        confine=False,
    )
    runtime = ExactRuntime(order)
    yield runtime
    runtime.close()
    path.unlink()


def answers(runtime, asks, drafting):
    scheduler = Scheduler(runtime, waiting_line=0, drafting=drafting)
    for number, (text, sampling) in enumerate(asks):
        scheduler.submit(frames.Generate(id=number, messages=(Message("user", text),), sampling=sampling))
    texts = [""] * len(asks)
    guessed = [0, 0]
    while not scheduler.idle:
        step = scheduler.step()
        for event in (*step.pieces, *step.ended):
            texts[event.id] += event.text
        for ended in step.ended:
            assert ended.failure is None
            guessed[0] += ended.accepted_tokens
            guessed[1] += ended.rejected_tokens
    return texts, guessed


def test_the_text_is_that_of_one_token_at_a_time(runtime):
    asks = [
        ("Repeat the following text exactly:\n\n" + TEXT, Sampling(max_tokens=30)),
        ("Why is the sky blue?", Sampling(max_tokens=30)),
        ("Name ten animals. Name ten animals. Name ten animals.", Sampling(max_tokens=30, temperature=0.8, seed=3)),
    ]
    plain, _ = answers(runtime, asks, None)
    guessed, (accepted, rejected) = answers(runtime, asks, Always())
    assert guessed == plain
    assert accepted > 10
    assert rejected > 0


def test_nor_does_a_draft_model_change_one(runtime):
    asks = [("Why is the sky blue?", Sampling(max_tokens=24)), ("Name three animals.", Sampling(max_tokens=24))]
    plain, _ = answers(runtime, asks, None)
    file = smollm2.model_file()  # the same weights in 4 bits
    order = frames.Load(
        model=msgspec.structs.replace(file, draft=file),
        context_tokens=256,
        parallel=3,
        waiting_line=0,
        threads=0,
        confine=False,
    )
    draft = LlamaCppDraft(order, threads=lambda: 2)
    guessed, (accepted, rejected) = answers(runtime, asks, Drafting(Unceasing(draft)))
    draft.close()
    assert guessed == plain
    assert accepted > 2 * rejected
