"""POST /v1/embeddings: texts or token ids → the served model's hidden states, pooled, at length 1 as OpenAI's are.

Inputs are computed in waves of as many as the engine runs at once, so that many of them do not fill its queue.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta
from starlette.responses import Response

from octavo.client.base import Prompt
from octavo.client.embedding import EMBEDDING, finished, numbers
from octavo.client.prepare import refuse_nul
from octavo.errors import Place, RequestError, Unsupported
from octavo.server.core.account import Account
from octavo.server.core.serving import Served
from octavo.server.core.turns import moved, reworded
from octavo.server.core.work import Work
from octavo.server.http.call import Call
from octavo.types import Pooling

MAX_INPUTS = 2048
"""As OpenAI's."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings"""

    input: Annotated[str | list[str | int | list[int]], Meta(description="Text, token ids, or a list of either.")]
    model: Annotated[str, Meta(description="The served model's name; left out: that one.")] | None = None
    encoding_format: Annotated[
        Literal["float", "base64"], Meta(description="base64: of little-endian 32-bit floats.")
    ] = "float"
    dimensions: (
        Annotated[int, Meta(ge=1, description="Only so many of the first numbers, at length 1 again.")] | None
    ) = None
    user: str | None = None
    pooling: Annotated[
        Pooling, Meta(description="What is made one vector: the mean of all tokens, or the last one.")
    ] = "mean"
    add_special_tokens: Annotated[bool, Meta(description="Put BOS before a text, if the model has one.")] = True
    truncate_prompt_tokens: Annotated[Any, Meta(description="Not supported: a longer input is refused.")] = None

    def check(self) -> None:
        if self.truncate_prompt_tokens is not None:
            raise Unsupported.about("truncate_prompt_tokens", "is not supported; leave it out")


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding`: at length 1; a text with encoding_format base64."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


async def embeddings(call: Call[EmbeddingRequest]) -> Response:
    asked, served = call.asked, call.served
    model, size = served.name, served.info.hidden_size
    if asked.dimensions is not None and asked.dimensions > size:
        raise RequestError.about("dimensions", f"is {asked.dimensions}; {model} has {size}")
    inputs = split_inputs(asked.input)
    async with call.serving.inflight.watch(call.request.receive):
        with reworded(lambda error: moved(error, {"prompt": Place("input")})):
            add, limit = asked.add_special_tokens, served.info.max_model_len
            each = await served.encode(inputs, call.account, add_special_tokens=add, max_tokens=limit)
            prompts = [Prompt(token_ids=ids, pooling=asked.pooling) for ids in each]
            pooled = await _computed(served, prompts, call.account)
        tokens = sum(len(prompt.token_ids) for prompt in prompts)
        body = await asyncio.to_thread(_answer, asked, pooled, model, tokens)
    return Response(body, media_type="application/json")


def split_inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per input. Raises RequestError where kinds are mixed or something is empty."""
    if isinstance(given, list) and set(map(type, given)) == {int}:  # of a million, without keeping streams waiting
        return [cast(list[int], given)]
    inputs = [given] if isinstance(given, str) else given
    if not inputs:
        raise RequestError.about("input", "must not be empty")
    if len(inputs) > MAX_INPUTS:
        raise RequestError.about("input", f"has {len(inputs)} entries; at most {MAX_INPUTS}")
    found: list[str | list[int]] = []
    for i, entry in enumerate(inputs):
        at = Place("input") if isinstance(given, str) else Place("input", i)
        if isinstance(entry, int):
            raise RequestError.about("input", "mixes token ids with texts or lists; send one kind")
        if not entry:
            raise RequestError(f"{at} is empty", param="input")
        if isinstance(entry, str):
            refuse_nul(entry, at)
        found.append(entry)
    return found


async def _computed(served: Served, prompts: list[Prompt], account: Account) -> list[bytes]:
    """The pooled hidden states of each."""
    found: list[bytes] = []
    wave = served.info.max_num_seqs
    for at in range(0, len(prompts), wave):
        part = prompts[at : at + wave]
        async with await Work.start(served.client, served.metrics, part, EMBEDDING, account) as work:
            await work.finish()
            found += [work.embedding(index) for index in range(len(part))]
    return found


def _answer(asked: EmbeddingRequest, pooled: list[bytes], model: str, tokens: int) -> bytes:
    """The whole body; in a thread, since it may hold millions of numbers."""
    data: list[Embedding] = []
    for index, entry in enumerate(pooled):
        vector = finished(entry, asked.dimensions)
        shown = base64.b64encode(vector).decode() if asked.encoding_format == "base64" else numbers(vector)
        data.append(Embedding(embedding=shown, index=index))
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return msgspec.json.encode(EmbeddingList(data=data, model=model, usage=usage))
