"""What the bodies of several OpenAI-compatible routes have in common, each defined once.

Requests derive from SamplingParams, so a sampling field is defined in octavo/types.py alone; unknown fields are
ignored, known ones that are not served yet are refused by name.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.client.prepare import MAX_LOGIT_BIAS, check_texts, refuse_nul
from octavo.errors import RequestError, Unsupported
from octavo.types import SamplingParams, StructuredOutputs

NotYet = Annotated[Any, Meta(description="Not supported yet: a value is refused.")]
Unserved = Annotated[Any, Meta(description="Not supported.")]
Item = dict[str, Any]

MAX_STOP = 16
MAX_TOP_LOGPROBS = 20
_CONSTRAINTS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
"""Fields of vLLM, llama.cpp and SGLang, and what they are in StructuredOutputs."""
_TOKEN_ID = re.compile(r"-?[0-9]{1,10}")


@cache
def not_yet(kind: type[msgspec.Struct]) -> list[str]:
    """Names of the fields that change an answer and are not served yet."""
    return [field.name for field in msgspec.structs.fields(kind) if field.type in (NotYet, Unserved)]


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    description: str | None = None
    schema: Annotated[dict[str, Any] | bool, Meta(description="JSON Schema; left out: any object.")] | None = None
    strict: Annotated[bool, Meta(description="Objects have the properties that are named, and no others.")] | None = (
        None
    )


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, Meta(description="`text`, `json_object` or `json_schema`.")]
    json_schema: JsonSchemaFormat | None = None
    schema: Annotated[dict[str, Any], Meta(description="With `json_object`, as llama.cpp has it.")] | None = None

    def structured(self) -> StructuredOutputs | None:
        """Raises RequestError."""
        if self.type == "text":
            return None
        if self.type not in ("json_object", "json_schema"):
            wrong = f"is {self.type[:40]!r}; it must be text, json_object or json_schema"
            raise RequestError.about("response_format.type", wrong)
        schema: Any = self.schema
        strict = False
        if self.type == "json_schema":
            if self.json_schema is None:
                raise RequestError.about("response_format.json_schema", "is required for type json_schema")
            schema, strict = self.json_schema.schema, self.json_schema.strict is True
        if schema is None:
            return StructuredOutputs(json_object=True)
        return StructuredOutputs(json=schema, disable_additional_properties=strict)


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: Annotated[bool, Meta(description="A last chunk with the usage.")] = False
    continuous_usage_stats: Annotated[bool, Meta(description="With include_usage: so far, in every chunk.")] = False


class GenerationRequest(SamplingParams, frozen=True, kw_only=True, omit_defaults=True):
    """What chat and plain completions have in common."""

    model: Annotated[str, Meta(description="The served model's name; left out: that one.")] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: Annotated[bool, Meta(description="Completions: the answer begins with the prompt.")] = False
    user: str | None = None
    return_token_ids: Annotated[
        bool, Meta(description="Ids of prompt and output beside the text; logprobs have an entry for each.")
    ] = False
    return_tokens_as_token_ids: Annotated[bool, Meta(description="Tokens of logprobs as `token_id:ID`.")] = False
    logit_bias: Annotated[dict[str, float], Meta(description="Added to the logits of token ids.")] | None = None  # type: ignore[assignment]

    response_format: Annotated[ResponseFormat, Meta(description="What the output must match.")] | None = None
    guided_json: Annotated[str | dict[str, Any] | bool, Meta(description="As structured_outputs.json.")] | None = None
    guided_regex: Annotated[str, Meta(description="As structured_outputs.regex.")] | None = None
    guided_choice: Annotated[list[str], Meta(description="As structured_outputs.choice.")] | None = None
    guided_grammar: Annotated[str, Meta(description="As structured_outputs.grammar.")] | None = None
    guided_whitespace_pattern: Annotated[str, Meta(description="Blanks allowed in JSON.")] | None = None
    guided_decoding_backend: Annotated[Any, Meta(description="Accepted and ignored: there is one.")] = None
    grammar: Annotated[str, Meta(description="GBNF as llama.cpp has it, or Lark.")] | None = None
    json_schema: Annotated[str | dict[str, Any] | bool, Meta(description="As llama.cpp has it.")] | None = None
    regex: Annotated[str, Meta(description="As SGLang has it.")] | None = None
    ebnf: Annotated[str, Meta(description="As SGLang has it.")] | None = None
    prompt_embeds: NotYet = None
    logits_processors: NotYet = None
    use_beam_search: NotYet = None
    truncate_prompt_tokens: NotYet = None

    def check(self) -> None:
        """What can be known without the model. Raises RequestError, Unsupported."""
        for name in not_yet(type(self)):
            if getattr(self, name):
                raise Unsupported.about(name, "is not supported yet; leave it out")
        self.constraint()
        if self.stream_options is not None and not self.stream:
            raise RequestError.about("stream_options", "is only allowed with stream: true")
        if len(self.stop_strings()) > MAX_STOP:
            raise RequestError.about("stop", f"has {len(self.stop_strings())} strings; at most {MAX_STOP}")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError.about("prompt_logprobs", "are not given with stream: true")
        if self.best_of and self.best_of < self.n:
            raise RequestError.about("best_of", f"({self.best_of}) must be at least n ({self.n})")
        if self.stream and (self.best_of or 0) > self.n:
            raise RequestError.about("best_of", "cannot be combined with stream: true")
        check_texts(self)
        for name, texts in (("stop", self.stop_strings()), ("bad_words", self.bad_words or [])):
            for text in texts:
                refuse_nul(text, name)

    def constraint(self) -> tuple[StructuredOutputs | None, str]:
        """What the output must match, and the field that says so. Raises RequestError."""
        blanks = self.guided_whitespace_pattern
        given: dict[str, StructuredOutputs | None] = {"structured_outputs": self.structured_outputs}
        if self.response_format is not None:
            given["response_format"] = self.response_format.structured()
        for name, kind in _CONSTRAINTS.items():
            if (value := getattr(self, name)) is not None:
                given[name] = StructuredOutputs(**{kind: value}, whitespace_pattern=blanks)
        found = [(structured, name) for name, structured in given.items() if structured is not None]
        if len(found) > 1:
            names = " and ".join(name for _, name in found)
            raise RequestError(f"{names} each say what the output must match; send one of them", param=found[1][1])
        return found[0] if found else (None, "structured_outputs")

    def sampling(self, **changed: Any) -> SamplingParams:
        """The sampling fields of this request, some replaced. Raises RequestError."""
        fields = {name: getattr(self, name) for name in SamplingParams.__struct_fields__}
        fields["structured_outputs"] = self.constraint()[0]
        fields["logit_bias"] = biases(self.logit_bias)
        return SamplingParams(**{**fields, **changed})


def biases(given: dict[str, float] | None) -> dict[int, float] | None:
    """By token id. A bias of 0 changes nothing, whatever it is for; any other is for a token id."""
    if not given:
        return None
    if len(given) > MAX_LOGIT_BIAS:
        raise RequestError(f"logit_bias: {len(given)} entries, at most {MAX_LOGIT_BIAS}", param="logit_bias")
    wrong = [key for key, value in given.items() if value and not _TOKEN_ID.fullmatch(key)]
    if wrong:
        names = ", ".join(repr(key[:40]) for key in wrong[:8])
        raise RequestError(f"logit_bias: keys are token ids, which {names} is not", param="logit_bias")
    return {int(key): value for key, value in given.items() if _TOKEN_ID.fullmatch(key)}


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class Performance(msgspec.Struct, kw_only=True):
    """Milliseconds, measured in the engine."""

    prefill_ms: float
    decode_ms: float
    decode_iterations: int
    tokens_per_second: float
    time_to_first_token_ms: float
    queue_ms: float


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    performance: Performance | UnsetType = UNSET


class PromptLogprob(msgspec.Struct, kw_only=True):
    logprob: float
    rank: Annotated[int, Meta(description="1 is the most likely; null beyond those asked for.")] | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TopLogprobEntry(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class LogprobEntry(TopLogprobEntry, kw_only=True):
    top_logprobs: list[TopLogprobEntry]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: list[LogprobEntry]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
