"""Reasoning, content and calls told apart: the splitter by itself, and within the stream of one choice."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import byte_level
from toolcall_cases import CASES, TOOLS, Case, collected

from octavo.client.stream import ChoiceStream
from octavo.errors import ConfigError
from octavo.text.channels import (
    Channels,
    Reasoning,
    Splitter,
    ends_inside,
    joined_calls,
    merged_parts,
    reasoning_by_name,
    reasoning_of_template,
)
from octavo.types import Delta, SamplingParams, TokenLogprobs, ToolCallDelta
from octavo.wire.messages import TokenOutput

THINK = ("<think>", "</think>")


def split(channels: Channels, pieces: list[str], cut: bool = False) -> tuple[str, str, list[tuple[str, str]]]:
    splitter = Splitter(channels)
    parts = [part for piece in pieces for part in splitter.push(piece)]
    parts += splitter.finish(cut)
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    found = collected("".join(pieces), [part for part in parts if not isinstance(part, Reasoning)])
    return reasoning, found.content, found.calls


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "content"),
    [
        ("<think>\nLet me see.\n\nYes.\n</think>\n\nHello!", False, "Let me see.\n\nYes.", "Hello!"),
        ("  \n<think>a</think>b", False, "a", "b"),
        ("Let me see.\n</think>\n\nHello!", True, "Let me see.", "Hello!"),
        ("<think></think>Hello", False, "", "Hello"),
        ("Hello <think>no</think>", False, "", "Hello <think>no</think>"),
        ("<think>endless", False, "endless", ""),
        ("<thin", False, "", "<thin"),
        ("\n\nHello", False, "", "\n\nHello"),
        ("<think>a </thin b</think> c </think> d", False, "a </thin b", "c </think> d"),
        ("", False, "", ""),
        ("\n</think>\n", True, "", ""),
    ],
)
def test_reasoning(text: str, inside: bool, reasoning: str, content: str) -> None:
    channels = Channels(reasoning=THINK, in_reasoning=inside)
    for size in (1, 2, 3, 7, 1000):
        assert split(channels, [text[i : i + size] for i in range(0, len(text), size)]) == (reasoning, content, [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.text[:24]!r}")
def test_calls_after_reasoning(case: Case) -> None:
    channels = Channels(reasoning=THINK, tool_parser=case.family, tools=TOOLS)
    reasoning, content, calls = split(channels, ["<think>Which? <tool_call>f\n{}</think>\n", *case.text])
    assert reasoning == "Which? <tool_call>f\n{}"
    assert content == case.content and [(n, json.loads(a)) for n, a in calls] == case.calls


PARTS = ["<think>", "</think>", "</", "<", "a", " ", "\n", '<tool_call>{"name": "f"}', "</tool_call>", "é"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12), st.lists(st.integers(0, 99)), st.booleans(), st.booleans())
def test_pieces_do_not_matter(parts: list[str], cuts: list[int], inside: bool, with_tools: bool) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    channels = Channels(reasoning=THINK, in_reasoning=inside, tool_parser="hermes" if with_tools else None, tools=TOOLS)
    whole = split(channels, [text])
    assert split(channels, [text[a:b] for a, b in pairwise(places)]) == whole
    if not with_tools and not inside and not text.lstrip().startswith("<think>"):
        assert whole[1] == text


def test_tags_by_name_and_template() -> None:
    assert reasoning_by_name("deepseek_r1") == reasoning_by_name("think") == THINK
    assert reasoning_by_name("none") is None and reasoning_by_name("mistral") == ("[THINK]", "[/THINK]")
    with pytest.raises(ConfigError, match=r"'nonesuch' is not known; there are .*qwen3"):
        reasoning_by_name("nonesuch")
    assert reasoning_of_template("{{ content.split('</think>')[-1] }}") == THINK
    assert reasoning_of_template("{{ messages }}") is None
    assert ends_inside("a<think>b", THINK) and not ends_inside("<think>a</think>b", THINK)


def test_parts_of_calls() -> None:
    parts = [
        ToolCallDelta(index=0, id="a", name="f", arguments="{"),
        ToolCallDelta(index=0, arguments="}"),
        ToolCallDelta(index=1, id="b", name="g"),
        ToolCallDelta(index=1, arguments="{}"),
    ]
    assert [(call.id, call.name, call.arguments) for call in joined_calls(parts)] == [
        ("a", "f", "{}"),
        ("b", "g", "{}"),
    ]
    assert [(p.index, p.id, p.arguments) for p in merged_parts(parts)] == [(0, "a", "{}"), (1, "b", "{}")]
    assert parts[0].arguments == "{"
    assert merged_parts(parts[1:3])[0] == ToolCallDelta(index=0, arguments="}")


# -- in the stream of a choice

BYTES = byte_level()
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def streamed(
    text: str, channels: Channels, *, finish: str = "stop", size: int = 1, **params: Any
) -> tuple[ChoiceStream, Delta]:
    """The choice's stream and all its deltas as one; the text is as the model wrote it, special tokens by name."""
    stream = ChoiceStream(BYTES, SamplingParams(**params), 0, channels)
    ids = BYTES.encode(text, parse_special=True, add_special_tokens=False)
    last = [min(BYTES.eos_ids)] if finish == "stop" else []
    whole = Delta(logprobs=[])
    for start in range(0, len(ids) + 1, size):
        tokens = ids[start : start + size]
        is_end = start + size > len(ids)
        tokens += last if is_end else []
        logprobs = [TokenLogprobs(i, -1.0, []) for i in tokens] if stream._params.logprobs is not None else None
        output = TokenOutput(0, tokens, logprobs)
        if is_end:
            output.finish_reason = finish  # type: ignore[assignment]
            output.stop_reason = last[0] if last else None
        delta = stream.push(output)
        whole.text += delta.text
        whole.reasoning += delta.reasoning
        whole.tool_calls += delta.tool_calls
        whole.logprobs = [*(whole.logprobs or ()), *(delta.logprobs or ())]
        whole.finish_reason = delta.finish_reason or whole.finish_reason
        if stream.finish_reason is not None:
            break
    return stream, whole


