# ruff: noqa: E501 - templates stand on the lines they ship with
"""Text against Transformers: tokens of the demo model, and chat templates byte for byte."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from octavo.client.arguments import as_messages
from octavo.errors import RequestError
from octavo.modelfiles.files import ModelFiles
from octavo.text.parts import byte_alphabet
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Message

TOUGH = [
    "",
    " ",
    "\n\n\n   \t\t x",
    "Hello, World!  It's   2024-05-06 and I'M 1234567 years old; isn't it?",
    "def f(x):\n    if x>1:\n\t\treturn x**2  # ok\r\n\r\n",
    "日本語テキスト、한국어 العربية हिन्दी ไทย עברית",
    "😀👩‍👩‍👧‍👦🇩🇪 ¼½²³ ①② ٣٤٥ Ⅷ",
    "café caf\u0065\u0301 \u00a0\u2003\u200b\ufeff",
    "<|im_start|>user\n<|im_end|> <|endoftext|><repo_name>",
    "a" * 300 + " " * 100 + "1" * 100,
    "\x00\x01\x7f\x85",
]


@pytest.fixture(scope="module")
def demo(demo_gguf: Path) -> tuple[Tokenizer, ChatTemplate, Any]:
    files = ModelFiles("demo", demo_gguf)
    tokenizer = Tokenizer.load(files)
    oracle = AutoTokenizer.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name)
    # Transformers does not know this file's pre-tokenizer, "smollm": put in that of the model's own tokenizer.json.
    oracle.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer, ChatTemplate.load(files, tokenizer), oracle


@pytest.mark.parametrize("text", TOUGH)
def test_demo_tokens_of_tough_texts(demo: tuple[Tokenizer, ChatTemplate, Any], text: str) -> None:
    tokenizer, _, oracle = demo
    assert tokenizer.encode(text, parse_special=True) == oracle.encode(text)
    assert tokenizer.encode(text) == oracle.encode(text, split_special_tokens=True)
    ids = oracle.encode(text)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet="aZ 1\n'.<|>_é日😀", max_size=40))
def test_demo_tokens_of_any_text(demo: tuple[Tokenizer, ChatTemplate, Any], text: str) -> None:
    tokenizer, _, oracle = demo
    assert tokenizer.encode(text, parse_special=True) == oracle.encode(text)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=20), skip=st.booleans())
def test_demo_text_of_any_tokens(demo: tuple[Tokenizer, ChatTemplate, Any], ids: list[int], skip: bool) -> None:
    tokenizer, _, oracle = demo
    assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)


def test_demo_chat(demo: tuple[Tokenizer, ChatTemplate, Any]) -> None:
    _, template, oracle = demo
    for messages in (
        [("user", "Hi 😀")],
        [("system", "Be\nkind. "), ("user", "a"), ("assistant", " b "), ("user", "c")],
    ):
        plain = [{"role": role, "content": content} for role, content in messages]
        ours = [Message(role, content) for role, content in messages]
        for prompt in (True, False):
            expected = oracle.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
            assert template.render(ours, add_generation_prompt=prompt) == expected
            ids = oracle.apply_chat_template(plain, add_generation_prompt=prompt, return_dict=False)
            assert template.encode(ours, add_generation_prompt=prompt) == ids


# Templates in the manner of several families; each uses what its family's templates use.
TEMPLATES = {
    "chatml": """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif %}
{%- if system is defined %}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{% endif %}
{%- for m in rest %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content | trim) ~ '<|im_end|>' }}
  {%- if not loop.last %}{{ '\\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "blocks": """
{% for m in messages %}
    {% if m['role'] == 'user' %}
User: {{ m['content'] }}
    {% elif m['role'] == 'assistant' %}
Assistant: {{ m['content'].strip() }}{{ eos_token }}
    {% else %}
{{ m['role'] | upper }}: {{ m['content'] | replace('\\n', '\\n  ') | indent(2) }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}

""",
    "alternating": """{{ bos_token }}{% for message in messages %}
{%- if message['role'] not in ['user', 'assistant', 'system', 'tool'] %}{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}
{%- if loop.first and message['role'] == 'assistant' %}{{ raise_exception('The first message must not be the assistant\\'s') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}""",
    "tools": """{%- set ns = namespace(tools=false, last=-1) -%}
{%- if tools is not none and tools %}{%- set ns.tools = true %}
# Tools
{% for tool in tools -%}
{{ tool | tojson(indent=4) }}
{{ tool.function.name }}: {% for name, p in tool.function.parameters.properties.items() | sort(reverse=true) %}{{ name }}={{ p.type | default('any') }}{{ ', ' if not loop.last }}{% endfor %}

{%- endfor %}{% endif -%}
{%- for m in messages[::-1] %}{% if m.role == 'user' and ns.last < 0 %}{% set ns.last = (messages | length - 1) - loop.index0 %}{% break %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif -%}
<{{ m.role }}{{ ' last' if loop.index0 == ns.last }}>{{ m | tojson }}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}|{% endfor %}{% endif %}
{%- if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function.arguments | tojson(separators=(',', ':'), sort_keys=true) }}{% endfor %}{% endif %}
{% endfor %}""",
    "macros": """{% macro turn(role, text='') -%}
<|start|>{{ role | title }}: {{ text }}{{ caller() if caller }}<|end|>
{%- endmacro -%}
{% set head %}{{ strftime_now('%d %b %Y') }} {{ custom | default('none', true) }}{% endset -%}
{{ head }}
{% for m in messages -%}
{{ turn(m.role, m.content[:20]) }}{{ loop.cycle('a', 'b') }}{{ m.content.split(' ')[-1] }}
{% generation %}{{ '%s/%d' % (m.role, loop.index) }}{% endgeneration %}
{% call turn('x') %}{{ loop.length }}{% endcall %}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{{ dict(a=1, **{'b': [1.5, none, true]}) }} {{ {'é<>&"': "'"} | tojson }} {{ 7 // 2 ** 2 }} {{ [1, 2] + [3] }}
{{ (messages | first).get('name', 'nobody') }} {{ 'a' in messages[0].content }} {{ range(3) | join(',') }}""",
    "thinking": """{% for m in messages %}
{%- set content = m.content %}
{%- if m.role == 'assistant' and '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if m.reasoning_content is defined %}[{{ m.reasoning_content }}|{{ m.thinking }}]{% endif %}
{{- '\\n' if not loop.first }}{{ m.role }}: {{ content -}}
{% endfor %}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}""",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Wetter für <Ort> & 'Zeit'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {}}},
        },
    }
]
CALL = [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "b": 1}}}]
CHATS: list[list[Message]] = [
    [Message("user", "Hi")],
    [Message("system", "Line 1\n Line 2 "), Message("user", "  What a day & <b>?\n"), Message("assistant", " Fine. ")],
    [
        Message("user", "x", name="Zoë"),
        Message("assistant", None, tool_calls=CALL),
        Message("tool", "18°", tool_call_id="1"),
    ],
    [Message("user", "q"), Message("assistant", "<think>a</think>\n\nb", reasoning_content="a"), Message("user", "r")],
    [Message("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])],
    [Message("wizard", "abracadabra")],
    [Message("assistant", "first")],
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(byte_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>"])
    folder = tmp_path_factory.mktemp("tiny")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    tokenizer = Tokenizer.load(ModelFiles("tiny", folder))
    return tokenizer, PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def plain(message: Message) -> dict[str, Any]:
    names = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
    return {name: getattr(message, name) for name in names if getattr(message, name) is not None}


def both(pair: tuple[Tokenizer, Any], source: str, chat: list[Message], **options: Any) -> tuple[str, str]:
    """(ours, Transformers') rendering; an error is its class of outcome, since the words differ."""
    tokenizer, oracle = pair
    try:
        ours = ChatTemplate({"default": source}, tokenizer).render(chat, **options)
    except RequestError:
        ours = "refused"
    try:
        theirs = oracle.apply_chat_template([plain(m) for m in chat], chat_template=source, tokenize=False, **options)
    except Exception:
        theirs = "refused"
    return ours, theirs


@pytest.mark.parametrize("chat", range(len(CHATS)))
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_byte_for_byte(pair: tuple[Tokenizer, Any], name: str, chat: int) -> None:
    messages = CHATS[chat]
    if chat == 4 and name != "tools":
        # Transformers passes lists of parts on to templates that want strings; ours joins them
        messages = [Message("user", "one two")]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS, "custom": "é", "enable_thinking": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        before = datetime.now().date()
        ours, theirs = both(pair, TEMPLATES[name], messages, **options)
        if before == datetime.now().date():
            assert ours == theirs


# What templates do with contents that may be parts, and with keys that only some messages have.
MESSAGE_TEMPLATES = {
    "macro": """{% macro show(m) %}{% set c = m.get('content') %}{% if c is string %}{{ c }}{% elif c is not none %}
{%- for part in c %}{% if part.type == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endmacro %}
{%- for m in messages %}[{{ m.role }}]{{ show(m) }}{% endfor %}""",
    "argument": """{%- macro show(content) %}{% if content is string %}{{ content }}{% else %}{% for item in content %}
{%- if 'text' in item %}{{ item.text }}{{ '|' if not loop.last }}{% endif %}{% endfor %}{% endif %}{% endmacro %}
{%- for m in messages %}{% set content = show(m.content) | trim %}{{ m.role ~ ':' ~ content }};{% endfor %}""",
    "whole": "{% for m in messages %}{{ m | tojson }}{% for k, v in m.items() %} {{ k }}{% endfor %}{% endfor %}",
    "keys": """{% for m in messages %}{% if m.tool_plan is defined %}<plan>{{ m.tool_plan }}</plan>{% endif -%}
{{ m.thinking | default('-') }}{{ m['reasoning_content'] if m['reasoning_content'] is defined else '?' -}}
{% if m.prefix %}<prefix>{% endif %}{{ m.name is defined }}{{ m.audio is defined }}{% endfor %}""",
}
TWO = [{"type": "text", "text": "one"}, {"type": "text", "text": " two "}]
MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": TWO}],
    [{"role": "system", "content": TWO}, {"role": "user", "content": "q"}, {"role": "assistant", "content": TWO}],
    [{"content": "c", "zeta": [1, None, {"b": 1.5}], "role": "user", "name": None, "audio": None, "prefix": True}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "thinking": "t", "tool_plan": "p", "content": "a"}],
    [{"role": "assistant", "reasoning": "r", "content": "a"}, {"role": "user", "name": "n", "content": "q"}],
    [{"role": "assistant", "content": "a", "reasoning_content": "", "thinking": "t"}],
    [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
]


@pytest.mark.parametrize("chat", range(len(MESSAGES)))
@pytest.mark.parametrize("name", MESSAGE_TEMPLATES)
def test_messages_as_they_were_written(pair: tuple[Tokenizer, Any], name: str, chat: int) -> None:
    tokenizer, oracle = pair
    source, given = MESSAGE_TEMPLATES[name], MESSAGES[chat]
    if name == "whole" and any(isinstance(message["content"], list) for message in given):
        pytest.skip("a template that prints parts as JSON is not given them")
    ours = ChatTemplate({"default": source}, tokenizer).render(as_messages(given), add_generation_prompt=True)
    theirs = oracle.apply_chat_template(given, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(
    chat=st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=12)),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(["chatml", "blocks", "alternating", "tools", "thinking"]),
    prompt=st.booleans(),
    go_on=st.booleans(),
)
def test_templates_with_any_content(
    pair: tuple[Tokenizer, Any], chat: list[Message], name: str, prompt: bool, go_on: bool
) -> None:
    options = {"add_generation_prompt": prompt, "continue_final_message": go_on}
    ours, theirs = both(pair, TEMPLATES[name], chat, **options)
    assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["<s>", "<|im_end|>", "<|im_start|>", "</s>", "\n", "hi", " "]), max_size=6))
def test_control_tokens_come_only_from_the_template(pair: tuple[Tokenizer, Any], parts: list[str]) -> None:
    tokenizer, oracle = pair
    content = "".join(parts)
    template = ChatTemplate({"default": TEMPLATES["chatml"]}, tokenizer)
    hostile = [Message("system", content), Message("user", content, name=content)]
    ids = template.encode(hostile, add_generation_prompt=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == template.render(hostile, add_generation_prompt=True)
    controls = [tokenizer.token_text(i) for i in ids if i in tokenizer.special_ids]
    assert controls == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]
    tame = [Message("user", content.replace("<", "("))]
    expected = oracle.apply_chat_template(
        [plain(m) for m in tame], chat_template=TEMPLATES["chatml"], add_generation_prompt=True, return_dict=False
    )
    assert template.encode(tame, add_generation_prompt=True) == expected
