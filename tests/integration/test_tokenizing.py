"""Text that becomes more tokens than it has bytes."""

import llama_cpp.llama_cpp as native
import pytest
from fakes import tiny_gguf

from agent.engine import frames
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.runtime import PromptRejected
from agent.types import ModelFile


@pytest.fixture
def runtime(tmp_path):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", chats=True)
    file = ModelFile(name="tiny", path=str(path), sha256="a" * 64, context_tokens=256)
    made = LlamaCppRuntime(
        frames.Load(model=file, context_tokens=128, parallel=1, waiting_line=0, threads=1, confine=False)
    )
    yield made
    made.close()


def test_a_vocabulary_that_makes_many_tokens_of_a_byte_gets_the_room_it_asks_for(runtime, monkeypatch):
    rooms = []

    def tokenize(vocabulary, text, length, buffer, room, *flags):
        rooms.append(room)
        if room < 50:
            return -50
        buffer[0:50] = range(50)
        return 50

    monkeypatch.setattr(native, "llama_tokenize", tokenize)
    assert runtime.label_tokens("ab") == list(range(50))
    assert rooms == [10, 50]


def test_text_that_cannot_be_tokenized_is_refused(runtime, monkeypatch):
    monkeypatch.setattr(native, "llama_tokenize", lambda *_: -1)
    with pytest.raises(PromptRejected, match="cannot be tokenized"):
        runtime.label_tokens("ab")
