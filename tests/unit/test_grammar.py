"""Rules on a runtime without weights: whatever the model prefers, what comes out obeys."""

import json
import threading
import time

import numpy as np
import pytest
from fakes.fake_runtime import END, FakeRuntime

from agent.engine import frames, grammar, scheduler
from agent.engine.grammar import Compiling, Grammars, RuleRejected
from agent.engine.scheduler import Scheduler
from agent.structure import FormatKind, OutputFormat, ToolChoice, ToolFunction, Tools
from agent.types import FailureKind, Message, Sampling

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "city": {"enum": ["Paris", "Prague"]}},
    "required": ["name", "city"],
    "additionalProperties": False,
}
TOOLS = (
    ToolFunction(name="now"),
    ToolFunction(name="weather", parameters=json.dumps(SCHEMA)),
)


class Babbler(FakeRuntime):
    """Every next token is as likely as another, so that sampling tries everything that is allowed."""

    def __init__(self, **given):
        super().__init__(**({"context_tokens": 400} | given))

    def decode(self, chunks):
        return [np.zeros_like(row) for row in super().decode(chunks)]


def as_schema(**schema):
    return OutputFormat(kind=FormatKind.JSON_SCHEMA, source=json.dumps(schema))


def run(output=None, tools=None, *, runtime=None, seed=1, **sampling):
    serving = Scheduler(runtime or Babbler(), waiting_line=0)
    given = Sampling(**({"temperature": 1.0, "seed": seed, "max_tokens": 300} | sampling))
    serving.submit(
        frames.Generate(id=1, messages=(Message("user", "hi"),), sampling=given, response_format=output, tools=tools)
    )
    text, tokens = "", ()
    while not serving.idle:
        step = serving.step()
        for part in (*step.pieces, *step.ended):
            text, tokens = text + part.text, tokens + part.tokens
        for ended in step.ended:
            return text, tokens, ended
    raise AssertionError("the request never ended")


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_always_validates(seed):
    text, _, ended = run(as_schema(**SCHEMA), seed=seed)
    found = json.loads(text)
    assert (ended.finish_reason, ended.incomplete) == ("stop", False)
    assert list(found) == ["name", "city"]
    assert len(found["name"]) <= 5
    assert found["city"] in {"Paris", "Prague"}


@pytest.mark.parametrize(
    ("output", "obeys"),
    [
        (
            OutputFormat(kind=FormatKind.ENUM, source='["yes", "no", "\\"x\\"\\n"]'),
            lambda t: t in {"yes", "no", '"x"\n'},
        ),
        (
            OutputFormat(kind=FormatKind.REGEX, source="[0-9]{4}-[a-c]"),
            lambda t: t[:4].isdigit() and t[4:] in "-a -b -c",
        ),
        (OutputFormat(kind=FormatKind.GRAMMAR, source='root ::= "a" ("b" | "c") "d"'), lambda t: t in {"abd", "acd"}),
        (OutputFormat(kind=FormatKind.GRAMMAR, source='start: "a" x "d"\nx: "b" | "c"'), lambda t: t in {"abd", "acd"}),
    ],
)
def test_other_formats(output, obeys):
    for seed in range(4):
        text, _, ended = run(output, seed=seed)
        assert obeys(text), text
        assert ended.finish_reason == "stop"


def test_forced_bytes_are_told_from_choices():
    text, tokens, _ = run(as_schema(**SCHEMA), seed=3)
    shown = "".join("_" if token.forced else token.text_bytes.decode("latin-1") for token in tokens)
    assert shown.startswith("_" * len('{"name": "'))
    assert "_" * len(', "city": "P') in shown
    city = json.loads(text)["city"]
    # The letter in which the two cities differ is the only choice in the second value.
    assert [token.text_bytes for token in tokens if not token.forced][-1] == city[1:2].encode()
    chosen = [token for token in tokens if not token.forced]
    assert chosen[-1].allowed_mass == pytest.approx(2 / 257, rel=1e-3)


