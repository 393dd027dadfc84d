"""From what a caller asks to the tokens of a prompt: the same for every runtime.

Control tokens come from the chat template only, never from a message or tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.engine.chat_template import ChatTemplate
from agent.engine.control_texts import ControlTexts, parts
from agent.engine.runtime import PromptRejected, PromptTooLong
from agent.structure import Tools
from agent.types import Message, Prompt

# Before a prompt is tokenized it is known to be too long above this many bytes per token of context.
BYTES_PER_TOKEN = 64

Tokenize = Callable[[str, bool], list[int]]  # a text, and whether control tokens are read out of it


class PromptTokens:
    """Renders and tokenizes for one loaded model."""

    def __init__(
        self,
        tokenize: Tokenize,
        *,
        template: ChatTemplate | None,
        control_texts: ControlTexts,
        bos: int | None,
        gap_marks: tuple[int, int, int] | None,
        vocabulary_size: int,
        context_tokens: int,
        shortage: str = "",
    ) -> None:
        """``bos`` begins every prompt; ``gap_marks`` are the tokens for text before, after and in a gap.

        ``shortage`` says, behind the size of the context, why it is smaller than it was to be.
        """
        self._tokenize = tokenize
        self._template = template
        self._control_texts = control_texts
        self._bos = bos
        self._gap_marks = gap_marks
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._shortage = shortage

    def of_messages(self, messages: Sequence[Message], tools: Tools | None, *, thinking: bool) -> list[int]:
        """Render the chat template and tokenize. Raises PromptRejected or PromptTooLong."""
        limit = self._context_tokens * BYTES_PER_TOKEN
        size = sum(len(message.content) for message in messages)
        size += (
            sum(len(function.description) + len(function.parameters) for function in tools.functions) if tools else 0
        )
        if size > limit:
            raise PromptTooLong(
                f"the prompt has {size} characters, far more than fit the context of "
                f"{self._context_tokens} tokens{self._shortage}"
            )
        if self._template is None:
            raise PromptRejected(
                "this model has no chat template, neither in its file nor in its manifest entry: "
                "have it continue a text (/v1/completions), or give it a template"
            )
        marked, marked_tools, hidden = self._control_texts.hide(messages, tools)
        tokens: list[int] = []
        for text, special in parts(self._template.render(marked, marked_tools, thinking=thinking), hidden):
            tokens += self._tokenize(text, special)
        self._put_bos(tokens)
        if not tokens:
            raise PromptRejected("the chat template makes an empty prompt of these messages")
        return self._fitting(tokens)

    def of_text(self, prompt: Prompt) -> list[int]:
        """Tokenize a prompt that is no chat: control tokens are read out of it, it is all the caller's own."""
        if isinstance(prompt, str):
            limit = self._context_tokens * BYTES_PER_TOKEN
            if len(prompt) > limit:
                raise PromptTooLong(f"the prompt has {len(prompt)} characters, far more than fit the context")
            tokens = self._tokenize(prompt, True)
            self._put_bos(tokens)
        else:
            tokens = list(prompt)
            if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary_size:
                raise PromptRejected(f"a token of the prompt is not in the vocabulary of {self._vocabulary_size}")
        if not tokens:
            raise PromptRejected("the prompt is empty")
        return self._fitting(tokens)

    def of_gap(self, prompt: Prompt, suffix: str) -> list[int]:
        """Mark the two texts with the tokens that the model was trained on: beginning, end, then the gap."""
        if self._gap_marks is None:
            raise PromptRejected("this model cannot fill a gap: its file names no tokens for that", "suffix")
        before, after, gap = self._gap_marks
        if len(prompt) + len(suffix) > self._context_tokens * BYTES_PER_TOKEN:
            raise PromptTooLong("prompt and suffix are far longer than the context")
        known = self._tokenize(prompt, False) if isinstance(prompt, str) else self.of_text(prompt)
        tokens = [before, *known, after, *self._tokenize(suffix, False), gap]
        self._put_bos(tokens)
        return self._fitting(tokens)

    def _put_bos(self, tokens: list[int]) -> None:
        if self._bos is not None and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)

    def _fitting(self, tokens: list[int]) -> list[int]:
        if len(tokens) + 1 > self._context_tokens:
            raise PromptTooLong(
                f"the prompt has {len(tokens)} tokens, the context has {self._context_tokens}{self._shortage}"
            )
        return tokens


class PromptMethods:
    """The part of a runtime that makes prompts. ``agent.engine.runtime`` has the contracts."""

    _prompts: PromptTokens

    def prompt_tokens(
        self, messages: Sequence[Message], tools: Tools | None = None, *, thinking: bool = False
    ) -> list[int]:
        """Render and tokenize."""
        return self._prompts.of_messages(messages, tools, thinking=thinking)

    def text_tokens(self, prompt: Prompt) -> list[int]:
        """Tokenize a prompt that is no chat."""
        return self._prompts.of_text(prompt)

    def gap_tokens(self, prompt: Prompt, suffix: str) -> list[int]:
        """Return the prompt that has the model write what belongs between these two texts."""
        return self._prompts.of_gap(prompt, suffix)
