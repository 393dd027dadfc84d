"""A runtime without weights: every next token is a function of all tokens before it.

A vocabulary of 256 bytes and one end token. Because a row depends on the whole content of
its slot, an answer that mixes two requests, skips a token or sees a stale slot comes out
different from ``expected_answer``.
"""

import zlib

import numpy as np

from agent.engine.runtime import PromptRejected, PromptTooLong

END = 256
VOCABULARY = 257
LETTERS = b"abcdefgh "
LONGEST = 40


class FakeRuntime:
    name = "fake"
    vocabulary_size = VOCABULARY

    def __init__(self, load=None, *, slots=3, context_tokens=64, batch_tokens=16, prefixes=4, cells=None):
        self.slots = load.parallel if load else slots
        self.context_tokens = load.context_tokens if load else context_tokens
        self.batch_tokens = batch_tokens
        self.sequences = self.slots + prefixes
        self.cells = cells or self.slots * self.context_tokens
        # Of each sequence its tokens, each as (token, the cell that it takes).
        self.held = [[] for _ in range(self.sequences)]
        self.computed = 0
        self.decodes = 0

    def prompt_tokens(self, messages):
        tokens = list("\n".join(message.content for message in messages).encode())
        if not tokens:
            raise PromptRejected("the chat template makes an empty prompt of these messages")
        if len(tokens) + 1 > self.context_tokens:
            raise PromptTooLong(f"the prompt has {len(tokens)} tokens, the context has {self.context_tokens}")
        return tokens

    def decode(self, chunks):
        total = sum(len(chunk.tokens) for chunk in chunks)
        if not 0 < total <= self.batch_tokens:
            raise ValueError(f"{total} tokens in a batch of {self.batch_tokens}")
        if len({chunk.slot for chunk in chunks}) != len(chunks):
            raise ValueError("two chunks for one slot")
        for slot, start, tokens, _ in chunks:
            if not 0 <= slot < self.slots:
                raise ValueError("no such slot")
            if not tokens or start != len(self.content[slot]) or start + len(tokens) > self.context_tokens:
                raise ValueError(f"chunk of {len(tokens)} at {start}, slot holds {len(self.content[slot])}")
            if min(tokens) < 0 or max(tokens) >= VOCABULARY:
                raise ValueError("no such token")
        self.decodes += 1
        for chunk in chunks:
            for token in chunk.tokens:
                self.computed += 1
                self.held[chunk.slot].append((token, self.computed))
        assert self.cells_used() <= self.cells, "the native layer would be out of room"
        return [row(self.content[chunk.slot]) for chunk in chunks if chunk.wants_row]

    def share(self, source, target, start, end):
        if not (0 <= source < self.sequences and 0 <= target < self.sequences and source != target):
            raise ValueError(f"sequences {source} and {target} of {self.sequences}")
        if len(self.held[target]) != start or not start < end <= len(self.held[source]):
            raise ValueError(f"tokens {start} to {end} of sequence {source} for {target}")
        self.held[target] += self.held[source][start:end]

    def clear(self, slot):
        self.held[slot] = []

    def cells_used(self):
        return len({cell for held in self.held for _, cell in held})

    @property
    def content(self):
        return [[token for token, _ in held] for held in self.held]

    def piece(self, token):
        return b"" if token == END else bytes([token])

    def ends(self, token):
        return token == END

    def close(self):
        pass


def next_token(content):
    digest = zlib.crc32(bytes(min(token, 255) for token in content))
    return END if digest % 17 == 0 else LETTERS[digest % len(LETTERS)]


def row(content):
    logits = np.full(VOCABULARY, -10.0, np.float32)
    if content[:3] == list(b"NaN"):
        logits[:] = np.nan
    logits[next_token(content)] = 5.0
    logits[ord("z")] = 2.0
    return logits


def expected_answer(prompt, *, context_tokens=64, max_tokens=None):
    """Return (text, finish_reason) of a greedy answer to a prompt in bytes."""
    content = list(prompt)
    limit = context_tokens - len(content)
    limit = limit if max_tokens is None else min(limit, max_tokens)
    out = []
    while len(out) < limit:
        token = next_token(content)
        if token == END:
            return bytes(out).decode(), "stop"
        out.append(token)
        content.append(token)
    return bytes(out).decode(), "length"
