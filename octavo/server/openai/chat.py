"""POST /v1/chat/completions: messages → token ids → generation → one answer or its chunks.

The streamed and the plain answer are built from the same deltas; nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ApiError
from octavo.server.conversation import Conversation, answers, checked_messages, start, template_kwargs
from octavo.server.decode import read
from octavo.server.errors import error_body
from octavo.server.openai.logprobs import ChatLogprobsBuilder, prompt_logprobs
from octavo.server.openai.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
    ResponseMessage,
)
from octavo.server.openai.protocol.shared import Usage
from octavo.server.openai.usage import Header, UsageTally, usage_of
from octavo.server.serving import Serving, json_response, request_id, serving
from octavo.server.sse import DONE, EventStream, Template, Writer, event
from octavo.server.work import Work
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, SamplingParams, TokenLogprobs

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encode = msgspec.json.Encoder().encode


async def chat_completions(request: Request) -> Response:
    serve = serving(request)
    serve.inflight.refuse_when_draining()
    asked = await read(_decoder, request)
    asked.check()
    asked_for = conversation(asked, request_id(request))
    header = Header.new("chatcmpl", serve.model(asked.model), serve.fingerprint())
    if asked.stream:

        async def stream() -> tuple[Work, Writer]:
            work = await start(serve, asked_for)
            return work, _Chunks(serve, asked, header, work)

        return EventStream(stream, serve.inflight)
    async with serve.inflight.watch(request.receive):
        return json_response(await _whole(serve, asked, header, await start(serve, asked_for)))


def conversation(asked: ChatCompletionRequest, request_id: str = "") -> Conversation:
    """The request in the terms that all faces share. Raises RequestError."""
    return Conversation(
        messages=checked_messages(asked.messages),
        params=sampling(asked),
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        template_kwargs=template_kwargs(asked.chat_template_kwargs, asked.reasoning_effort),
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
                message=ResponseMessage(content=answer.content),
                logprobs=ChatLogprobsBuilder(tokenizer).build(answer.logprobs, final=True) if asked.logprobs else None,
                finish_reason=answer.finish_reason or "stop",
                stop_reason=answer.stop_reason,
            )
        )
    if asked.prompt_logprobs is not None and (entries := work.prompt_logprobs(0)) is not None:
        whole.prompt_logprobs = prompt_logprobs(tokenizer, entries)
    return whole


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


class _Chunks:
    """Implements sse.Writer."""

    def __init__(self, serve: Serving, asked: ChatCompletionRequest, header: Header, work: Work) -> None:
        self._header = header
        self._work = work
        self._tally = UsageTally(asked.stream_options, work.prompt_tokens)
        self._choices = [_Streamed(serve.client.tokenizer) for _ in range(asked.n)]
        self._plain = not asked.logprobs and not self._tally.continuous

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        index, choice = delta.index, self._choices[delta.index]
        if self._plain and choice.begun and delta.finish_reason is None:
            if not delta.text:
                return b""
            if choice.template is None:
                part = ChatChunkChoice(index=index, delta=ChatDelta(content=""))
                choice.template = Template(self._event([part]), "content")
            return choice.template.fill(delta.text)
        out = b""
        self._tally.add(len(delta.token_ids))
        if not choice.begun:
            choice.begun = True
            out = self._event([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])
        final = delta.finish_reason is not None
        choice.waiting += delta.logprobs or ()
        if delta.text:
            part = ChatChunkChoice(index=index, delta=ChatDelta(content=delta.text), logprobs=choice.logprobs(final))
            out += self._event([part])
        if final:
            last = ChatChunkChoice(index=index, delta=ChatDelta(), logprobs=choice.logprobs(final))
            last.finish_reason, last.stop_reason = delta.finish_reason, delta.stop_reason
            out += self._event([last])
        return out

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
