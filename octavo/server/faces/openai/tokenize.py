"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them: text or messages to token ids and back; POST
/apply-template, as llama.cpp has it: messages to the text of the prompt."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from octavo.client.prepare import refuse_nul
from octavo.errors import ContextLengthExceeded, RequestError
from octavo.server.core.account import Account
from octavo.server.core.conversation import render, rendered
from octavo.server.core.serving import Served
from octavo.server.faces.openai.protocol.chat import MAX_TOOLS, ChatCompletionRequest, ChatMessage, ChatTool
from octavo.server.faces.openai.translate import conversation
from octavo.server.http.call import Call, json_response, serving
from octavo.text.tokenizer import Tokenizer

MAX_TOKENS = 1 << 20
"""More would take long to write, while streams wait."""


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: `prompt` or `messages`, as vLLM has it; or `content`, as llama.cpp has it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS, description="With messages.")] | None = None
    add_special_tokens: Annotated[bool, Meta(description="Default: for a prompt, not for messages.")] | None = None
    parse_special: Annotated[bool, Meta(description="Strings of special tokens in a text are those tokens.")] = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Annotated[bool, Meta(description="The tokens as the vocabulary spells them.")] = False
    content: Annotated[str, Meta(description="The text, without BOS unless add_special.")] | None = None
    add_special: bool = False
    with_pieces: Annotated[bool, Meta(description="With content: each token with its text.")] = False

    def check(self) -> None:
        pass


class TokenPiece(msgspec.Struct, kw_only=True):
    id: int
    piece: Annotated[str | list[int], Meta(description="Bytes where they are no whole characters.")]


class TokenizeResponse(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int | TokenPiece]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]

    def check(self) -> None:
        pass


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    prompt: str
    content: Annotated[str, Meta(description="The same, as llama.cpp calls it.")]


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What a client needs that tokenizes by this server: special tokens as texts, the model's chat template."""

    tokenizer_class: str = "octavo"
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: Annotated[bool, Meta(description="A text prompt begins with BOS.")]
    chat_template: str | None


class RenderedPrompt(msgspec.Struct, kw_only=True):
    prompt: str


async def tokenize(call: Call[TokenizeRequest]) -> Response:
    asked, served = call.asked, call.served
    if [asked.prompt, asked.messages, asked.content].count(None) != 2:
        raise RequestError("send one of prompt, messages and content", param="prompt")
    ids = await _ids(served, asked, call.account)
    tokenizer = served.client.tokenizer
    answer = TokenizeResponse(count=len(ids), max_model_len=served.info.max_model_len, tokens=[*ids])
    if asked.return_token_strs:
        answer.token_strs = await asyncio.to_thread(lambda: [tokenizer.spelling(i) for i in ids])
    if asked.with_pieces:
        answer.tokens = await asyncio.to_thread(lambda: [_piece(tokenizer, i) for i in ids])
    return json_response(answer)


async def _ids(served: Served, asked: TokenizeRequest, account: Account) -> list[int]:
    if asked.prompt is not None:
        return await _text_ids(
            served, account, "prompt", asked.prompt, asked.add_special_tokens is not False, asked.parse_special
        )
    if asked.content is not None:
        return await _text_ids(served, account, "content", asked.content, asked.add_special, asked.parse_special)
    as_chat = ChatCompletionRequest(
        messages=asked.messages or [],
        tools=asked.tools,
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    ids = await render(served, conversation(as_chat), account)
    if asked.add_special_tokens:
        return [*served.client.tokenizer.encode(""), *ids]
    return ids


async def _text_ids(
    served: Served, account: Account, field: str, text: str, add_special: bool, parse_special: bool
) -> list[int]:
    refuse_nul(text, field)
    try:
        each = await served.encode(
            [text], account, add_special_tokens=add_special, parse_special=parse_special, max_tokens=MAX_TOKENS
        )
    except ContextLengthExceeded:
        message = f"{field} has more than {MAX_TOKENS} tokens, the most of one request; send it in parts"
        raise RequestError(message, param=field) from None
    return each[0]


def _piece(tokenizer: Tokenizer, token_id: int) -> TokenPiece:
    raw = tokenizer.token_bytes(token_id)
    try:
        return TokenPiece(id=token_id, piece=raw.decode())
    except UnicodeDecodeError:
        return TokenPiece(id=token_id, piece=list(raw))


async def detokenize(call: Call[DetokenizeRequest]) -> Response:
    asked, tokenizer = call.asked, call.served.client.tokenizer
    for token_id in (min(asked.tokens, default=0), max(asked.tokens, default=0)):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise RequestError(
                f"tokens: {token_id} is out of vocabulary: the model has {tokenizer.vocab_size} tokens, from 0 on",
                param="tokens",
            )
    text = await asyncio.to_thread(tokenizer.decode, asked.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text, content=text))


async def tokenizer_info(request: Request) -> Response:
    served = serving(request).find(None)
    tokenizer = served.client.tokenizer
    name = tokenizer.special_names.get
    return json_response(
        TokenizerInfo(
            vocab_size=tokenizer.vocab_size,
            model_max_length=served.info.max_model_len,
            bos_token=name("bos_token"),
            eos_token=name("eos_token"),
            pad_token=name("pad_token"),
            unk_token=name("unk_token"),
            add_bos_token=bool(tokenizer.encode("")),
            chat_template=served.client.template.source,
        )
    )


async def apply_template(call: Call[ChatCompletionRequest]) -> Response:
    return json_response(RenderedPrompt(prompt=await rendered(call.served, conversation(call.asked), call.account)))
