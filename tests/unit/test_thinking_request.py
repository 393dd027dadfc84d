"""What a caller says about thinking, under the names of three APIs."""

import pytest

from agent.api.fields import Fields
from agent.api.thinking_request import MOST_TOKENS, parse_thinking
from agent.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "enabled", "budget", "effort"),
    [
        ({"reasoning_effort": "none"}, False, 0, "none"),
        ({"reasoning_effort": "low"}, True, 512, "low"),
        ({"reasoning_effort": "high"}, True, MOST_TOKENS, "high"),
        ({"reasoning_effort": "high", "thinking_budget_tokens": 9}, True, 9, "high"),
        ({"thinking_budget_tokens": 9}, True, 9, None),
        ({"thinking_budget_tokens": 0}, False, 0, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True, None, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None, None),
        ({"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 7}, True, 7, None),
    ],
)
def test_wishes(body, enabled, budget, effort):
    found = parse_thinking(Fields(body))
    assert (found.enabled, found.budget_tokens, found.effort) == (enabled, budget, effort)


@pytest.mark.parametrize("body", [{}, {"reasoning_effort": None}, {"chat_template_kwargs": {}}])
def test_no_wish(body):
    assert parse_thinking(Fields(body)) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"thinking_budget_tokens": -1}, "thinking_budget_tokens"),
        ({"thinking_budget_tokens": True}, "thinking_budget_tokens"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"reasoning_effort": "none", "thinking_budget_tokens": 5}, "reasoning_effort"),
        ({"reasoning_effort": "low", "thinking_budget_tokens": 0}, "reasoning_effort"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, "reasoning_effort"),
    ],
)
def test_what_is_refused_by_name(body, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_thinking(Fields(body))
    assert caught.value.param == param