def test_log_probabilities_are_those_of_the_whole_vocabulary():
    _, tokens, _ = run(as_schema(**SCHEMA), logprobs=True)
    assert [token.logprob for token in tokens] == pytest.approx([-np.log(257)] * len(tokens), rel=1e-3)
    _, tokens, _ = run(as_schema(**SCHEMA))
    chosen = [token.logprob for token in tokens if not token.forced]
    assert chosen == pytest.approx([-np.log(257)] * len(chosen), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_required_tools_are_called_with_valid_arguments(seed):
    text, _, ended = run(tools=Tools(functions=TOOLS, choice=ToolChoice.REQUIRED, parallel=False), seed=seed)
    assert ended.finish_reason == "stop"
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    call = json.loads(body)
    assert list(call) == ["name", "arguments"]
    if call["name"] == "now":
        assert call["arguments"] == {}
    else:
        assert call["arguments"]["city"] in {"Paris", "Prague"}


def test_a_named_tool_is_called_once():
    tools = Tools(functions=TOOLS, choice=ToolChoice.REQUIRED, only="now")
    assert run(tools=tools)[0] == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_without_a_choice_to_call_nothing_is_constrained():
    plain = run()[0]
    assert run(tools=Tools(functions=TOOLS, choice=ToolChoice.NONE))[0] == plain


def test_a_mark_in_free_text_leads_to_a_call():
    matcher = Grammars(FakeRuntime().vocabulary, 257).begin(None, Tools(functions=TOOLS)).constraint()
    for byte in b"I will see: <tool_call>":
        assert matcher.accept(byte)
    assert not matcher.satisfied
    assert matcher.forced_bytes() == b'\n{"name": "'
    matcher = Grammars(FakeRuntime().vocabulary, 257).begin(None, Tools(functions=TOOLS)).constraint()
    for byte in b"a < b, and no tool is needed":
        assert matcher.accept(byte)
    assert matcher.satisfied
    assert matcher.allowed()[END]


def test_with_a_schema_beside_tools_the_answer_has_the_one_or_the_other_form():
    for seed in range(6):
        text, _, _ = run(as_schema(**SCHEMA), Tools(functions=TOOLS, parallel=False), seed=seed)
        assert text.startswith("<tool_call>") or json.loads(text)["city"] in {"Paris", "Prague"}


def test_an_answer_that_is_cut_off_is_incomplete():
    _, _, ended = run(as_schema(**SCHEMA), max_tokens=6)
    assert (ended.finish_reason, ended.incomplete) == ("length", True)
    _, _, ended = run(max_tokens=6)
    assert (ended.finish_reason, ended.incomplete) == ("length", False)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (as_schema(type="array", items={"type": "string"}, uniqueItems=True), "uniqueItems"),
        (as_schema(**{"$ref": "https://example.com/schema"}), "example.com"),
        (as_schema(type="object", properties={"a": False}, required=["a"]), "unsatisfiable"),
        (as_schema(type="string", format="no such format"), "format"),
        (as_schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), ""),
        (OutputFormat(kind=FormatKind.REGEX, source="(("), "regex"),
        (OutputFormat(kind=FormatKind.REGEX, source="(?=a)b"), "look-around"),
        (OutputFormat(kind=FormatKind.GRAMMAR, source="root ::= ((("), "GBNF"),
        (OutputFormat(kind=FormatKind.GRAMMAR, source="start: nowhere"), "nowhere"),
        (OutputFormat(kind=FormatKind.GRAMMAR, source="start: a\na: a"), "does a rule lead to itself alone"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(output, reason):
    text, _, ended = run(output)
    assert text == ""
    assert (ended.failure.kind, ended.failure.param) == (FailureKind.REJECTED, "response_format")
    assert reason in ended.failure.message
    assert len(ended.failure.message) < 400


@pytest.mark.parametrize(
    "output",
    [
        as_schema(allOf=[{"anyOf": [{"required": [f"{i}{j}"]} for j in range(6)]} for i in range(8)]),
        as_schema(type="string", pattern="^(([a-z]{1,99}){1,99}){1,99}$"),
        as_schema(type="array", minItems=10**6, items={"type": "string"}),
        as_schema(type="string", minLength=10**6),
        OutputFormat(kind=FormatKind.GRAMMAR, source='start: start start | "a" start | "a"'),
        OutputFormat(kind=FormatKind.REGEX, source="((a|b)*a(a|b){30}){9}"),
    ],
)
def test_a_bomb_is_refused_or_harmless(output):
    _, _, ended = run(output, max_tokens=30)
    assert ended.failure is None or ended.failure.kind is FailureKind.REJECTED


def test_recursion_is_no_bomb():
    source = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
    _, tokens, ended = run(as_schema(**source), max_tokens=200)
    assert tokens
    assert ended.failure is None


def test_a_rule_that_takes_too_long_harms_nobody_else(monkeypatch):
    gate = threading.Event()
    compile_rule = Grammars._compile

    def slow(self, output, tools):
        if output.source == "slow":
            gate.wait(30)
        return compile_rule(self, output, tools)

    monkeypatch.setattr(Grammars, "_compile", slow)
    monkeypatch.setattr(scheduler, "COMPILE_LIMIT_S", 0.0)
    monkeypatch.setattr(grammar, "QUICK_S", 0.01)
    serving = Scheduler(FakeRuntime(), waiting_line=3)

    def submit(number, source):
        output = OutputFormat(kind=FormatKind.REGEX, source=source) if source else None
        serving.submit(
            frames.Generate(id=number, messages=(Message("user", "hi"),), sampling=Sampling(), response_format=output)
        )

    monkeypatch.setattr(grammar, "MOST_UNDER_WAY", 2)
    submit(1, "slow")
    submit(2, None)
    submit(3, "a")
    submit(4, "b")
    ended = {}
    while not serving.idle:
        ended |= {one.id: one for one in serving.step().ended}
    gate.set()
    assert "to compile" in ended[1].failure.message
    assert ended[2].finish_reason == "stop"
    assert "to compile" in ended[3].failure.message
    assert ended[4].failure.kind is FailureKind.BUSY
    assert "2 other formats are still being compiled" in ended[4].failure.message


def test_rules_asked_for_at_once_are_compiled_one_after_the_other(monkeypatch):
    compile_rule, under_way, most = Grammars._compile, [], []
    grammars = Grammars(FakeRuntime().vocabulary, 257)

    def watched(self, output, tools):
        if self is not grammars:  # a thread that an earlier test left behind
            return compile_rule(self, output, tools)
        under_way.append(output.source)
        most.append(len(under_way))
        try:
            time.sleep(0.02)
            return compile_rule(self, output, tools)
        finally:
            under_way.pop()

    monkeypatch.setattr(Grammars, "_compile", watched)
    monkeypatch.setattr(grammar, "QUICK_S", 0.0)
    rules = [grammars.begin(OutputFormat(kind=FormatKind.REGEX, source=text), None) for text in "abcd"]
    assert all(rule.ready(30) and rule.constraint() for rule in rules)
    assert max(most) == 1


def test_compiled_rules_are_kept_and_the_oldest_leave():
    grammars = Grammars(FakeRuntime().vocabulary, 257)
    first = grammars.begin(OutputFormat(kind=FormatKind.REGEX, source="a"), None)
    assert grammars.begin(OutputFormat(kind=FormatKind.REGEX, source="a"), None) is first
    for number in range(grammar.MOST_KEPT):
        assert grammars.begin(OutputFormat(kind=FormatKind.REGEX, source=f"b{number}"), None).ready(10)
    assert grammars.begin(OutputFormat(kind=FormatKind.REGEX, source="a"), None) is not first


def test_a_fault_while_compiling_is_a_refusal():
    def fault():
        raise ZeroDivisionError

    compiling = Compiling(fault)
    assert compiling.ready(10)
    with pytest.raises(RuleRejected, match="ZeroDivisionError"):
        compiling.constraint()


def test_the_probability_of_null_is_told_where_a_value_begins():
    schema = {
        "type": "object",
        "properties": {"name": {"type": ["string", "null"], "maxLength": 9}, "kind": {"enum": ["no", "yes"]}},
        "required": ["name", "kind"],
        "additionalProperties": False,
    }
    for seed in range(5):
        text, tokens, _ = run(as_schema(**schema), seed=seed)
        told = [token for token in tokens if token.null_mass is not None]
        # Of the two bytes that can follow, one begins null; in a string and at another choice there is no null.
        assert [token.text_bytes for token in told][:1] == [text[len('{"name": ')].encode()]
        assert told[0].null_mass == pytest.approx(1 / 257, rel=1e-3)
        assert len(told) <= 2
