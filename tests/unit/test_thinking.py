"""Thoughts and answer come apart, in whatever pieces the model writes them."""

import json

import numpy as np
import pytest
from fakes.fake_runtime import END, VOCABULARY, FakeRuntime

from agent.engine import frames
from agent.engine.scheduler import Scheduler
from agent.structure import FormatKind, OutputFormat
from agent.types import FailureKind, Message, Sampling, Thinking, ThinkingMarks

MARKS = ThinkingMarks()
OPENED = "Why? <think>\n"
CHOICE = OutputFormat(kind=FormatKind.ENUM, source=json.dumps(["yes", "no"]))


class Model(FakeRuntime):
    """Writes the first of ``lines`` whose beginning is what it has written so far, else the last one after the mark."""

    def __init__(self, *lines, thinking=MARKS, prompt=OPENED):
        super().__init__(slots=2, context_tokens=120, batch_tokens=64)
        self.thinking = thinking
        self.lines = [line.encode() for line in lines]
        self.prompt = prompt.encode()
        self.asked_to_think = None

    def prompt_tokens(self, messages, tools=None, *, thinking=False):
        self.asked_to_think = thinking
        return list(self.prompt)

    def decode(self, chunks):
        super().decode(chunks)
        return [self.row(bytes(self.content[chunk.slot])) for chunk in chunks if chunk.wants_row]

    def row(self, content):
        said = content[len(self.prompt) :]
        line = next((line for line in self.lines if line.startswith(said)), None)
        if line is None:
            line, said = self.lines[-1], said.rpartition(b"</think>")[2].lstrip()
            line = line.rpartition(b"</think>")[2].lstrip()
        logits = np.full(VOCABULARY, -10.0, np.float32)
        logits[line[len(said)] if len(said) < len(line) else END] = 5.0
        return logits


def run(model, *, thinking=None, budget=100, **asked):
    scheduler = Scheduler(model, waiting_line=0, thinking_budget=budget)
    sampling = Sampling(**{key: asked.pop(key) for key in ("max_tokens", "stop", "logprobs") if key in asked})
    ask = frames.Generate(id=1, messages=(Message("user", "Why?"),), sampling=sampling, thinking=thinking, **asked)
    scheduler.submit(ask)
    pieces, ended = [], []
    while not ended:
        step = scheduler.step()
        pieces += step.pieces
        ended += step.ended
    (end,) = ended
    assert all(piece.text or piece.thought for piece in pieces)
    text = "".join(piece.text for piece in pieces) + end.text
    tokens = [token for one in (*pieces, end) for token in one.tokens]
    assert b"".join(token.text_bytes for token in tokens).decode().startswith(text)
    assert end.failure or end.thought_tokens + len(tokens) <= end.output_tokens
    return "".join(piece.thought for piece in pieces) + end.thought, text, end


def test_thoughts_that_the_prompt_opens():
    thought, text, end = run(Model("  A cat. \n</think>\n\nMeow"))
    assert (thought, text, end.finish_reason) == ("A cat.", "Meow", "stop")
    assert (end.thought_tokens, end.output_tokens) == (
        len("  A cat. \n</think>\n\n"),
        len("  A cat. \n</think>\n\nMeow"),
    )


def test_thoughts_that_the_model_opens():
    assert run(Model("\n<think>\nHm é</think>Meow", prompt="Why?"))[:2] == ("Hm é", "Meow")


@pytest.mark.parametrize("line", ["<thin air>", "<", " <think", "no <think>thoughts</think>", "x"])
def test_an_answer_without_thoughts_is_whole(line):
    thought, text, end = run(Model(line, prompt="Why?"))
    assert (thought, text, end.thought_tokens) == ("", line, 0)


def test_an_answer_cut_where_a_mark_might_begin_is_whole():
    assert run(Model("<thin air>", prompt="Why?"), max_tokens=3)[1] == "<th"


