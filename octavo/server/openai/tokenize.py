"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them: text or messages to token ids and back."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ContextLengthExceeded, RequestError
from octavo.server.conversation import Conversation, checked_messages, render, template_kwargs
from octavo.server.decode import read
from octavo.server.errors import refuse_nul
from octavo.server.openai.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from octavo.server.serving import Serving, json_response, serving
from octavo.types import SamplingParams

MAX_TOKENS = 1 << 20
"""More would take long to write, while streams wait."""

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    serve = serving(request)
    asked = await read(_tokenize, request)
    serve.model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("send either prompt or messages", param="prompt")
    ids = await _ids(serve, asked)
    tokenizer = serve.client.tokenizer
    answer = TokenizeResponse(count=len(ids), max_model_len=serve.info().max_model_len, tokens=ids)
    if asked.return_token_strs:
        answer.token_strs = await asyncio.to_thread(lambda: [tokenizer.token_text(i) for i in ids])
    return json_response(answer)


async def _ids(serve: Serving, asked: TokenizeRequest) -> list[int]:
    if asked.prompt is not None:
        refuse_nul(asked.prompt, "prompt")
        add, parse = asked.add_special_tokens is not False, asked.parse_special
        try:
            each = await serve.encode(
                [asked.prompt], add_special_tokens=add, parse_special=parse, max_tokens=MAX_TOKENS
            )
        except ContextLengthExceeded:
            message = f"prompt has more than {MAX_TOKENS} tokens, the most of one request; send it in parts"
            raise RequestError(message, param="prompt") from None
        return each[0]
    conversation = Conversation(
        messages=checked_messages(asked.messages or []),
        params=SamplingParams(),
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        template_kwargs=template_kwargs(asked.chat_template_kwargs),
    )
    ids = await render(serve, conversation)
    if asked.add_special_tokens:
        return [*serve.client.tokenizer.encode(""), *ids]
    return ids


async def detokenize(request: Request) -> Response:
    serve = serving(request)
    asked = await read(_detokenize, request)
    serve.model(asked.model)
    tokenizer = serve.client.tokenizer
    for token_id in (min(asked.tokens, default=0), max(asked.tokens, default=0)):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise RequestError(
                f"tokens: {token_id} is out of vocabulary: the model has {tokenizer.vocab_size} tokens, from 0 on",
                param="tokens",
            )
    text = await asyncio.to_thread(tokenizer.decode, asked.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text))


async def tokenizer_info(request: Request) -> Response:
    serve = serving(request)
    tokenizer = serve.client.tokenizer
    name = tokenizer.special_names.get
    return json_response(
        TokenizerInfo(
            vocab_size=tokenizer.vocab_size,
            model_max_length=serve.info().max_model_len,
            bos_token=name("bos_token"),
            eos_token=name("eos_token"),
            pad_token=name("pad_token"),
            unk_token=name("unk_token"),
            add_bos_token=bool(tokenizer.encode("")),
            chat_template=serve.client.template.source,
        )
    )
