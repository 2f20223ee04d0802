"""Routes of the APIs spoken here that are known and not served: each is a 404 that names it and what to use instead.

Asked only once no route of routes.py has matched, so a row can never hide one. Without it a path beside a served one
would be told that its method is wrong, as if another method did what was wanted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from octavo.server.core.errors import Refused

MAX_PATH = 200
"""Longer paths are none of these."""


class RouteNotServed(Refused, status=404, code="route_not_served"):
    """The route is known elsewhere."""


@dataclass(frozen=True)
class Row:
    """`method`: * for all. `path`: {} is one segment, a /* at its end that and all below. `what` completes "... is not
    served"; `instead`: a sentence of its own, or nothing."""

    method: str
    path: str
    what: str
    instead: str = ""


UNSERVED: tuple[Row, ...] = (
    # OpenAI: beside routes that are served
    Row("GET", "/v1/chat/completions", "listing stored chat completions"),
    Row("*", "/v1/chat/completions/{}/*", "storing chat completions", "/v1/responses stores what it answers."),
    Row("POST", "/v1/responses/input_tokens", "counting a response's input", "POST /tokenize counts tokens."),
    Row("POST", "/v1/responses/compact", "compacting a conversation", "Send the items that are still wanted."),
    Row("DELETE", "/v1/models/{}", "deleting a model"),
    # OpenAI: other families
    Row("*", "/v1/audio/*", "audio"),
    Row("*", "/v1/images/*", "making images"),
    Row("*", "/v1/videos/*", "making videos"),
    Row("*", "/v1/moderations", "moderation"),
    Row("*", "/v1/files/*", "storing files", "Send texts in the request."),
    Row("*", "/v1/uploads/*", "storing files", "Send texts in the request."),
    Row("*", "/v1/batches/*", "batches of requests", "Send them at once: they are computed together."),
    Row("*", "/v1/fine_tuning/*", "fine-tuning"),
    Row("*", "/v1/fine-tunes/*", "fine-tuning"),
    Row("*", "/v1/evals/*", "evaluation"),
    Row("*", "/v1/conversations/*", "the conversations API", "`previous_response_id` goes on from a response."),
    Row("*", "/v1/assistants/*", "the assistants API", "/v1/responses has what took its place."),
    Row("*", "/v1/threads/*", "the assistants API", "/v1/responses has what took its place."),
    Row("*", "/v1/vector_stores/*", "vector stores", "/v1/embeddings makes the vectors."),
    Row("*", "/v1/containers/*", "containers for code"),
    Row("*", "/v1/skills/*", "skills"),
    Row("*", "/v1/realtime/*", "the realtime API", "Streams are server-sent events, with `stream: true`."),
    Row("*", "/v1/organization/*", "the administration API"),
    Row("*", "/v1/edits", "the edits API", "POST /v1/chat/completions answers instructions."),
    Row("*", "/v1/engines/*", "the engines API", "GET /v1/models lists what is served."),
    # Anthropic
    Row("*", "/v1/messages/batches/*", "batches of messages", "Send them at once: they are computed together."),
    Row("POST", "/v1/complete", "Anthropic's text completion", "POST /v1/messages or /v1/completions."),
    # vLLM, llama.cpp, Text Generation Inference, Ollama
    Row("*", "/v1/rerank", "reranking"),
    Row("*", "/v2/rerank", "reranking"),
    Row("*", "/reranking", "reranking"),
    Row("*", "/v1/reranking", "reranking"),
    Row("*", "/v1/score", "scoring pairs", "/v1/embeddings makes the vectors."),
    Row("*", "/pooling", "pooling", "POST /v1/embeddings makes vectors."),
    Row("*", "/classify", "classification"),
    Row("*", "/ping", "/ping", "GET /live is 200 while the server lives."),
    Row("*", "/invocations", "/invocations", "POST /v1/chat/completions or /v1/completions."),
    Row("*", "/v1/load_lora_adapter", "LoRA"),
    Row("*", "/v1/unload_lora_adapter", "LoRA"),
    Row("*", "/lora-adapters", "LoRA"),
    Row("POST", "/completion", "llama.cpp's own completion", "POST /v1/completions takes the same prompts."),
    Row("POST", "/infill", "filling in the middle"),
    Row("POST", "/embedding", "llama.cpp's own embedding", "POST /v1/embeddings."),
    Row("*", "/slots/*", "llama.cpp's slots", "GET /v1/metrics tells what runs."),
    Row("POST", "/generate", "this form of completion", "POST /v1/completions."),
    Row("POST", "/generate_stream", "this form of completion", "POST /v1/completions with `stream: true`."),
    Row("*", "/api/*", "Ollama's API", "POST /v1/chat/completions; Ollama's clients have an OpenAI mode."),
)


def unserved(method: str, path: str) -> RouteNotServed | None:
    """The refusal of a known route that is not served; None for any other. With or without /v1, as the served ones."""
    if len(path) > MAX_PATH:
        return None
    for row in UNSERVED:
        if row.method in (method, "*") and _pattern(row.path).fullmatch(path):
            full = path if path.startswith(("/v1/", "/v2/", "/api")) else "/v1" + path
            name = full if row.path.startswith(("/v1/", "/v2/", "/api")) else row.path.removesuffix("/*")
            words = f"{method} {name} ({row.what}) is not served here."
            return RouteNotServed(f"{words} {row.instead or '/docs lists the routes that are.'}")
    return None


@cache
def _pattern(path: str) -> re.Pattern[str]:
    start = "(?:/v1)?" if path.startswith("/v1/") else ""
    path = path.removeprefix("/v1")
    is_tree = path.endswith("/*")
    return re.compile(
        start + re.escape(path.removesuffix("/*")).replace(r"\{\}", "[^/]+") + ("(?:/.*)?" if is_tree else "")
    )
