"""What a request wants of a model that thinks: under the names that OpenAI, llama-server and vLLM have for it."""

from __future__ import annotations

from enum import StrEnum

from agent.api.fields import Fields
from agent.types import Thinking

MOST_TOKENS = 1 << 20


class _Effort(StrEnum):
    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"


# Tokens of thought; where none are given, as many as there is room for.
_BUDGETS = {_Effort.NONE: 0, _Effort.MINIMAL: 128, _Effort.LOW: 512, _Effort.MEDIUM: 2048}


def parse_thinking(fields: Fields) -> Thinking | None:
    """Take ``reasoning_effort``, ``thinking_budget_tokens`` and ``chat_template_kwargs.enable_thinking``.

    A budget goes before an effort. Raises InvalidRequest for a contradiction.
    """
    effort = fields.choice("reasoning_effort", _Effort)
    budget = fields.integer("thinking_budget_tokens", 0, MOST_TOKENS)
    enabled = _switch(fields)
    if effort is None and budget is None and enabled is None:
        return None
    wishes = {enabled, None if budget is None else budget > 0, None if effort is None else effort is not _Effort.NONE}
    if len(wishes - {None}) > 1:
        raise fields.wrong_value(
            "reasoning_effort", "thinking_budget_tokens and chat_template_kwargs.enable_thinking contradict each other"
        )
    name = "chat_template_kwargs"
    if effort is not None:
        enabled, name = effort is not _Effort.NONE, "reasoning_effort"
        budget = _BUDGETS.get(effort, MOST_TOKENS) if budget is None else budget
    elif budget is not None:
        enabled, name = budget > 0, "thinking_budget_tokens"
    return Thinking(enabled=enabled, budget_tokens=budget, effort=effort.value if effort else None, param=name)


def _switch(fields: Fields) -> bool | None:
    given = fields.nested("chat_template_kwargs")
    if given is None:
        return None
    enabled = given.flag("enable_thinking")
    given.finish()
    return enabled
