"""Expressions of rules: they say what ``re`` says, and no text holds them up."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.linear_regex import LinearRegex, UnsafePattern

PATTERNS = [
    r"abc", r"a*b", r"(a|b)+c", r"^a.b$", r"\bfoo\b", r"[^a-c]x", r"(?:ab){2,4}", r"a??b", r"\d{3}-\d{2}", r"\w+\s\w+",
    r"(a*)*b", r"", r"x|", r"[\w.]+@b", r"\Babc", r"(?m)^b$", r"(?s)a.b", r"[^\d]a", r"\Aab\Z", r"(?i)Ab", r"[^A]\Db",
]  # fmt: skip
TEXT = st.text(alphabet="aAbBcx 1-f_o.@\né", max_size=12).filter(lambda text: not text.endswith("\n"))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ignore_case", [False, True])
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_it_finds_what_re_finds(pattern, ignore_case, text):
    found = LinearRegex(pattern, ignore_case=ignore_case).search(text)
    assert found is bool(re.search(pattern, text, re.IGNORECASE if ignore_case else 0))


@pytest.mark.parametrize("pattern", [r"(a*)*b", r"(a|aa)+$", r"(a|a)*b", r"(.*a){20}b", r"([a-z]+)*\d"])
def test_what_would_hold_re_up_takes_as_many_steps_as_the_text_has_characters(pattern, monkeypatch):
    regex, steps = LinearRegex(pattern), []
    step = regex._step
    monkeypatch.setattr(regex, "_step", lambda *state: steps.append(1) or step(*state))
    assert regex.search("a" * 5000 + "!") is False
    assert len(steps) == 5002


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(a)\1", "reference back"),
        (r"(?=a)b", "ahead or behind"),
        (r"(?<!a)b", "ahead or behind"),
        (r"(?P<n>a)(?(n)b|c)", "conditional"),
        (r"a{5000}", "states"),
        (r"(?:a{90}){90}", "states"),
        (r"(", "no regular expression"),
        (r"(?i:a)b", "flags inside"),
        ("a" * 1001, "1000 characters"),
    ],
)
def test_what_is_not_linear_is_refused_with_the_reason(pattern, says):
    with pytest.raises(UnsafePattern, match=says):
        LinearRegex(pattern)
