"""A runtime without weights: every next token is a function of all tokens before it.

A vocabulary of 256 bytes and one end token. Because a row depends on the whole content of
its slot, an answer that mixes two requests, skips a token or sees a stale slot comes out
different from ``expected_answer``.
"""

import zlib

import numpy as np

from agent.engine.grammar import Vocabulary
from agent.engine.runtime import Chunk, PromptRejected, PromptTooLong, RuntimeBroken, Saved
from agent.engine.worker_status import ModelTraits, ThreadChoice

END = 256
VOCABULARY = 257
LETTERS = b"abcdefgh "
LONGEST = 40


class FakeRuntime:
    name = "fake"
    vocabulary_size = VOCABULARY
    hidden_width = 4
    traits = ModelTraits(parameters=1, quantization="none", fills_gaps=True, thinks=False)
    thinking = None
    state_format = "fake"
    thread_choice = ThreadChoice(1, 1, "fake")

    def __init__(self, load=None, *, slots=3, context_tokens=64, batch_tokens=16, saved_tokens=80, cells=None):
        self.slots = load.parallel if load else slots
        self.context_tokens = load.context_tokens if load else context_tokens
        self.batch_tokens = batch_tokens
        self.drafted_tokens = batch_tokens // 2
        self.saved_tokens = saved_tokens
        self.cells = cells or self.slots * self.context_tokens
        # Of each slot its tokens, each as (token, the cell that it takes).
        self.held = [[] for _ in range(self.slots)]
        self.computed = 0
        self.decodes = 0
        self.scoring_context = None

    def markup_tokens(self, text):
        return list(text.encode())

    def written(self, token):
        return b"<end>" if token == END else bytes([token])

    def prompt_tokens(self, messages, tools=None, *, thinking=False):
        tokens = list("\n".join(message.content for message in messages).encode())
        if not tokens:
            raise PromptRejected("the chat template makes an empty prompt of these messages")
        if len(tokens) + 1 > self.context_tokens:
            raise PromptTooLong(f"the prompt has {len(tokens)} tokens, the context has {self.context_tokens}")
        return tokens

    def decode_one_each(self, slots, tokens):
        return self.decode(
            [Chunk(slot, len(self.held[slot]), [token], True) for slot, token in zip(slots, tokens, strict=True)]
        )

    def decode(self, chunks):
        total = sum(len(chunk.tokens) for chunk in chunks)
        if not 0 < total <= self.batch_tokens:
            raise ValueError(f"{total} tokens in a batch of {self.batch_tokens}")
        if len({chunk.slot for chunk in chunks}) != len(chunks):
            raise ValueError("two chunks for one slot")
        if sum(chunk.drafted for chunk in chunks) > self.drafted_tokens:
            raise ValueError("more drafted tokens than rows")
        for slot, start, tokens, wants_row, drafted in chunks:
            if not 0 <= slot < self.slots:
                raise ValueError("no such slot")
            if not tokens or start != len(self.content[slot]) or start + len(tokens) > self.context_tokens:
                raise ValueError(f"chunk of {len(tokens)} at {start}, slot holds {len(self.content[slot])}")
            if min(tokens) < 0 or max(tokens) >= VOCABULARY:
                raise ValueError("no such token")
            if drafted and not (wants_row and 0 < drafted < len(tokens)):
                raise ValueError("drafted tokens follow known ones")
        self.decodes += 1
        for chunk in chunks:
            for token in chunk.tokens:
                self.computed += 1
                self.held[chunk.slot].append((token, self.computed))
        assert self.cells_used() <= self.cells, "the native layer would be out of room"
        if any(content[:6] == list(b"BROKEN") for content in self.content):
            raise RuntimeBroken("llama_decode returned -3")
        rows = []
        for chunk in chunks:
            content = self.content[chunk.slot]
            if chunk.wants_row:
                rows += [row(content[: len(content) - back]) for back in range(chunk.drafted, -1, -1)]
        return rows

    def span(self, slot, start, end):
        if not 0 <= slot < self.slots or not 0 <= start < end <= len(self.held[slot]):
            raise ValueError(f"slot {slot} does not hold tokens {start} to {end}")
        return self.held[slot][start:end]

    def share(self, source, target, start, end):
        span = self.span(source, start, end)
        if not 0 <= target < self.slots or source == target or len(self.held[target]) != start:
            raise ValueError(f"slot {target} cannot take tokens from {start} on")
        self.held[target] += span

    def save(self, slot, start, end):
        return Saved(start, end, [token for token, _ in self.span(slot, start, end)])

    def restore(self, saved, slot, end):
        if not 0 <= slot < self.slots or len(self.held[slot]) != saved.start or not saved.start < end <= saved.end:
            raise ValueError(f"slot {slot} cannot take tokens {saved.start} to {end}")
        if self.cells_used() + len(saved.data) > self.cells:
            return False
        self.held[slot] += [(token, object()) for token in saved.data[: end - saved.start]]
        return True

    def divide(self, saved, at):
        if not saved.start < at < saved.end:
            raise ValueError(f"{at} is not inside of {saved.start} to {saved.end}")
        if self.cells_used() + len(saved.data) > self.cells:
            return None
        inside = at - saved.start
        return Saved(saved.start, at, saved.data[:inside]), Saved(at, saved.end, saved.data[inside:])

    def pack(self, saved):
        return memoryview(bytes(saved.data))

    def unpack(self, start, end, data):
        if not 0 <= start < end or len(data) != end - start:
            raise ValueError(f"{len(data)} bytes for tokens {start} to {end}")
        return Saved(start, end, list(data))

    def text_tokens(self, prompt):
        if not isinstance(prompt, str):
            tokens = list(prompt)
            if any(not 0 <= token < VOCABULARY for token in tokens):
                raise PromptRejected("a token of the prompt is not in the vocabulary")
        else:
            tokens = list(prompt.encode())
        if not tokens:
            raise PromptRejected("the prompt is empty")
        if len(tokens) + 1 > self.context_tokens:
            raise PromptTooLong(f"the prompt has {len(tokens)} tokens, the context has {self.context_tokens}")
        return tokens

    def gap_tokens(self, prompt, suffix):
        return self.text_tokens(f"{prompt}_{suffix}")

    def label_tokens(self, label):
        return list(label.encode())

    def scoring(self, cells):
        if self.scoring_context is None or self.scoring_context.cells < cells:
            self.scoring_context = FakeScoring(cells)
        return self.scoring_context

    def cut(self, slot, tokens):
        self.span(slot, 0, tokens)
        del self.held[slot][tokens:]

    def clear(self, slot):
        self.held[slot] = []

    def cells_used(self):
        return len({cell for held in self.held for _, cell in held})

    @property
    def content(self):
        return [[token for token, _ in held] for held in self.held]

    def vocabulary(self):
        return Vocabulary([bytes([byte]) for byte in range(256)] + [b"\xff<end>"], [END], list)

    def piece(self, token):
        return b"" if token == END else bytes([token])

    def ends(self, token):
        return token == END

    def close(self):
        pass


