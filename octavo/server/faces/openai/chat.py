"""POST /v1/chat/completions: messages → token ids → generation → one answer or its chunks.

The streamed and the plain answer are built from the same deltas; nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from octavo.server.core import conversation as core
from octavo.server.core.serving import Served
from octavo.server.core.turns import reworded
from octavo.server.core.work import Arrived, Work
from octavo.server.faces.openai.logprobs import ChatLogprobsBuilder, encoded, lists_encoded, prompt_logprobs
from octavo.server.faces.openai.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatFinishReason,
    FunctionCall,
    FunctionCallDelta,
    MessageToolCall,
    ResponseMessage,
    ToolCallChunk,
)
from octavo.server.faces.openai.protocol.shared import ChatLogprobs, Usage
from octavo.server.faces.openai.translate import conversation, in_words_of
from octavo.server.faces.openai.usage import Chunks, header_of, usage_of
from octavo.server.http.call import Call
from octavo.server.http.sse import Template, event
from octavo.server.http.stream import Source
from octavo.text.channels import joined_calls, merged_parts
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, FinishReason, TokenLogprobs, ToolCallDelta

_encode = msgspec.json.Encoder().encode


async def chat_completions(call: Call[ChatCompletionRequest]) -> Response:
    asked, served = call.asked, call.served
    asked_for = conversation(asked)
    header = header_of(served, "chatcmpl")

    async def start() -> Work:
        with reworded(lambda error: in_words_of(error, asked)):
            return await core.start(served, asked_for, call.account)

    async def whole(work: Work) -> ChatCompletion:
        arrived = await work.finish()
        if not asked.logprobs and asked.prompt_logprobs is None:
            return _whole(served, asked, header, work, arrived)
        return await asyncio.to_thread(_whole, served, asked, header, work, arrived)

    return ChatChunks(call.source(start), served, asked, header) if asked.stream else await call.whole(start, whole)


def _whole(
    served: Served, asked: ChatCompletionRequest, header: dict[str, Any], work: Work, arrived: list[Arrived]
) -> ChatCompletion:
    tokenizer = served.client.tokenizer
    whole = ChatCompletion(**header, choices=[], usage=usage_of(work.metrics))
    for _, answer in arrived:
        assert answer.finish_reason is not None, "a generation ended without a finish_reason"
        whole.choices.append(
            ChatChoice(
                index=answer.index,
                message=_message(asked, answer),
                logprobs=_logprobs(tokenizer, asked, answer) if asked.logprobs else None,
                finish_reason=_reason(asked, answer.finish_reason),
                stop_reason=answer.stop_reason,
                token_ids=answer.token_ids if asked.return_token_ids else UNSET,
            )
        )
    if asked.return_token_ids:
        whole.prompt_token_ids = work.prompt_ids[0]
    if asked.prompt_logprobs is not None and (entries := work.prompt_logprobs(0)) is not None:
        whole.prompt_logprobs = encoded(prompt_logprobs(tokenizer, entries))
    return whole


def _logprobs(tokenizer: Tokenizer, asked: ChatCompletionRequest, answer: Delta) -> ChatLogprobs:
    builder = ChatLogprobsBuilder(tokenizer, as_ids=asked.return_tokens_as_token_ids)
    return lists_encoded(builder.build(answer.logprobs or [], final=True))


def _message(asked: ChatCompletionRequest, answer: Delta) -> ResponseMessage:
    """With calls and nothing said, `content` is null."""
    message = ResponseMessage(content=answer.text if answer.text or not answer.tool_calls else None)
    if answer.reasoning and asked.include_reasoning:
        message.reasoning_content = message.reasoning = answer.reasoning
    whole = joined_calls(answer.tool_calls)
    calls = [MessageToolCall(id=c.id, function=FunctionCall(name=c.name, arguments=c.arguments)) for c in whole]
    if calls and asked.by_functions:
        message.function_call = calls[0].function
    elif calls:
        message.tool_calls = calls
    return message


def _reason(asked: ChatCompletionRequest, reason: FinishReason) -> ChatFinishReason:
    return "function_call" if reason == "tool_calls" and asked.by_functions else reason


class _Streamed:
    """How far one choice of a stream has come."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self.begun = False
        self.waiting: list[TokenLogprobs] = []
        """Log-probabilities whose text has not come yet."""
        self.template: Template | None = None
        self._builder = ChatLogprobsBuilder(tokenizer, as_ids=as_ids)

    def logprobs(self, final: bool) -> ChatLogprobs | None:
        entries, self.waiting = self.waiting, []
        return self._builder.build(entries, final) if entries else None


