"""The last hidden state of the language model at the end of a prompt and of its answer, by llama.cpp itself.

    python benchmarks/hidden_states.py --data DIR --report RAW.jsonl --write STATES.npz

A probe of them is what the appraiser is compared with. Slow: every prompt is read again; a run goes on where the one
before it stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent import configuration
from agent.batch import open_encoder
from agent.demonstrations import MOST
from agent.models.store import open_store
from agent.types import Message
from benchmarks.open_raw import ENCODER, MODEL, key_of, parts_of, read_raw, request_of, shown_to
from benchmarks.open_sets import SETS

SET = "restaurant8k slots"
CONTEXT = 2048


def rendered(messages: Sequence[Message]) -> str:
    """Return the prompt as the model's template has it (ChatML)."""
    turns = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in messages)
    return f"{turns}<|im_start|>assistant\n"


class States:
    """A context of llama.cpp that gives hidden states."""

    def __init__(self, path: str, threads: int) -> None:
        native.llama_backend_init()
        native.llama_log_set(_SILENT, ctypes.c_void_p())
        self._model = native.llama_model_load_from_file(path.encode(), native.llama_model_default_params())
        wanted = native.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = CONTEXT
        wanted.embeddings = True
        wanted.pooling_type = native.LLAMA_POOLING_TYPE_NONE
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = native.llama_init_from_model(self._model, wanted)
        self._width = native.llama_model_n_embd(self._model)
        self._vocabulary = native.llama_model_get_vocab(self._model)

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = (native.llama_token * (len(data) + 8))()
        count = native.llama_tokenize(self._vocabulary, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def of(self, prompt: str, answer: str) -> NDArray[np.float32]:
        """Return the states at the last token of the prompt and of the answer: (2, width)."""
        first = self.tokens(prompt)
        whole = [*first, *self.tokens(answer)]
        batch = native.llama_batch_init(len(whole), 0, 1)
        try:
            batch.n_tokens = len(whole)
            for at, token in enumerate(whole):
                batch.token[at], batch.pos[at] = token, at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = at in {len(first) - 1, len(whole) - 1}
            native.llama_memory_clear(native.llama_get_memory(self._context), True)
            if native.llama_decode(self._context, batch):
                raise RuntimeError("llama.cpp cannot decode the prompt")
            rows = [native.llama_get_embeddings_ith(self._context, at) for at in (len(first) - 1, len(whole) - 1)]
            return np.array([np.ctypeslib.as_array(row, (self._width,)).copy() for row in rows], np.float32)
        finally:
            native.llama_batch_free(batch)


_SILENT = native.llama_log_callback(lambda *_: None)


def main() -> int:
    parser = argparse.ArgumentParser(description="Hidden states of the slots of restaurant8k.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True, help="the recorded answers")
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10_000, help="items that teach, and items that are asked")
    parser.add_argument("--threads", type=int, default=2, help="1 is faster where others compute, too")
    chosen = parser.parse_args()
    of = next(one for one in SETS if one.name == SET)
    raw = read_raw(chosen.report)
    taught, asked = parts_of(of, chosen.data)
    states = States(open_store(configuration.load().settings.data_path).resolve(MODEL).path, chosen.threads)
    found: dict[str, Any] = {}
    if chosen.write.exists():
        with np.load(chosen.write) as earlier:
            found = dict(earlier)
    with open_encoder(ENCODER) as encoder:
        of_taught = [tuple(map(float, row)) for row in encoder.embed([one.input for one in taught])]
        for part, items in (("taught", taught), ("asked", asked)):
            vectors = [tuple(map(float, row)) for row in encoder.embed([one.input for one in items])]
            for at, (item, vector) in list(enumerate(zip(items, vectors, strict=True)))[: chosen.most]:
                kept = raw.get((SET, part, MOST, key_of(item)))
                if kept is None or f"{part} {key_of(item)}" in found:
                    continue
                near = shown_to(item, vector, taught, of_taught, MOST, but=at if part == "taught" else None)
                prompt = rendered(request_of(of, item, [taught[i] for i in near]).messages)
                found[f"{part} {key_of(item)}"] = states.of(prompt, kept.generation.text)
                if len(found) % 20 == 0:
                    print(len(found), file=sys.stderr, flush=True)
                    np.savez_compressed(chosen.write, **found)
    np.savez_compressed(chosen.write, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