class FakeScoring:
    """A tree of continuations; whatever breaks the rules of the seam is an assertion."""

    batch_tokens = 8
    step_tokens = 2
    branches = 5

    def __init__(self, cells):
        self.cells = cells
        self.shared = []
        self.own = {}
        self.used = 0
        self.decoded = 0
        self.state = None

    def decode(self, nodes, *, hidden=False):
        assert 0 < len(nodes) <= self.batch_tokens
        rows = []
        for token, position, branches, wants_row in nodes:
            assert 0 <= token < VOCABULARY
            self.used += 1
            if branches is None:
                assert not self.own
                assert position == len(self.shared)
                self.shared.append(token)
                content = self.shared
            else:
                assert branches
                for branch in branches:
                    assert 0 <= branch < self.branches
                    assert position == len(self.shared) + len(self.own.setdefault(branch, []))
                    self.own[branch].append(token)
                content = self.shared + self.own[branches[0]]
                assert all(self.own[branch] == self.own[branches[0]] for branch in branches)
            if wants_row:
                rows.append(spread(content))
                self.state = rows[0][: FakeRuntime.hidden_width] if hidden else None
        assert self.used <= self.cells
        self.decoded += len(nodes)
        return rows

    def hidden(self):
        assert self.state is not None
        return self.state

    def keep(self, tokens):
        assert 0 <= tokens <= len(self.shared)
        self.shared = self.shared[:tokens]
        self.own = {}
        self.used = tokens


def spread(content):
    """A row in which every token has a figure of its own, from the whole content."""
    seed = zlib.crc32(bytes(min(token, 255) for token in content))
    if content[:3] == list(b"NaN"):
        return np.full(VOCABULARY, np.nan, np.float32)
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


def expected_logprob(prompt, label):
    """The log-probability of a label after a prompt, token by token in float64."""
    total, content = 0.0, list(prompt)
    for token in label:
        logits = spread(content).astype(np.float64)
        total += logits[token] - np.logaddexp.reduce(logits)
        content.append(token)
    return total


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
