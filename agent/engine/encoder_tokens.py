"""From texts to the tokens of an encoder, within its limit. Used by one thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from agent.engine.refusals import ModelUnloadable, PromptRejected, PromptTooLong
from agent.types import Prompt

CHARACTERS_PER_TOKEN = 64  # a text with more than that for each token of the limit is not tokenized to be refused


class Tokens(NamedTuple):
    """One input of the graph."""

    ids: Sequence[int]
    types: Sequence[int]  # 0, and 1 for the second text of a pair
    offsets: Sequence[tuple[int, int]] = ()  # of each token in its text, characters; (0, 0) for a mark
    words: Sequence[int | None] = ()  # number of the word that each token is a part of; None for a mark


class EncoderTokens:
    """The tokenizer of one model."""

    def __init__(self, path: Path, most_tokens: int) -> None:
        """``most_tokens`` of one input, with its marks. Raises ModelUnloadable."""
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelUnloadable(f"{path.name} is no tokenizer: {error}") from None
        # What the file says of it fits the examples that the model was made with, not ours.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.most_tokens = most_tokens
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._before, self._behind = self._marks()

    def read(self, text: Prompt, query: str | None = None, *, truncate: bool = False) -> Tokens:
        """Return the tokens of a text, or of a query and a text, with their marks.

        With ``truncate`` the end of what is too long is left out: of the longer one, of a pair.
        Raises PromptRejected, or PromptTooLong with the numbers.
        """
        if not isinstance(text, str):
            return self._given(text, query, truncate=truncate)
        most = self.most_tokens * CHARACTERS_PER_TOKEN
        if max(len(text), len(query or "")) > most:
            if not truncate:
                raise PromptTooLong(f"has more than {most} characters, the model reads {self.most_tokens} tokens")
            text, query = text[:most], query and query[:most]
        found = self._encode(text, query)
        if len(found.ids) > self.most_tokens:
            if not truncate:
                raise PromptTooLong(f"has {len(found.ids)} tokens, the model reads {self.most_tokens}")
            self._tokenizer.enable_truncation(self.most_tokens)
            try:
                found = self._encode(text, query)
            finally:
                self._tokenizer.no_truncation()
        if not found.ids:
            raise PromptRejected("has no token")
        offsets = found.offsets if query is not None else _without_spaces(text, found.offsets)
        return Tokens(found.ids, found.type_ids, offsets, found.word_ids)

    def _encode(self, text: str, query: str | None) -> Encoding:
        try:
            return self._tokenizer.encode(text) if query is None else self._tokenizer.encode(query, text)
        except Exception as error:  # the library raises nothing narrower
            raise PromptRejected(f"cannot be tokenized: {type(error).__name__}") from None

    def _given(self, tokens: Sequence[int], query: str | None, *, truncate: bool) -> Tokens:
        if query is not None:
            raise PromptRejected("must be a text: it is read together with another one")
        wrong = next((token for token in tokens if not 0 <= token < self.vocabulary_size), None)
        if wrong is not None:
            raise PromptRejected(f"has the token {wrong}; those of this model are 0 to {self.vocabulary_size - 1}")
        inner = list(tokens)
        if inner[: len(self._before)] == self._before and self._before:
            inner = inner[len(self._before) :]
        if self._behind and inner[-len(self._behind) :] == self._behind:
            inner = inner[: -len(self._behind)]
        room = self.most_tokens - len(self._before) - len(self._behind)
        if len(inner) > room and not truncate:
            marked = len(inner) + self.most_tokens - room
            raise PromptTooLong(f"has {marked} tokens with its marks, the model reads {self.most_tokens}")
        ids = [*self._before, *inner[:room], *self._behind]
        if not ids:
            raise PromptRejected("has no token")
        return Tokens(ids, [0] * len(ids))

    def _marks(self) -> tuple[list[int], list[int]]:
        """Return the tokens that the tokenizer puts before and behind every text."""
        inner, whole = self._tokenizer.encode("a", add_special_tokens=False).ids, self._tokenizer.encode("a").ids
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return whole[:start], whole[start + len(inner) :]
        return [], []


def _without_spaces(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out the space that some tokenizers count to the token behind it."""
    return [(start + 1, end) if start + 1 < end and text[start].isspace() else (start, end) for start, end in offsets]
