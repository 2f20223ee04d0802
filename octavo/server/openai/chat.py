"""POST /v1/chat/completions: messages → token ids → generation → one answer or its chunks.

The streamed and the plain answer are built from the same deltas; nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.client.base import Prompt
from octavo.errors import ApiError, RequestError, Unsupported
from octavo.server.decode import decode
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
from octavo.server.openai.protocol.shared import Usage, refuse_nul
from octavo.server.openai.usage import Header, UsageTally, usage_of
from octavo.server.serving import Serving, json_response, renamed, serving
from octavo.server.sse import DONE, EventStream, Template, Writer, event
from octavo.server.work import Work
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, FinishReason, Message, SamplingParams, TokenLogprobs

ROLES = ("system", "developer", "user", "assistant", "tool")
TEMPLATE_KWARGS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "reasoning_effort", "date_string",
     "custom_tools", "tools_in_user_message", "add_vision_id", "clear_thinking"}
)  # fmt: skip
"""Names that published templates read; anything else could only reach into the rendering itself."""

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_encode = msgspec.json.Encoder().encode


async def chat_completions(request: Request) -> Response:
    serve = serving(request)
    serve.inflight.refuse_when_draining()
    asked = decode(_decoder, await request.body())
    asked.check()
    messages = checked_messages(asked.messages)
    kwargs = template_kwargs(asked.chat_template_kwargs, asked.reasoning_effort)
    header = Header.new("chatcmpl", serve.model(asked.model))

    async def start() -> Work:
        ids = await render(
            serve,
            messages,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            kwargs=kwargs,
        )
        try:
            return await Work.start(serve.client, [Prompt(token_ids=ids)], sampling(asked), serve.metrics)
        except ApiError as error:
            raise renamed(error, "prompt", "messages") from None

    if asked.stream:

        async def stream() -> tuple[Work, Writer]:
            work = await start()
            return work, _Chunks(serve, asked, header, work)

        return EventStream(stream, serve.inflight)
    async with serve.inflight.watch(request.receive):
        return json_response(await _whole(serve, asked, header, await start()))


def sampling(asked: ChatCompletionRequest) -> SamplingParams:
    """The request's parameters in the engine's terms."""
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return asked.sampling(max_tokens=max_tokens, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)


async def render(
    serve: Serving,
    messages: list[Message],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    kwargs: dict[str, Any],
) -> list[int]:
    """Template and tokenizer, off the event loop. Raises RequestError that names `messages`."""
    template, limit = serve.client.template, serve.info().max_model_len
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message

    def encode() -> list[int]:
        return template.encode(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            max_tokens=limit,
            **kwargs,
        )

    try:
        return await asyncio.to_thread(encode)
    except ApiError as error:
        raise renamed(error, "prompt", "messages") from None


def checked_messages(messages: list[Message]) -> list[Message]:
    """The messages, `developer` named `system` as templates know it. What the template cannot take in is refused by
    name; text and parts are the template's business."""
    if not messages:
        raise RequestError("messages must not be empty", param="messages")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: Message, at: str) -> Message:
    if message.role not in ROLES:
        raise RequestError(
            f"{at}.role is {message.role[:40]!r}; it must be one of {', '.join(ROLES)}", param=f"{at}.role"
        )
    if message.tool_calls:
        raise Unsupported(f"{at}.tool_calls is not supported yet; leave it out", param=f"{at}.tool_calls")
    if message.content is None:
        raise RequestError(f"{at}.content is required for role {message.role}", param=f"{at}.content")
    parts = [message.content] if isinstance(message.content, str) else [p.get("text") for p in message.content]
    for text in parts:
        if isinstance(text, str):
            refuse_nul(text, f"{at}.content")
    for name, value in (("name", message.name), ("reasoning_content", message.reasoning_content)):
        refuse_nul(value or "", f"{at}.{name}")
    return msgspec.structs.replace(message, role="system") if message.role == "developer" else message


def template_kwargs(given: dict[str, Any] | None, reasoning_effort: str | None = None) -> dict[str, Any]:
    """Only known switches with plain values reach a template."""
    kwargs: dict[str, Any] = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
    for name, value in (given or {}).items():
        if name not in TEMPLATE_KWARGS:
            known = ", ".join(sorted(TEMPLATE_KWARGS))
            raise RequestError(
                f"chat_template_kwargs: {name[:40]!r} is not allowed; allowed are {known}", param="chat_template_kwargs"
            )
        if not isinstance(value, str | int | float | bool | None):
            raise RequestError(
                f"chat_template_kwargs: {name} must be a text, a number or a switch", param="chat_template_kwargs"
            )
        kwargs[name] = value
    return kwargs


class _Choice:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None


async def _whole(serve: Serving, asked: ChatCompletionRequest, header: Header, work: Work) -> ChatCompletion:
    choices = [_Choice() for _ in range(asked.n)]
    async with work:
        arrived = await work.finish()
    for _, delta in arrived:
        choice = choices[delta.index]
        choice.texts.append(delta.text)
        choice.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
    tokenizer = serve.client.tokenizer
    answer = ChatCompletion(
        id=header.id, created=header.created, model=header.model, choices=[], usage=usage_of(work.metrics)
    )
    for index, choice in enumerate(choices):
        assert choice.finish_reason is not None, "a generation ended without a finish_reason"
        answer.choices.append(
            ChatChoice(
                index=index,
                message=ResponseMessage(content="".join(choice.texts)),
                logprobs=ChatLogprobsBuilder(tokenizer).build(choice.logprobs, final=True) if asked.logprobs else None,
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
            )
        )
    if asked.prompt_logprobs is not None and (found := work.prompt_logprobs(0)) is not None:
        answer.prompt_logprobs = prompt_logprobs(tokenizer, found)
    return answer


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

    def _event(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
        header = self._header
        chunk = ChatCompletionChunk(id=header.id, created=header.created, model=header.model, choices=choices)
        chunk.usage = self._tally.of_chunk if usage is None else usage
        return event(_encode(chunk))