BOTH = Channels(reasoning=THINK, tool_parser="hermes", tools=TOOLS)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_choice(size: int) -> None:
    stream, whole = streamed(f"<think>hello</think>\nworld é😀 {CALL}\n{CALL}", BOTH, size=size, logprobs=0)
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("hello", "world é😀", "tool_calls")
    assert [call.arguments for call in joined_calls(whole.tool_calls)] == ['{"a": 1}'] * 2
    assert stream.channelled is not None and stream.channelled.tool_calls == joined_calls(whole.tool_calls)
    assert stream.text == whole.text and stream.channelled.reasoning == whole.reasoning
    assert 5 <= stream.channelled.reasoning_tokens < len(stream.output_ids)
    tokens = b"".join(BYTES.token_bytes(entry.token_id) for entry in whole.logprobs or ())
    assert tokens.decode() == whole.text


def test_stop_strings_are_of_the_content() -> None:
    stream, whole = streamed("<think>a STOP b</think>c STOP d", BOTH, stop="STOP", logprobs=0)
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("a STOP b", "c ", "stop")
    assert stream.stop_reason == "STOP" and stream.stopped_by_text
    _, whole = streamed('<tool_call>{"name": "f", "arguments": {"a": "STOP"}}</tool_call>', BOTH, stop=["STOP"])
    assert whole.finish_reason == "tool_calls" and whole.tool_calls


def test_special_tokens_that_are_tags_are_seen() -> None:
    """`<|im_start|>` and `<|im_end|>` stand for tags here; `<s>` stays hidden, and shows where it is asked for."""
    channels = Channels(reasoning=("<|im_start|>", "<|im_end|>"))
    _, whole = streamed("<|im_start|>a<s>b<|im_end|>c<s>", channels)
    assert (whole.reasoning, whole.text) == ("ab", "c")
    _, whole = streamed("<|im_start|>a<s>b<|im_end|>c<s>", channels, skip_special_tokens=False)
    assert (whole.reasoning, whole.text) == ("a<s>b", "c<s>")


def test_a_limit_leaves_calls_as_they_are() -> None:
    _, whole = streamed('<tool_call>{"name": "f", "arguments": {"a": [1, "x', BOTH, finish="length")
    assert whole.finish_reason == "length" and joined_calls(whole.tool_calls)[0].arguments == '{"a": [1, "x'
    _, whole = streamed('<tool_call>{"name": "f", "arguments": {"a": [1, "x', BOTH)
    assert whole.finish_reason == "tool_calls" and joined_calls(whole.tool_calls)[0].arguments == '{"a": [1, "x"]}'
    _, whole = streamed("<think>a b", BOTH, finish="length")
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("a b", "", "length")


def test_one_call_and_no_more() -> None:
    channels = Channels(tool_parser="hermes", tools=TOOLS, max_calls=1)
    stream, whole = streamed(f"x{CALL}{CALL}", channels)
    assert whole.finish_reason == "tool_calls" and len(joined_calls(whole.tool_calls)) == 1
    assert stream.stopped_by_text and stream.stop_reason is None
    assert len(stream.output_ids) < len(BYTES.encode(f"x{CALL}"))
