"""Bodies of POST /v1/completions: the request, the whole answer, which is also the chunk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.server.faces.openai.protocol.shared import (
    CompletionLogprobs,
    GenerationRequest,
    NotYet,
    PromptLogprobs,
    Usage,
)
from octavo.types import FinishReason, SamplingParams

MAX_PROMPTS = 1024


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/completions"""

    prompt: Annotated[str | list[str | int | list[int]], Meta(description="Text, token ids, or a list of either.")]
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Wins over max_tokens.")] | None = None
    best_of: (
        Annotated[int, Meta(ge=0, le=128, description="Candidates, of which the n best are returned; 0: n.")] | None
    ) = None
    suffix: Annotated[Any, Meta(description="Not supported.")] = None
    add_special_tokens: Annotated[bool, Meta(description="Put BOS before a text prompt, if the model has one.")] = True
    parse_special: Annotated[bool, Meta(description="Strings of special tokens in a prompt are those tokens.")] = True
    length_penalty: NotYet = None

    def refused(self) -> tuple[str, ...]:
        return (*super().refused(), "suffix", "length_penalty")

    def sampling(self, **changed: Any) -> SamplingParams:
        return super().sampling(**{"best_of": self.best_of or None, **changed})


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """Streamed: in the first chunk of the choice."""


class Completion(msgspec.Struct, kw_only=True):
    """A whole completion, and a chunk of a streamed one (`usage` as stream_options say)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
