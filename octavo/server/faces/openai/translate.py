"""A chat request in the terms that all faces share. Pure; raises RequestError in the words of this API."""

from __future__ import annotations

from octavo.client.conversation import Conversation
from octavo.errors import Place
from octavo.server.core.history import checked_messages, template_kwargs
from octavo.server.faces.openai.protocol.chat import ChatCompletionRequest
from octavo.server.faces.openai.tools import chosen, history
from octavo.types import SamplingParams


def conversation(asked: ChatCompletionRequest) -> Conversation:
    """The request in the terms that all faces share. Raises RequestError."""
    choice = chosen(asked)
    kwargs = dict(asked.chat_template_kwargs or {})
    if asked.thinking_token_budget is not None:
        kwargs["thinking_budget"] = asked.thinking_token_budget
    return Conversation(
        messages=checked_messages(history(asked.messages)),
        params=sampling(asked),
        tools=choice.tools,
        tool_choice=choice.tool_choice,
        named_tool=choice.named,
        parallel_tool_calls=asked.parallel_tool_calls is not False and not asked.by_functions,
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        template_kwargs=template_kwargs(kwargs, asked.reasoning_effort),
        logprobs_of_all=asked.return_token_ids,
        structured_place=Place(asked.constraint()[1]),
    )


def sampling(asked: ChatCompletionRequest) -> SamplingParams:
    """The request's parameters in the engine's terms."""
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return asked.sampling(max_tokens=max_tokens, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)
