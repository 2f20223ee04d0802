"""Bodies of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.errors import Unsupported
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
            raise Unsupported("truncate_prompt_tokens is not supported; leave it out", param="truncate_prompt_tokens")


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
