"""Every route there is, one row each: the application, /openapi.json and /docs derive from this table.

Adding an endpoint: its handler, its structs, a row here.
"""

from __future__ import annotations

from octavo.server.faces import models
from octavo.server.faces.anthropic import handlers as anthropic
from octavo.server.faces.anthropic import protocol as messages
from octavo.server.faces.anthropic.errors import AnthropicErrorResponse
from octavo.server.faces.openai import completions, embeddings, tokenize
from octavo.server.faces.openai.chat import chat_completions
from octavo.server.faces.openai.errors import ErrorResponse
from octavo.server.faces.openai.protocol import chat
from octavo.server.faces.openai.protocol import responses as items
from octavo.server.faces.openai.responses import handlers as responses
from octavo.server.faces.openai.written import WrittenDecoder
from octavo.server.faces.service import docs, props, system
from octavo.server.faces.unserved import unserved
from octavo.server.faces.wording import worded
from octavo.server.http.call import post
from octavo.server.http.endpoint import Endpoint, Site

ENDPOINTS: tuple[Endpoint, ...] = (
    post(
        "/v1/chat/completions",
        chat_completions,
        "Answer a conversation; with `stream: true` as server-sent events.",
        asked=chat.ChatCompletionRequest,
        decoder=WrittenDecoder,
        given=chat.ChatCompletion,
        generates=True,
        streamed=chat.ChatCompletionChunk,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
    ),
    post(
        "/v1/completions",
        completions.completions,
        "Continue texts or token ids; with `stream: true` as server-sent events.",
        asked=completions.CompletionRequest,
        given=completions.Completion,
        generates=True,
        streamed=completions.Completion,
        example={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    ),
    post(
        "/v1/embeddings",
        embeddings.embeddings,
        "Texts or token ids as vectors of length 1: the model's hidden states, pooled.",
        asked=embeddings.EmbeddingRequest,
        given=embeddings.EmbeddingList,
        generates=True,
        example={"input": "The quick brown fox"},
    ),
    post(
        "/v1/responses",
        responses.create,
        "Answer an input, going on from a stored response; with `stream: true` as server-sent events.",
        asked=items.ResponsesRequest,
        given=items.ResponseObject,
        generates=True,
        streamed=items.ResponseEvent,
        example={"input": "Why is the sky blue?", "max_output_tokens": 64},
    ),
    Endpoint(
        "/v1/responses/{response_id}",
        responses.retrieve,
        "A stored response.",
        given=items.ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    Endpoint(
        "/v1/responses/{response_id}",
        responses.delete,
        "Forget a stored response.",
        method="DELETE",
        given=items.DeletedResponse,
        needs_model=False,
    ),
    Endpoint(
        "/v1/responses/{response_id}/input_items",
        responses.input_items,
        "What came in with a stored response.",
        given=items.InputItemList,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    Endpoint(
        "/v1/responses/{response_id}/cancel",
        responses.cancel,
        "Refused: no response runs in the background.",
        method="POST",
        given=items.ResponseObject,
        special={400: ErrorResponse},
        needs_model=False,
    ),
    post(
        "/v1/messages",
        anthropic.messages,
        "Answer a conversation in Anthropic's form; with `stream: true` as server-sent events.",
        asked=messages.MessagesRequest,
        given=messages.AnthropicMessage,
        generates=True,
        streamed=messages.MessageEvent,
        problem=AnthropicErrorResponse,
    ),
    post(
        "/v1/messages/count_tokens",
        anthropic.count_tokens,
        "How many tokens a conversation in Anthropic's form is.",
        asked=messages.CountTokensRequest,
        given=messages.TokenCount,
        problem=AnthropicErrorResponse,
    ),
    Endpoint("/v1/models", models.list_models, "The served model.", given=models.ModelList),
    Endpoint("/v1/models/{model:path}", models.retrieve_model, "One model by its name.", given=models.Model),
    post(
        "/tokenize",
        tokenize.tokenize,
        "Token ids of a text or conversation.",
        asked=tokenize.TokenizeRequest,
        decoder=WrittenDecoder,
        given=tokenize.TokenizeResponse,
        example={"prompt": "Hello world"},
    ),
    post(
        "/detokenize",
        tokenize.detokenize,
        "The text of token ids.",
        asked=tokenize.DetokenizeRequest,
        given=tokenize.DetokenizeResponse,
        example={"tokens": [1, 2, 3]},
    ),
    Endpoint(
        "/tokenizer_info",
        tokenize.tokenizer_info,
        "Special tokens and chat template, for clients that tokenize by this server.",
        given=tokenize.TokenizerInfo,
    ),
    post(
        "/apply-template",
        tokenize.apply_template,
        "The prompt of a chat request as text.",
        asked=chat.ChatCompletionRequest,
        decoder=WrittenDecoder,
        given=tokenize.RenderedPrompt,
        example={"messages": [{"role": "user", "content": "Hello"}]},
    ),
    Endpoint("/props", props.props, "What is served and how, as llama.cpp tells it.", given=props.Props),
    Endpoint("/version", props.version, "The version of this server.", given=props.Version, needs_model=False),
    Endpoint(
        "/health", system.health, "200 while the server lives.", given=system.Health, is_open=True, needs_model=False
    ),
    Endpoint(
        "/live",
        system.live,
        "200 while the server lives, under the name that probes of containers use.",
        given=system.Live,
        is_open=True,
        needs_model=False,
    ),
    Endpoint(
        "/ready",
        system.ready,
        "200 once the model answers, else 503.",
        given=system.Ready,
        special={503: system.Ready},
        is_open=True,
    ),
    Endpoint(
        "/v1/metrics",
        system.system_metrics,
        "The machine and the engine as JSON.",
        given=system.SystemMetrics,
        needs_model=False,
    ),
    Endpoint("/metrics", system.prometheus, "Counters, histograms and gauges for Prometheus.", needs_model=False),
    Endpoint("/docs", docs.page, "This page.", is_open=True, is_documented=False),
    Endpoint("/openapi.json", docs.openapi, "The routes.", is_open=True, is_documented=False),
)

SITE = Site(ENDPOINTS, worded, unserved)
