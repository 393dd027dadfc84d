import pytest

from agent.engine import chat_template
from agent.engine.chat_template import ChatTemplate
from agent.engine.runtime import PromptRejected
from agent.structure import ToolCall, ToolChoice, ToolFunction, Tools
from agent.types import Message

HELLO = [Message("user", "hello there")]


def render(source, messages=HELLO, system_prompt=None, tools=None):
    return ChatTemplate(source, bos="<s>", eos="</s>", system_prompt=system_prompt).render(messages, tools)


def test_templates_see_what_those_of_the_field_expect():
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}{% if tools %}never{% endif %}"
    )
    assert render(source) == "<s>[user] hello there[assistant]"


def test_the_system_prompt_is_for_messages_that_have_none():
    source = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    assert render(source, system_prompt="Be brief") == "system=Be brief;user=hello there;"
    own = [Message("system", "Mine"), *HELLO]
    assert render(source, own, system_prompt="Be brief") == "system=Mine;user=hello there;"
    assert render(source, system_prompt="") == "user=hello there;"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate: ' + messages[0].content) }}",
        "{{ messages[5].content.nothing }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 99999999 }}",
        "{% for i in range(99999999) %}a{% endfor %}",
    ],
)
def test_what_a_template_must_not_do_is_refused_without_quoting_the_text(source):
    with pytest.raises(PromptRejected) as caught:
        render(source)
    assert "hello" not in str(caught.value)


def test_a_template_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "RENDER_LIMIT_S", 0.05)
    with pytest.raises(PromptRejected, match="took more than"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_a_template_that_writes_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "OUTPUT_SLACK_CHARS", 1000)
    with pytest.raises(PromptRejected, match="too much text"):
        render("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")


def test_a_source_that_is_no_template_is_refused():
    with pytest.raises(PromptRejected, match="not valid"):
        render("{% for %}")


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
KNOWING = (
    "{% for t in tools or [] %}({{ t.function.name }}){% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}:{{ c.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}"
)
TOOLS = Tools(functions=(ToolFunction(name="now", description="The time"),))
HISTORY = [
    *HELLO,
    Message("assistant", "", tool_calls=(ToolCall(id="c1", name="now", arguments='{"zone": "UTC"}'),)),
    Message("tool", "noon", tool_call_id="c1"),
    Message("tool", "really", tool_call_id="c1"),
]


def test_a_template_that_knows_tools_shows_them_in_its_own_way():
    expected = '(now)[user]hello there[assistant]<tool_call>now:{"zone": "UTC"}[tool]noon[tool]really'
    assert render(KNOWING, HISTORY, tools=TOOLS) == expected


def test_for_any_other_template_they_are_described_in_a_system_message():
    text = render(PLAIN, HISTORY, tools=TOOLS)
    system, _, rest = text.removeprefix("[system]").partition("[user]")
    assert '{"type": "function", "function": {"name": "now", "description": "The time", "parameters":' in system
    assert "<tool_call>" in system
    assert rest == (
        'hello there[assistant]<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
        "[user]<tool_response>\nnoon\n</tool_response>\n<tool_response>\nreally\n</tool_response>"
    )


def test_the_description_joins_the_system_message_that_is_there():
    text = render(PLAIN, [Message("system", "Be brief."), *HELLO], tools=TOOLS)
    assert text.startswith("[system]Be brief.\n\nYou can call functions.")
    assert text.count("[system]") == 1


def test_tools_that_may_not_be_called_are_not_shown():
    none = Tools(functions=TOOLS.functions, choice=ToolChoice.NONE)
    assert render(PLAIN, tools=none) == render(KNOWING, tools=none) == "[user]hello there"
