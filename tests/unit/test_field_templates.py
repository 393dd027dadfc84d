"""Templates in the shapes that well-known models have, and what a hostile one could try on the memory."""

import re
import resource

import pytest

from agent.engine.chat_template import ChatTemplate
from agent.engine.runtime import PromptRejected
from agent.types import Message

TALK = [Message("user", "Hi"), Message("assistant", "<think>\nold\n</think>\n\nHello"), Message("user", "Why?")]
SYSTEM = [Message("system", "Be brief."), *TALK]

QWEN3 = """
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
  {%- if message.role == "user" and ns.last == messages|length - 1 %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
  {%- elif message.role == 'assistant' %}
    {%- set content = message.content %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}{%- set thought = message.reasoning_content %}
    {%- elif '</think>' in message.content %}{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
    {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}
{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


def template(source):
    return ChatTemplate(source, bos="<s>", eos="</s>", system_prompt=None)


def test_qwen3_thinks_when_it_is_told_to():
    found = template(QWEN3)
    assert (found.thinking.open, found.thinking.switchable) == ("<think>", True)
    thoughtful = found.render(SYSTEM, thinking=True)
    assert thoughtful.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert "old" not in thoughtful
    assert found.render(SYSTEM) == thoughtful + "<think>\n\n</think>\n\n"


def test_thoughts_that_a_template_always_opens_are_closed_where_none_are_wanted():
    found = template(R1)
    assert found.thinking.switchable is False
    assert found.render(TALK, thinking=True).endswith("<|Assistant|><think>\n")
    assert found.render(TALK).endswith("<|Assistant|><think>\n\n</think>\n\n")


def test_gemma_gets_the_system_text_with_the_first_message_of_the_user():
    text = template(GEMMA).render(SYSTEM)
    assert text.startswith("<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n")
    assert text.endswith("<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n")
    assert template(GEMMA).thinking is None
    with pytest.raises(PromptRejected, match="TemplateError"):
        template(GEMMA).render([*TALK, Message("user", "twice")])


def test_a_system_text_that_a_template_drops_without_a_word_goes_to_the_user_too():
    silent = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert template(silent).render([Message("system", "Be brief."), Message("user", "Hi")]) == "[user]Be brief.\n\nHi"
    assert template(silent).render([Message("user", "Hi"), Message("system", "Stop.")]) == "[user]Hi[user]Stop."


def test_llama_knows_the_date_and_indents_json():
    text = template(LLAMA).render(SYSTEM)
    assert re.match(
        r"<s><\|start_header_id\|>system<\|end_header_id\|>\n\nToday Date: \d\d \w{3} \d{4}\n\nBe brief\.<", text
    )
    assert text.endswith("Why?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_marks_for_training_leave_their_content():
    source = "{% for m in messages %}{% generation %}{{ m.content }};{% endgeneration %}{% endfor %}"
    assert template(source).render([Message("user", "Hi")]) == "Hi;"
    assert (
        template("{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}").render(TALK)
        == '{"a":1,"b":"é"}'
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'a'.ljust(99999999999) }}",
        "{{ '{:>99999999999}'.format('a') }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ 'a' | center(99999999999) }}",
        "{{ 'a\nb' | indent(99999999999) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ nothing_of_that_name(1) }}",
    ],
)
def test_memory_is_bounded(source):
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(PromptRejected):
        template(source).render(TALK)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