def test_a_budget_ends_thoughts_and_the_answer_goes_on():
    thought, text, end = run(Model("thinking without end and on and on", "x</think>\n\nMeow"), budget=8)
    assert (thought, text, end.finish_reason) == ("thinking", "Meow", "stop")
    assert end.thought_tokens == 8 + len("\n</think>\n\n")


def test_an_end_inside_of_thoughts_ends_only_them():
    assert run(Model("I know", "x</think>\n\nMeow"))[:2] == ("I know", "Meow")


def test_the_budget_of_a_request_goes_first():
    lines = ("thinking without end and on and on", "x</think>\n\nMeow")
    assert run(Model(*lines), budget=30, thinking=Thinking(enabled=True, budget_tokens=5))[0] == "think"
    assert run(Model(*lines), budget=8, thinking=Thinking(enabled=True))[0] == "thinking"
    assert run(Model(*lines), budget=0, thinking=Thinking(enabled=True))[0] == lines[0]


@pytest.mark.parametrize(("budget", "thinking", "told"), [
    (9, None, True), (0, None, False), (9, Thinking(enabled=False), False), (0, Thinking(enabled=True), True),
    (9, Thinking(enabled=False, budget_tokens=0), False), (0, Thinking(enabled=True, budget_tokens=3), True),
])  # fmt: skip
def test_the_template_is_told_whether_to_think(budget, thinking, told):
    model = Model("Meow", prompt="Why?")
    assert run(model, budget=budget, thinking=thinking)[1] == "Meow"
    assert model.asked_to_think is told


def test_thoughts_of_a_model_that_should_have_none_are_ended_at_once():
    thought, text, _ = run(Model("<think>going on", "x</think>Meow", prompt="Why?"), budget=0)
    assert (thought, text) == ("", "Meow")


def test_a_format_holds_for_the_answer_only():
    thought, text, end = run(Model("It is so.</think>\n\nno way"), response_format=CHOICE)
    assert (thought, text, end.finish_reason, end.incomplete) == ("It is so.", "no", "stop", False)
    thought, text, end = run(Model("on and on and on", "x</think>\n\nno"), response_format=CHOICE, budget=5)
    assert (thought, text, end.incomplete) == ("on an", "no", False)


def test_a_format_waits_for_thoughts_only_where_the_model_can_be_told_to_think():
    switchable = ThinkingMarks(switchable=True)
    line = "<think>\nIt is so.</think>no"
    assert run(Model(line, prompt="Why?", thinking=switchable), response_format=CHOICE)[:2] == ("It is so.", "no")
    assert run(Model(line, prompt="Why?", thinking=switchable), response_format=CHOICE, budget=0)[0] == ""
    assert run(Model(line, prompt="Why?"), response_format=CHOICE)[0] == ""


def test_an_answer_cut_inside_of_thoughts_has_no_text_and_breaks_its_format():
    thought, text, end = run(Model("It is so, I think"), response_format=CHOICE, max_tokens=5)
    assert (thought, text, end.finish_reason, end.incomplete) == ("It is", "", "length", True)
    assert (end.output_tokens, end.thought_tokens, end.tokens) == (5, 5, ())


def test_stop_strings_are_looked_for_in_the_answer():
    assert run(Model("a stop b</think>\n\nMeow stop"), stop=("stop",))[:2] == ("a stop b", "Meow ")


def test_a_model_without_thoughts_refuses_to_think_and_names_the_parameter():
    wish = Thinking(enabled=True, param="thinking_budget_tokens")
    _, _, end = run(Model("Meow", thinking=None, prompt="Why?"), thinking=wish)
    assert (end.failure.kind, end.failure.param) == (FailureKind.REJECTED, "thinking_budget_tokens")
    assert run(Model("Meow", thinking=None, prompt="Why?"), thinking=Thinking(enabled=False))[1] == "Meow"


def test_a_text_to_continue_is_not_looked_into():
    model = Model("<think>x</think>y", prompt="Why?")
    assert run(model, prompt="Why?")[:2] == ("", "<think>x</think>y")
