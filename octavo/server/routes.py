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
from octavo.server.http.endpoint import Endpoint, Site, delete, get, post

ENDPOINTS: tuple[Endpoint, ...] = (
    post(
        "/v1/chat/completions",
        chat_completions,
        "Answer a conversation; with `stream: true` as server-sent events.",
        asked=ChatCompletionRequest,
        given=ChatCompletion,
        streamed=ChatCompletionChunk,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
    ),
    post(
        "/v1/completions",
        completions,
        "Continue texts or token ids; with `stream: true` as server-sent events.",
        asked=CompletionRequest,
        given=Completion,
        streamed=Completion,
        example={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    ),
    post(
        "/v1/embeddings",
        embeddings,
        "Texts or token ids as vectors of length 1: the model's hidden states, pooled.",
        asked=EmbeddingRequest,
        given=EmbeddingList,
        example={"input": "The quick brown fox"},
    ),
    post(
        "/v1/responses",
        responses.create,
        "Answer an input, going on from a stored response; with `stream: true` as server-sent events.",
        asked=ResponsesRequest,
        given=ResponseObject,
        streamed=ResponseEvent,
        example={"input": "Why is the sky blue?", "max_output_tokens": 64},
    ),
    get(
        "/v1/responses/{response_id}",
        responses.retrieve,
        "A stored response.",
        given=ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    delete(
        "/v1/responses/{response_id}",
        responses.delete,
        "Forget a stored response.",
        given=DeletedResponse,
        needs_model=False,
    ),
    get(
        "/v1/responses/{response_id}/input_items",
        responses.input_items,
        "What came in with a stored response.",
        given=InputItemList,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    post(
        "/v1/responses/{response_id}/cancel",
        responses.cancel,
        "Refused: no response runs in the background.",
        given=ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    post(
        "/v1/messages",
        anthropic.messages,
        "Answer a conversation in Anthropic's form; with `stream: true` as server-sent events.",
        asked=MessagesRequest,
        given=AnthropicMessage,
        streamed=MessageEvent,
        problem=AnthropicErrorResponse,
    ),
    post(
        "/v1/messages/count_tokens",
        anthropic.count_tokens,
        "How many tokens a conversation in Anthropic's form is.",
        asked=CountTokensRequest,
        given=TokenCount,
        problem=AnthropicErrorResponse,
    ),
    get("/v1/models", models.list_models, "The served model.", given=ModelList),
    get("/v1/models/{model:path}", models.retrieve_model, "One model by its name.", given=Model),
    post(
        "/tokenize",
        tokenize,
        "Token ids of a text or conversation.",
        asked=TokenizeRequest,
        given=TokenizeResponse,
        example={"prompt": "Hello world"},
    ),
    post(
        "/detokenize",
        detokenize,
        "The text of token ids.",
        asked=DetokenizeRequest,
        given=DetokenizeResponse,
        example={"tokens": [1, 2, 3]},
    ),
    get(
        "/tokenizer_info",
        tokenizer_info,
        "Special tokens and chat template, for clients that tokenize by this server.",
        given=TokenizerInfo,
    ),
    post(
        "/apply-template",
        apply_template,
        "The prompt of a chat request as text.",
        asked=ChatCompletionRequest,
        given=RenderedPrompt,
        example={"messages": [{"role": "user", "content": "Hello"}]},
    ),
    get("/props", props.props, "What is served and how, as llama.cpp tells it.", given=props.Props),
    get("/version", props.version, "The version of this server.", given=props.Version, needs_model=False),
    get("/health", system.health, "200 while the server lives.", given=system.Health, is_open=True, needs_model=False),
    get(
        "/live",
        system.live,
        "200 while the server lives, under the name that probes of containers use.",
        given=system.Live,
        is_open=True,
        needs_model=False,
    ),
    get(
        "/ready",
        system.ready,
        "200 once the model answers, else 503.",
        given=system.Ready,
        special={503: system.Ready},
        is_open=True,
    ),
    get(
        "/v1/metrics",
        system.system_metrics,
        "The machine and the engine as JSON.",
        given=system.SystemMetrics,
        needs_model=False,
    ),
    get("/metrics", system.prometheus, "Counters, histograms and gauges for Prometheus.", needs_model=False),
    get("/docs", docs.page, "This page.", is_open=True, is_documented=False),
    get("/openapi.json", docs.openapi, "The routes.", is_open=True, is_documented=False),
)

SITE = Site(ENDPOINTS, worded, unserved)
