"""Structured output of models that reason: with the reasoning switched off, closed or left behind, it is bound from its
first token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_text import byte_level

from octavo.client.conversation import Conversation, Manner, Prompter
from octavo.text.template import ChatTemplate
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, SamplingParams, StructuredOutputs

TOKENIZER = byte_level()
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{# <think></think> #}"
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"
CLOSES = TURNS + ASKS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OPENS = TURNS + ASKS + "<think>\n"
CHOICE = SamplingParams(structured_outputs=StructuredOutputs(choice=["yes"]))
OFF: list[dict[str, Any]] = [{"enable_thinking": False}, {"thinking": False}, {"reasoning_effort": "none"}]


def prompter(source: str, tags: tuple[str, str] | None = None) -> Prompter:
    template = ChatTemplate({"default": source}, TOKENIZER)
    manner = Manner.of(template, None, None)
    return Prompter(template, TOKENIZER, manner if tags is None else Manner(manner.family, tags))


def grammar(source: str, tags: tuple[str, str] | None = None, **fields: Any) -> str:
    given: dict[str, Any] = {"messages": [Message("user", "q")], "params": CHOICE, **fields}
    return prompter(source, tags).prompt(Conversation(**given), 1000).grammar or ""


BOUND = grammar(TURNS.split("{#")[0] + ASKS)
"""The grammar of a model that does not reason."""


def test_a_model_may_reason_first_where_nobody_said_otherwise() -> None:
    for source in (TURNS + ASKS, OPENS):
        found = grammar(source)
        assert found != BOUND and "</think>" in found


@pytest.mark.parametrize("kwargs", OFF)
@pytest.mark.parametrize(
    "source", [CLOSES, TURNS + ASKS], ids=["closed by the template", "the template knows no switch"]
)
def test_switched_off_means_no_reasoning(source: str, kwargs: dict[str, Any]) -> None:
    assert grammar(source, template_kwargs=kwargs) == BOUND
    assert grammar(source, template_kwargs={**kwargs, "thinking_budget": 10}, tags=("<think>", "<|im_end|>")) == BOUND


def test_a_prompt_that_has_closed_the_reasoning_leaves_no_second_one() -> None:
    assert grammar(TURNS + ASKS + "<think>\n\n</think>\n\n") == BOUND
    done = [Message("user", "q"), Message("assistant", "<think>a</think>")]
    assert grammar(TURNS, messages=done, continue_final_message=True) == BOUND


def test_an_answer_that_goes_on_has_begun() -> None:
    begun = [Message("user", "q"), Message("assistant", "y")]
    assert grammar(TURNS, messages=begun, continue_final_message=True) == BOUND
    thinking = [Message("user", "q"), Message("assistant", "<think>so")]
    assert "</think>" in grammar(TURNS, messages=thinking, continue_final_message=True)
    empty = [Message("user", "q"), Message("assistant", "")]
    assert grammar(TURNS, messages=empty, continue_final_message=True) != BOUND


@pytest.mark.parametrize("kwargs", OFF[:2])
def test_reasoning_that_the_template_opens_all_the_same_is_closed_at_once(kwargs: dict[str, Any]) -> None:
    end = TOKENIZER.special_id("<|im_end|>")
    found = json.loads(grammar(OPENS, ("<think>", "<|im_end|>"), template_kwargs=kwargs))["grammars"]
    assert (
        f"<[{end}]> blank @answer\n" in found[0]["lark_grammar"]
        and "{0," not in found[0]["lark_grammar"].split("\n")[0]
    )
    # Where no token closes it, the model has to: nothing can be kept from it there.
    assert "</think>" in grammar(OPENS, template_kwargs=kwargs)


def test_enforced_calls_too() -> None:
    tool = Tool(name="f", parameters={"type": "object", "properties": {}})
    fields: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "params": SamplingParams()}
    off = grammar(CLOSES, template_kwargs={"enable_thinking": False}, **fields)
    assert off == grammar(TURNS.split("{#")[0] + ASKS, **fields) and "</think>" not in off
    assert "</think>" in grammar(CLOSES, **fields)
