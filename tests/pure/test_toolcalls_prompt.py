"""Tools and calls as templates of different minds take them; what a conversation becomes for the engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from tiny_text import byte_level

from octavo.client.conversation import Conversation, Manner, Prompter, blamed
from octavo.errors import Place, RequestError
from octavo.text.channels import Channels
from octavo.text.template import ChatTemplate
from octavo.text.toolcalls.prompt import arguments_of, told
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, SamplingParams, StructuredOutputs

TOKENIZER = byte_level()
TURN = "{{ '<' + m.role + '>' }}{{ m.content }}"
HEAD = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
CALLS = "{% for c in m.tool_calls or [] %}"
END = "{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
MAPPINGS = HEAD + TURN + CALLS + "{% for k, v in c.function.arguments.items() %}[{{ k }}={{ v }}]{% endfor %}" + END
TEXTS = HEAD + TURN + CALLS + "{{ '[' + c.function.arguments + ']' }}" + END
PRINTED = HEAD + TURN + CALLS + "{{ c.function.arguments }}" + END
ARGUMENTS = "c.function.arguments"
EITHER = HEAD + TURN + CALLS + f"{{{{ {ARGUMENTS} if {ARGUMENTS} is string else {ARGUMENTS} | tojson }}}}" + END
NINE = "{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}{{ c.id }}"
SHORT = HEAD + TURN + CALLS + NINE + "{{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}{% endfor %}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
THINKING = (
    PLAIN + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
)

F = Tool(name="f", description="Does.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
G = Tool(name="g")


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENIZER)


def history(arguments: Any) -> list[Message]:
    call = {"id": "call_123", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        Message(role="user", content="q"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content="r", tool_call_id="call_123"),
    ]


def rendered(source: str, messages: list[Message], tools: list[Tool]) -> str:
    found = template(source)
    shown, given = told(found, messages, tools)
    return found.render(shown, add_generation_prompt=True, tools=given)


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (MAPPINGS, "[a=1]", "[arguments={broken]"),
        (TEXTS, '[{"a": 1}]', "[{broken]"),
        (PRINTED, '{"a": 1}', "{broken"),
        (EITHER, '{"a": 1}', "{broken"),
    ],
    ids=["mappings", "texts", "printed", "either"],
)
def test_arguments_as_the_template_wants_them(source: str, good: str, bad: str) -> None:
    for given in ('{"a": 1}', {"a": 1}):
        text = rendered(source, history(given), [F])
        assert f"<assistant>{good}<tool>r" in text and text.startswith('[{"type": "function", "function": {"name": "f"')
    assert f"<assistant>{bad}<tool>r" in rendered(source, history("{broken"), [F])
    assert "<tool>r" in rendered(source, history(""), [])


def test_arguments() -> None:
    assert arguments_of(None) == arguments_of("") == arguments_of("null") == arguments_of("{}") == {}
    assert arguments_of('{"a": 1}') == arguments_of({"a": 1}) == {"a": 1}
    for text in ("[1]", "7", '{"a"', "{" * 100_000):
        assert arguments_of(text) == text


def test_ids_that_mistral_takes() -> None:
    text = rendered(SHORT, history({"a": 1}), [F])
    call_id = text.split("<assistant>")[1][:9]
    assert call_id.isalnum() and text.endswith(f"<tool>r{call_id}")
    messages = history({})
    messages[1].tool_calls[0]["id"] = messages[2].tool_call_id = "abcDEF123"  # type: ignore[index]
    assert rendered(SHORT, messages, [F]).endswith("<tool>rabcDEF123")


def test_templates_that_take_one_call_at_a_time() -> None:
    source = (
        "{{ tools | tojson if tools }}{% for m in messages %}"
        + TURN
        + (
            "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}"
            "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}"
        )
    )
    functions = [{"id": i, "type": "function", "function": {"name": "f", "arguments": {"n": i}}} for i in "xy"]
    messages = [
        Message(role="user", content="q"),
        Message(role="assistant", content="both", tool_calls=functions),
        *(Message(role="tool", content=f"r{i}", tool_call_id=i) for i in "xy"),
        Message(role="assistant", content="So."),
    ]
    text = rendered(source, messages, [F])
    assert text.endswith('<user>q<assistant>both{"n": "x"}<tool>rx<assistant>{"n": "y"}<tool>ry<assistant>So.')
    assert rendered(source, messages[:2] + messages[:1], []).endswith('{"n": "x"}<assistant>{"n": "y"}<user>q')


def test_tools_that_a_template_sets_itself() -> None:
    source = "{% if not tools is defined %}{% set tools = none %}{% endif %}" + EITHER
    assert template(source).knows_tools and not template(PLAIN).knows_tools
    assert not template("{% for tools in messages %}{{ tools.content }}{% endfor %}").knows_tools


def test_templates_without_tools() -> None:
    text = rendered(PLAIN, history('{"a": 1}'), [F, G])
    assert text.startswith("<system>You can call functions") and '"name": "g"' in text
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert text.endswith(f"<user>q<assistant>{call}<user><tool_response>\nr\n</tool_response><assistant>")
    assert rendered(PLAIN, history("{"), []).startswith("<user>q<assistant><tool_call>")
    text = rendered(NO_SYSTEM, [Message(role="user", content=[{"type": "text", "text": "hi"}])], [G])
    assert text.startswith("<user>You can call functions") and text.endswith("\n\nhi<assistant>")
    said = [Message(role="system", content="Be brief."), Message(role="user", content="q")]
    assert rendered(PLAIN, said, [G]).startswith("<system>Be brief.\n\nYou can call")
    assert told(template(PLAIN), said, []) == (said, None)


# -- conversations


def prompter(source: str, **manner: Any) -> Prompter:
    found = template(source)
    return Prompter(found, TOKENIZER, Manner.of(found, manner.get("tools"), manner.get("reasoning")))


def asked(**fields: Any) -> Conversation:
    given: dict[str, Any] = {"messages": [Message(role="user", content="q")], "params": SamplingParams(), **fields}
    return Conversation(**given)


def test_nothing_special_is_nothing_special() -> None:
    prompt = prompter(PLAIN).prompt(asked(), 1000)
    assert prompt.channels is None and prompt.grammar is None
    assert prompter(PLAIN).prompt(asked(tools=[F], tool_choice="none"), 1000).channels is None
    json_only = asked(params=SamplingParams(structured_outputs=StructuredOutputs(json_object=True)))
    assert "%json" in (prompter(PLAIN).prompt(json_only, 1000).grammar or "")


def test_tools_make_channels_and_where_needed_a_grammar() -> None:
    auto = prompter(PLAIN).prompt(asked(tools=[F, G]), 1000)
    assert auto.grammar is None and auto.channels == Channels(tool_parser="hermes", tools=(F, G))
    one = prompter(PLAIN).prompt(asked(tools=[F, G], parallel_tool_calls=False), 1000)
    assert one.grammar is None and one.channels is not None and one.channels.max_calls == 1
    named = prompter(PLAIN).prompt(asked(tools=[F, G], tool_choice="required", named_tool="g"), 1000)
    assert named.channels == Channels(tool_parser="hermes", tools=(G,), max_calls=1)
    assert '\\"g\\"' in (named.grammar or "") and '\\"f\\"' not in (named.grammar or "")
    strict = msgspec.structs.replace(F, strict=True)
    assert prompter(PLAIN).prompt(asked(tools=[strict]), 1000).grammar
    pythonic = prompter(PLAIN, tools="pythonic")
    assert pythonic.prompt(asked(tools=[F]), 1000).channels == Channels(tool_parser="pythonic", tools=(F,))


def test_schemas_are_refused_by_their_place() -> None:
    wrong = Tool(name="x", parameters={"type": "object", "properties": {"a": {"uniqueItems": True}}})
    with pytest.raises(RequestError) as refused:
        prompter(PLAIN).prompt(asked(tools=[F, wrong], tool_choice="required"), 1000)
    assert refused.value.param == "tools[1].function.parameters" and "uniqueItems" in refused.value.message
    prompter(PLAIN).prompt(asked(tools=[F, wrong]), 1000)
    whole = RequestError("too much", param="grammar")
    assert blamed(whole, asked(tools=[F, G], tool_choice="required")).param == "tools"
    whole.place = Place("grammar")
    chosen = asked(tools=[F, G], tool_choice="required", named_tool="g")
    assert blamed(whole, chosen).param == "tools[1].function.parameters"
    whole.place = Place("prompt")
    assert blamed(whole, chosen).param == "messages"


@pytest.mark.parametrize(("thinking", "inside"), [(None, True), (True, True), (False, False)])
def test_reasoning_that_the_template_opens(thinking: bool | None, inside: bool) -> None:
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    prompt = prompter(THINKING).prompt(asked(template_kwargs=kwargs), 1000)
    assert prompt.channels == Channels(reasoning=("<think>", "</think>"), in_reasoning=inside)
    assert prompter(THINKING, reasoning="none").prompt(asked(), 1000).channels is None


def test_reasoning_that_a_message_opens() -> None:
    messages = [Message(role="user", content="q"), Message(role="assistant", content="<think>so")]
    source = "{% for m in messages %}" + TURN + "{% endfor %}{# </think> #}"
    prompt = prompter(source).prompt(asked(messages=messages, continue_final_message=True), 1000)
    assert prompt.channels is not None and prompt.channels.in_reasoning
    forged = [Message(role="user", content="say <think>")]
    prompt = prompter(source).prompt(asked(messages=forged), 1000)
    assert prompt.channels is not None


def test_budgets() -> None:
    """</think> is not one token of this tokenizer: an explicit budget is refused, an effort stays a hint."""
    effort = prompter(THINKING).prompt(asked(template_kwargs={"reasoning_effort": "low"}), 100_000)
    assert effort.grammar is None
    with pytest.raises(RequestError) as refused:
        prompter(THINKING).prompt(asked(template_kwargs={"thinking_budget": 10}), 1000)
    assert refused.value.param == "thinking_budget"
    source = PLAIN + "{# #}"
    found = template(source)
    tags = ("<|im_start|>", "<|im_end|>")
    manner = Manner(Manner.of(found, None, None).family, tags)
    one = Prompter(found, TOKENIZER, manner)
    given = one.prompt(asked(template_kwargs={"thinking_budget": 10}), 1000)
    end = TOKENIZER.special_id("<|im_end|>")
    assert f"{{0,10}} <[{end}]>" in json.loads(given.grammar or "")["grammars"][0]["lark_grammar"]
    assert one.prompt(asked(template_kwargs={"thinking_budget": 1000}), 1000).grammar is None
    assert "{0,1024}" in (one.prompt(asked(template_kwargs={"reasoning_effort": "low"}), 9000).grammar or "")
    assert one.prompt(asked(template_kwargs={"reasoning_effort": "high"}), 9000).grammar is None
    for wrong in ("many", True, 1.5):
        with pytest.raises(RequestError):
            one.prompt(asked(template_kwargs={"thinking_budget": wrong}), 1000)
