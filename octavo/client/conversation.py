"""From a conversation to the prompt of the engine: template, tools, reasoning, grammar. Torch-free and synchronous.

One path for every face and for Python callers, so that a conversation means the same on all of them.
Invariant: what the answer has to look like is in the prompt's grammar, and its channels say how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from octavo.client.base import Prompt
from octavo.errors import ApiError, Place, RequestError
from octavo.grammar import tools as tool_grammars
from octavo.grammar.spec import MAX_SCHEMA_BYTES, grammar_of, schema_bytes
from octavo.text.channels import Channels, Tags, ends_inside, reasoning_by_name, reasoning_of_template
from octavo.text.late_system import in_place
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.text.toolcalls.family import Family
from octavo.text.toolcalls.prompt import told
from octavo.text.toolcalls.registry import by_name, of_template
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, SamplingParams

EFFORTS = {"none": 0, "minimal": 256, "low": 1024, "medium": 8192}
"""`reasoning_effort` as tokens of reasoning, where the template does not read it; more effort is not bounded."""
TAIL_TOKENS = 32
"""At the end of a prompt, in which a template may open the reasoning."""


STRUCTURED = Place("structured_outputs")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """`params.n` answers to `messages`. `params.structured_outputs` binds the content."""

    messages: list[Message]
    params: SamplingParams
    tools: list[Tool] = field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] = "auto"
    named_tool: str | None = None
    """The one tool that has to be called; `tool_choice` is "required" then."""
    parallel_tool_calls: bool = True
    add_generation_prompt: bool | None = None
    """None: unless the last message is continued."""
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """`thinking_budget` and `reasoning_effort` among them bound the reasoning, also where the template does not."""
    structured_place: Place = STRUCTURED
    """The field that errors of `params.structured_outputs` name."""
    request_id: str = ""
    logprobs_of_all: bool = False
    """As Prompt has it."""

    @property
    def callable_tools(self) -> list[Tool]:
        if self.tool_choice == "none":
            return []
        return [tool for tool in self.tools if self.named_tool in (None, tool.name)]


@dataclass(frozen=True)
class Manner:
    """How the model writes calls, and its reasoning if it has any."""

    family: Family
    reasoning: Tags | None

    @classmethod
    def of(cls, template: ChatTemplate, tool_call_parser: str | None, reasoning_parser: str | None) -> Manner:
        """By name, else as the template shows. Raises ConfigError for an unknown name."""
        return _manner(template.sources, tool_call_parser, reasoning_parser)


@lru_cache(maxsize=16)
def _manner(source: str, tool_call_parser: str | None, reasoning_parser: str | None) -> Manner:
    return Manner(
        of_template(source) if tool_call_parser is None else by_name(tool_call_parser),
        reasoning_of_template(source) if reasoning_parser is None else reasoning_by_name(reasoning_parser),
    )


class Prompter:
    """One model's template, tokenizer and manner."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, manner: Manner) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._manner = manner

    def prompt(self, conversation: Conversation, max_tokens: int) -> Prompt:
        """Raises RequestError: for the messages with param "prompt", for a tool's schema with its place."""
        if conversation.tools:
            _check_tools(conversation.tools)
        ids = self.encode(conversation, max_tokens)
        budget = self._budget(conversation, max_tokens)
        enforced = _enforces_calls(conversation) or (budget is not None and bool(conversation.callable_tools))
        channels = self._channels(conversation, ids, enforced)
        thinks = channels is not None and self._may_reason(conversation, channels, ids)
        return Prompt(
            token_ids=ids,
            grammar=self._grammar(conversation, channels, enforced, budget, thinks),
            channels=channels,
            request_id=conversation.request_id,
            is_conversation=True,
            logprobs_of_all=conversation.logprobs_of_all,
        )

    def encode(self, conversation: Conversation, max_tokens: int | None = None) -> list[int]:
        """The tokens of the prompt alone."""
        messages, tools = self._told(conversation)
        return self._template.encode(
            messages,
            add_generation_prompt=_opens_answer(conversation),
            continue_final_message=conversation.continue_final_message,
            tools=tools,
            max_tokens=max_tokens,
            **conversation.template_kwargs,
        )

    def render(self, conversation: Conversation) -> str:
        """The prompt as text."""
        messages, tools = self._told(conversation)
        return self._template.render(
            messages,
            add_generation_prompt=_opens_answer(conversation),
            continue_final_message=conversation.continue_final_message,
            tools=tools,
            **conversation.template_kwargs,
        )

    def _told(self, conversation: Conversation) -> tuple[list[Message], list[dict[str, Any]] | None]:
        messages = in_place(self._template, conversation.messages)
        return told(self._template, messages, _shown_tools(conversation))

    def _channels(self, conversation: Conversation, ids: list[int], enforced: bool) -> Channels | None:
        tools, tags = conversation.callable_tools, self._manner.reasoning
        if not tools and tags is None:
            return None
        in_reasoning = False
        if tags is not None and conversation.continue_final_message:
            last = conversation.messages[-1].content
            in_reasoning = isinstance(last, str) and ends_inside(last, tags)
        elif tags is not None:
            in_reasoning = self._tail(ids).endswith(tags[0])
        return Channels(
            reasoning=tags,
            in_reasoning=in_reasoning,
            tool_parser=self._family(tools, enforced).name if tools else None,
            tools=tuple(tools),
            max_calls=None if conversation.parallel_tool_calls and conversation.named_tool is None else 1,
        )

    def _tail(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()

    def _may_reason(self, conversation: Conversation, channels: Channels, ids: list[int]) -> bool:
        """Not where it was asked not to, where the prompt has closed the reasoning, nor in the middle of an answer."""
        if channels.reasoning is None or _switched_off(conversation):
            return False
        if conversation.continue_final_message and not channels.in_reasoning:
            return not conversation.messages[-1].content
        return not self._tail(ids).endswith(channels.reasoning[1])

    def _family(self, tools: Sequence[Tool], enforced: bool) -> Family:
        """Calls that are enforced are written in a form that can be."""
        return tool_grammars.enforceable(self._manner.family, tools) if enforced else self._manner.family

    def _grammar(
        self,
        conversation: Conversation,
        channels: Channels | None,
        enforced: bool,
        budget: int | None,
        thinks: bool,
    ) -> str | None:
        structured = conversation.params.structured_outputs
        content = None if structured is None else grammar_of(structured, conversation.structured_place)
        if channels is None:
            return content
        if enforced and channels.tool_parser is not None:
            content = tool_grammars.calls_grammar(
                by_name(channels.tool_parser).form,
                [(i, tool) for i, tool in enumerate(conversation.tools) if tool in channels.tools],
                self._tokenizer,
                content=content,
                required=conversation.tool_choice == "required",
                max_calls=channels.max_calls,
            )
        if channels.reasoning is None or (content is None and budget is None):
            return content
        if not thinks and not channels.in_reasoning:
            return content
        if not thinks and tool_grammars.closing_token(channels.reasoning, self._tokenizer) is not None:
            budget = 0  # the template has opened the reasoning all the same
        return tool_grammars.with_reasoning(
            content, channels.reasoning, self._tokenizer, opened=channels.in_reasoning, budget=budget
        )

    def _budget(self, conversation: Conversation, max_tokens: int) -> int | None:
        """Most tokens of the reasoning. An effort is a hint, for the template alone where no budget can be kept."""
        if self._manner.reasoning is None:
            return None
        given = conversation.template_kwargs.get("thinking_budget")
        if given is None:
            effort = conversation.template_kwargs.get("reasoning_effort")
            keeps = tool_grammars.closing_token(self._manner.reasoning, self._tokenizer) is not None
            given = EFFORTS.get(str(effort)) if keeps and "reasoning_effort" not in self._template.sources else None
        elif not isinstance(given, int) or isinstance(given, bool):
            raise RequestError("thinking_budget must be a number of tokens", param="thinking_budget")
        most = max_tokens if conversation.params.max_tokens is None else conversation.params.max_tokens
        return None if given is None or not 0 <= given < most else given


def _check_tools(tools: list[Tool]) -> None:
    from octavo.grammar.wellformed import check_parameters  # which loads all that reads schemas

    left = MAX_SCHEMA_BYTES
    for index, tool in enumerate(tools):
        left -= schema_bytes(tool.parameters)
        if left < 0:
            what = f"with this one the tools' schemas have more than {MAX_SCHEMA_BYTES} bytes"
            raise RequestError(f"{tool_grammars.place(index)}: {what}; send fewer", param=tool_grammars.place(index))
        check_parameters(tool.parameters or {}, tool_grammars.place(index))


def _enforces_calls(conversation: Conversation) -> bool:
    tools = conversation.callable_tools
    return bool(tools) and (
        conversation.tool_choice == "required"
        or any(tool.strict for tool in tools)
        or conversation.params.structured_outputs is not None
    )


def _switched_off(conversation: Conversation) -> bool:
    kwargs = conversation.template_kwargs
    return False in (kwargs.get("enable_thinking"), kwargs.get("thinking")) or kwargs.get("reasoning_effort") == "none"


def _shown_tools(conversation: Conversation) -> list[Tool]:
    return [] if conversation.tool_choice == "none" else conversation.tools


def _opens_answer(conversation: Conversation) -> bool:
    if conversation.add_generation_prompt is None:
        return not conversation.continue_final_message
    return conversation.add_generation_prompt


def blamed(error: ApiError, conversation: Conversation) -> ApiError:
    """An error of the prompt or of its grammar as a whole, naming the field of the conversation."""
    if error.param == "prompt":
        error.place = Place("messages")
    elif error.param == "grammar":
        callable_tools = conversation.callable_tools
        indices = [i for i, tool in enumerate(conversation.tools) if tool in callable_tools]
        if conversation.params.structured_outputs is not None:
            error.place = conversation.structured_place
        else:
            error.place = tool_grammars.place(indices[0]) if len(indices) == 1 else Place("tools")
    return error