def _call_chunk(part: ToolCallDelta) -> ToolCallChunk:
    chunk = ToolCallChunk(index=part.index, function=FunctionCallDelta(arguments=part.arguments))
    if part.id is not None and part.name is not None:
        chunk.id, chunk.type, chunk.function.name = part.id, "function", part.name
    return chunk


class ChatChunks(Chunks):
    def __init__(self, source: Source, served: Served, asked: ChatCompletionRequest, header: dict[str, Any]) -> None:
        super().__init__(source, header, asked.stream_options)
        as_ids = asked.return_tokens_as_token_ids
        self._choices = [_Streamed(served.client.tokenizer, as_ids=as_ids) for _ in range(asked.n)]
        self._plain = not (asked.logprobs or asked.return_token_ids or self.counts)
        self._prompt_ids_due = asked.return_token_ids
        self._asked = asked

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        index, choice = delta.index, self._choices[delta.index]
        plain = not (delta.reasoning or delta.tool_calls)
        if plain and self._plain and choice.begun and delta.finish_reason is None:
            if not delta.text:
                return b""
            if choice.template is None:
                part = ChatChunkChoice(index=index, delta=ChatDelta(content=""))
                choice.template = Template(self._event([part]), "content")
            return choice.template.fill(delta.text)
        out = b""
        if not choice.begun:
            choice.begun = True
            out = self._event([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])
        self.num_tokens += len(delta.token_ids)
        final = delta.finish_reason is not None
        choice.waiting += delta.logprobs or ()
        by_id = self._asked.return_token_ids
        parts = [ChatChunkChoice(index=index, delta=said) for said in self._said(delta)]
        if delta.finish_reason is not None:
            last = ChatChunkChoice(index=index, delta=ChatDelta())
            last.finish_reason, last.stop_reason = _reason(self._asked, delta.finish_reason), delta.stop_reason
            parts.append(last)
        elif by_id and not parts and delta.token_ids:  # tokens that show nothing, or not yet
            parts.append(ChatChunkChoice(index=index, delta=ChatDelta()))
        for number, part in enumerate(parts):
            if by_id:
                part.token_ids = [] if number else delta.token_ids
            if by_id or part.delta.content is not UNSET or part.finish_reason is not None:
                part.logprobs = choice.logprobs(final)
            out += self._event([part])
        return out

    def _said(self, delta: Delta) -> Iterator[ChatDelta]:
        """One channel each, in the order in which models use them."""
        if delta.reasoning and self._asked.include_reasoning:
            yield ChatDelta(reasoning_content=delta.reasoning, reasoning=delta.reasoning)
        if delta.text:
            yield ChatDelta(content=delta.text)
        for part in merged_parts(delta.tool_calls):
            call = _call_chunk(part)
            if self._asked.by_functions:
                yield ChatDelta(function_call=call.function)
            else:
                yield ChatDelta(tool_calls=[call])

    def last(self, usage: Usage) -> bytes:
        return self._event([], usage)

    def _event(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(**self.header, choices=choices, usage=usage or self.usage)
        if self._prompt_ids_due:
            self._prompt_ids_due = False
            chunk.prompt_token_ids = self.work.prompt_ids[0]
        return event(_encode(chunk))
