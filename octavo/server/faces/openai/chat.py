"""POST /v1/chat/completions: messages → token ids → generation → one answer or its chunks.

The streamed and the plain answer are built from the same deltas; nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ApiError, Place
from octavo.server.core.conversation import Answer, Conversation, answers, checked_messages, start, template_kwargs
from octavo.server.core.errors import error_body
from octavo.server.core.serving import Serving, json_response, request_id, serving
from octavo.server.core.work import Work
from octavo.server.faces.openai.logprobs import ChatLogprobsBuilder, prompt_logprobs
from octavo.server.faces.openai.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatFinishReason,
    ChatLogprobs,
    FunctionCall,
    FunctionCallDelta,
    MessageToolCall,
    ResponseMessage,
    ToolCallChunk,
)
from octavo.server.faces.openai.protocol.shared import Usage
from octavo.server.faces.openai.tools import chosen, history, in_words_of
from octavo.server.faces.openai.usage import Header, UsageTally, usage_of
from octavo.server.http.decode import read
from octavo.server.http.sse import DONE, KEEP_ALIVE, EventStream, Template, Writer, event
from octavo.text.channels import merged_parts
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, FinishReason, SamplingParams, TokenLogprobs, ToolCallDelta

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encode = msgspec.json.Encoder().encode


async def chat_completions(request: Request) -> Response:
    serve = serving(request)
    serve.inflight.refuse_when_draining()
    asked = await read(_decoder, request)
    asked.check()
    asked_for = conversation(asked, request_id(request))

    async def started() -> Work:
        try:
            return await start(serve, asked_for)
        except ApiError as error:
            raise in_words_of(error, asked) from None

    header = Header.new("chatcmpl", serve.model(asked.model), serve.fingerprint())
    if asked.stream:

        async def stream() -> tuple[Work, Writer]:
            work = await started()
            return work, _Chunks(serve, asked, header, work)

        return EventStream(stream, serve.inflight)
    async with serve.inflight.watch(request.receive):
        return json_response(await _whole(serve, asked, header, await started()))


def conversation(asked: ChatCompletionRequest, request_id: str = "") -> Conversation:
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
        structured_place=Place(asked.constraint()[1]),
        request_id=request_id,
    )


def sampling(asked: ChatCompletionRequest) -> SamplingParams:
    """The request's parameters in the engine's terms."""
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return asked.sampling(max_tokens=max_tokens, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)


async def _whole(serve: Serving, asked: ChatCompletionRequest, header: Header, work: Work) -> ChatCompletion:
    async with work:
        found = answers(await work.finish(), asked.n)
    tokenizer = serve.client.tokenizer
    whole = ChatCompletion(
        id=header.id,
        created=header.created,
        model=header.model,
        choices=[],
        usage=usage_of(work.metrics),
        system_fingerprint=header.fingerprint,
    )
    for index, answer in enumerate(found):
        whole.choices.append(
            ChatChoice(
                index=index,
                message=_message(asked, answer),
                logprobs=ChatLogprobsBuilder(tokenizer).build(answer.logprobs, final=True) if asked.logprobs else None,
                finish_reason=_reason(asked, answer.finish_reason) or "stop",
                stop_reason=answer.stop_reason,
            )
        )
    if asked.prompt_logprobs is not None and (entries := work.prompt_logprobs(0)) is not None:
        whole.prompt_logprobs = prompt_logprobs(tokenizer, entries)
    return whole


def _message(asked: ChatCompletionRequest, answer: Answer) -> ResponseMessage:
    """With calls and nothing said, `content` is null."""
    message = ResponseMessage(content=answer.content if answer.content or not answer.tool_calls else None)
    if answer.reasoning and asked.include_reasoning:
        message.reasoning_content = message.reasoning = answer.reasoning
    calls = [FunctionCall(name=call.name, arguments=call.arguments) for call in answer.tool_calls]
    if calls and asked.by_functions:
        message.function_call = calls[0]
    elif calls:
        ids = [call.id for call in answer.tool_calls]
        message.tool_calls = [MessageToolCall(id=id, function=call) for id, call in zip(ids, calls, strict=True)]
    return message


def _reason(asked: ChatCompletionRequest, reason: FinishReason | None) -> ChatFinishReason | None:
    return "function_call" if reason == "tool_calls" and asked.by_functions else reason


class _Streamed:
    """How far one choice of a stream has come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.begun = False
        self.waiting: list[TokenLogprobs] = []
        """Log-probabilities whose text has not come yet."""
        self.template: Template | None = None
        self._builder = ChatLogprobsBuilder(tokenizer)

    def logprobs(self, final: bool) -> ChatLogprobs | None:
        entries, self.waiting = self.waiting, []
        return self._builder.build(entries, final) if entries else None


def _call_chunk(part: ToolCallDelta) -> ToolCallChunk:
    chunk = ToolCallChunk(index=part.index, function=FunctionCallDelta(arguments=part.arguments))
    if part.id is not None and part.name is not None:
        chunk.id, chunk.type, chunk.function.name = part.id, "function", part.name
    return chunk


class _Chunks:
    """Implements sse.Writer."""

    def __init__(self, serve: Serving, asked: ChatCompletionRequest, header: Header, work: Work) -> None:
        self._header = header
        self._work = work
        self._tally = UsageTally(asked.stream_options, work.prompt_tokens)
        self._choices = [_Streamed(serve.client.tokenizer) for _ in range(asked.n)]
        self._plain = not asked.logprobs and not self._tally.continuous
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
        self._tally.add(len(delta.token_ids))
        final = delta.finish_reason is not None
        choice.waiting += delta.logprobs or ()
        for said in self._said(delta):
            shown = choice.logprobs(final) if said.content is not UNSET else None
            out += self._event([ChatChunkChoice(index=index, delta=said, logprobs=shown)])
        if final:
            last = ChatChunkChoice(index=index, delta=ChatDelta(), logprobs=choice.logprobs(final))
            last.finish_reason, last.stop_reason = _reason(self._asked, delta.finish_reason), delta.stop_reason
            out += self._event([last])
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

    def wait(self) -> bytes:
        return KEEP_ALIVE

    def end(self) -> bytes:
        if not self._tally.wanted:
            return DONE
        return self._event([], usage_of(self._work.metrics)) + DONE

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error))

    def _event(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
        header = self._header
        chunk = ChatCompletionChunk(id=header.id, created=header.created, model=header.model, choices=choices)
        chunk.system_fingerprint = header.fingerprint
        chunk.usage = self._tally.of_chunk if usage is None else usage
        return event(_encode(chunk))
