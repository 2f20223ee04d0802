"""Every route there is, one row each: the application, /openapi.json and /docs derive from this table.

Adding an endpoint: its handler, its structs, a row here.
"""

from __future__ import annotations

from octavo.server.faces.anthropic import handlers as anthropic
from octavo.server.faces.anthropic.errors import AnthropicErrorResponse
from octavo.server.faces.anthropic.protocol import (
    AnthropicMessage,
    CountTokensRequest,
    MessageEvent,
    MessagesRequest,
    TokenCount,
)
from octavo.server.faces.openai import models
from octavo.server.faces.openai.apply_template import RenderedPrompt, apply_template
from octavo.server.faces.openai.chat import chat_completions
from octavo.server.faces.openai.completions import completions
from octavo.server.faces.openai.embeddings import embeddings
from octavo.server.faces.openai.errors import ErrorResponse
from octavo.server.faces.openai.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from octavo.server.faces.openai.protocol.completions import Completion, CompletionRequest
from octavo.server.faces.openai.protocol.embeddings import EmbeddingList, EmbeddingRequest
from octavo.server.faces.openai.protocol.models import Model, ModelList
from octavo.server.faces.openai.protocol.responses import (
    DeletedResponse,
    InputItemList,
    ResponseEvent,
    ResponseObject,
    ResponsesRequest,
)
from octavo.server.faces.openai.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from octavo.server.faces.openai.responses import handlers as responses
from octavo.server.faces.openai.tokenize import detokenize, tokenize, tokenizer_info
from octavo.server.faces.service import docs, props, system
from octavo.server.faces.unserved import unserved
from octavo.server.faces.wording import worded
from octavo.server.http.endpoint import Endpoint, Site

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        summary="Answer a conversation; with `stream: true` as server-sent events.",
        asked=ChatCompletionRequest,
        given=ChatCompletion,
        streamed=ChatCompletionChunk,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=completions,
        summary="Continue texts or token ids; with `stream: true` as server-sent events.",
        asked=CompletionRequest,
        given=Completion,
        streamed=Completion,
        example={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    ),
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        summary="Texts or token ids as vectors of length 1: the model's hidden states, pooled.",
        asked=EmbeddingRequest,
        given=EmbeddingList,
        example={"input": "The quick brown fox"},
    ),
    Endpoint(
        method="POST",
        path="/v1/responses",
        handler=responses.create,
        summary="Answer an input, going on from a stored response; with `stream: true` as server-sent events.",
        asked=ResponsesRequest,
        given=ResponseObject,
        streamed=ResponseEvent,
        example={"input": "Why is the sky blue?", "max_output_tokens": 64},
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}",
        handler=responses.retrieve,
        summary="A stored response.",
        given=ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/responses/{response_id}",
        handler=responses.delete,
        summary="Forget a stored response.",
        given=DeletedResponse,
        needs_model=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}/input_items",
        handler=responses.input_items,
        summary="What came in with a stored response.",
        given=InputItemList,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses/{response_id}/cancel",
        handler=responses.cancel,
        summary="Refused: no response runs in the background.",
        given=ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages",
        handler=anthropic.messages,
        summary="Answer a conversation in Anthropic's form; with `stream: true` as server-sent events.",
        asked=MessagesRequest,
        given=AnthropicMessage,
        streamed=MessageEvent,
        problem=AnthropicErrorResponse,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        handler=anthropic.count_tokens,
        summary="How many tokens a conversation in Anthropic's form is.",
        asked=CountTokensRequest,
        given=TokenCount,
        problem=AnthropicErrorResponse,
    ),
    Endpoint(method="GET", path="/v1/models", handler=models.list_models, summary="The served model.", given=ModelList),
    Endpoint(
        method="GET",
        path="/v1/models/{model:path}",
        handler=models.retrieve_model,
        summary="One model by its name.",
        given=Model,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=tokenize,
        summary="Token ids of a text or conversation.",
        asked=TokenizeRequest,
        given=TokenizeResponse,
        example={"prompt": "Hello world"},
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        handler=detokenize,
        summary="The text of token ids.",
        asked=DetokenizeRequest,
        given=DetokenizeResponse,
        example={"tokens": [1, 2, 3]},
    ),
    Endpoint(
        method="GET",
        path="/tokenizer_info",
        handler=tokenizer_info,
        summary="Special tokens and chat template, for clients that tokenize by this server.",
        given=TokenizerInfo,
    ),
    Endpoint(
        method="POST",
        path="/apply-template",
        handler=apply_template,
        summary="The prompt of a chat request as text.",
        asked=ChatCompletionRequest,
        given=RenderedPrompt,
        example={"messages": [{"role": "user", "content": "Hello"}]},
    ),
    Endpoint(
        method="GET",
        path="/props",
        handler=props.props,
        summary="What is served and how, as llama.cpp tells it.",
        given=props.Props,
    ),
    Endpoint(
        method="GET",
        path="/version",
        handler=props.version,
        summary="The version of this server.",
        given=props.Version,
        needs_model=False,
    ),
    Endpoint(
        method="GET",
        path="/health",
        handler=system.health,
        summary="200 while the server lives.",
        given=system.Health,
        is_open=True,
        needs_model=False,
    ),
    Endpoint(
        method="GET",
        path="/live",
        handler=system.live,
        summary="200 while the server lives, under the name that probes of containers use.",
        given=system.Live,
        is_open=True,
        needs_model=False,
    ),
    Endpoint(
        method="GET",
        path="/ready",
        handler=system.ready,
        summary="200 once the model answers, else 503.",
        given=system.Ready,
        special={503: system.Ready},
        is_open=True,
    ),
    Endpoint(
        method="GET",
        path="/v1/metrics",
        handler=system.system_metrics,
        summary="The machine and the engine as JSON.",
        given=system.SystemMetrics,
        needs_model=False,
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=system.prometheus,
        summary="Counters, histograms and gauges for Prometheus.",
        needs_model=False,
    ),
    Endpoint(method="GET", path="/docs", handler=docs.page, summary="This page.", is_open=True, is_documented=False),
    Endpoint(
        method="GET",
        path="/openapi.json",
        handler=docs.openapi,
        summary="The routes.",
        is_open=True,
        is_documented=False,
    ),
)

SITE = Site(ENDPOINTS, worded, unserved)
