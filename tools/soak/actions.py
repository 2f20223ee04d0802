"""What the soak's clients do: good requests whose answers are checked, requests that are left, and hostile ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.soak.client import Answer, post

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "green",
    "mat",
    "while",
    "seven",
    "old",
    "men",
    "told",
    "stories",
    "of",
    "rain",
]
_AGE = {"type": "integer", "minimum": 0, "maximum": 150}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": _AGE},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}


@dataclass(frozen=True)
class Known:
    """A greedy request and its undisturbed text."""

    body: dict[str, Any]
    text: str


def known_bodies(rng: random.Random, count: int, tokens: tuple[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(4, 80))),
            "max_tokens": rng.randint(*tokens),
            "temperature": 0,
            "ignore_eos": True,
        }
        for _ in range(count)
    ]


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 40, **fields}


def _is_record(answer: Answer) -> bool:
    """What was cut off by its limit need not be whole."""
    if answer.finish_reason != "stop":
        return answer.finish_reason == "length"
    value = json.loads(answer.text)
    return set(value) == {"name", "age"} and isinstance(value["age"], int)


def _has_call(answer: Answer) -> bool:
    if answer.finish_reason == "length":
        return True
    calls = answer.body["choices"][0]["message"]["tool_calls"]
    return bool(calls) and all(set(json.loads(call["function"]["arguments"])) == {"name", "age"} for call in calls)


def _came(answer: Answer) -> bool:
    return answer.complete and answer.error is None and answer.status == 200


def good(rng: random.Random, port: int, known: list[Known]) -> tuple[str, Answer, bool]:
    """→ (kind, answer, whether what came is right; only asked when it came whole)."""
    kind = rng.choice(
        ["known"] * 5 + ["sampled", "chat", "many", "json", "tools", "embedding", "responses", "messages"]
    )
    stream = rng.random() < 0.6
    if kind == "known":
        one = rng.choice(known)
        answer = post(port, "/v1/completions", {**one.body, "stream": stream})
        return kind, answer, answer.text == one.text
    if kind == "sampled":
        body = {**rng.choice(known).body, "temperature": 0.9, "top_p": 0.9, "frequency_penalty": 0.5, "stream": stream}
        return kind, post(port, "/v1/completions", body), True
    if kind == "many":
        body = {**rng.choice(known).body, "n": 3, "temperature": 0.7, "logprobs": 3, "echo": rng.random() < 0.5}
        return kind, post(port, "/v1/completions", body), True
    if kind == "json":
        form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
        answer = post(
            port, "/v1/chat/completions", chat("A person.", response_format=form, max_tokens=200, stream=stream)
        )
        return kind, answer, not _came(answer) or _is_record(answer)
    if kind == "tools":
        body = chat("The weather?", tools=[TOOL], tool_choice="required", max_tokens=200)
        answer = post(port, "/v1/chat/completions", body)
        return kind, answer, not _came(answer) or _has_call(answer)
    if kind == "embedding":
        return kind, post(port, "/v1/embeddings", {"input": [" ".join(rng.choices(WORDS, k=30))] * 2}), True
    if kind == "responses":
        body = {"input": "Say something.", "max_output_tokens": 20, "stream": stream}
        return kind, post(port, "/v1/responses", body), True
    if kind == "messages":
        body = {
            "model": "smollm2-135m",
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": stream,
        }
        return kind, post(port, "/v1/messages", body), True
    return kind, post(port, "/v1/chat/completions", chat(" ".join(rng.choices(WORDS, k=20)), stream=stream)), True


def leave(rng: random.Random, port: int, known: list[Known]) -> tuple[str, Answer, bool]:
    """A client that hangs up: while it is queued, computed, read; streamed or not."""
    body = {**rng.choice(known).body, "max_tokens": 400, "stream": rng.random() < 0.5, "n": rng.choice([1, 1, 2])}
    return "left", post(port, "/v1/completions", body, leave_after=rng.choice([0.002, 0.02, 0.2, 1.0, 3.0])), True


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice([100, 1000, 100_000])
    return b'{"prompt": "a", "max_tokens": 1, "response_format": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


HOSTILE: list[Callable[[random.Random], tuple[str, Any]]] = [
    lambda rng: ("/v1/completions", b"{" * rng.randint(1, 1000)),
    lambda rng: ("/v1/completions", {"prompt": "x", "n": rng.choice([10**9, -1, 2**63])}),
    lambda rng: ("/v1/completions", {"prompt": [1, rng.choice([10**7, -5])]}),
    lambda rng: ("/v1/completions", {"prompt": "x" * 200_000}),
    lambda rng: ("/v1/completions", {"prompt": "x", "logit_bias": {str(10**7): 1}}),
    lambda rng: ("/v1/completions", {"prompt": "x", "guided_regex": "(" * rng.randint(1, 5000)}),
    lambda rng: ("/v1/completions", {"prompt": "x", "guided_regex": f"((a{{1,999}}){{1,999}}){{1,999}}{rng.random()}"}),
    lambda rng: ("/v1/completions", {"prompt": "x", "guided_grammar": "root ::= root root | nothing"}),
    lambda rng: ("/v1/chat/completions", chat("x", response_format={"type": "json_schema", "json_schema": {
        "name": "x", "strict": True, "schema": {"$ref": "http://127.0.0.1:1/x"}}})),
    lambda rng: ("/v1/chat/completions", chat("x", tools=[{"type": "function", "function": {"name": 5}}])),
    lambda rng: ("/v1/chat/completions", chat("x", chat_template="{{ ''.__class__ }}")),
    lambda rng: ("/v1/chat/completions", chat("x", temperature=rng.choice([1e308, -1, "hot"]))),
    lambda rng: ("/v1/chat/completions", {"messages": rng.choice([[], None, [{}], "x"])}),
    lambda rng: ("/v1/completions", _deep(rng)),
    lambda rng: ("/v1/embeddings", {"input": [[10**9]]}),
    lambda rng: ("/v1/responses", {"input": [{"type": "nothing"}]}),
    lambda rng: ("/v1/messages", {"model": "smollm2-135m", "max_tokens": 0, "messages": []}),
    lambda rng: ("/v1/nothing/" + "x" * rng.randint(1, 5000), {}),
]  # fmt: skip


def hostile(rng: random.Random, port: int, _known: list[Known]) -> tuple[str, Answer, bool]:
    path, body = rng.choice(HOSTILE)(rng)
    answer = post(port, path, body)
    followed = isinstance(body, dict) and "guided_regex" in body and answer.status == 200  # large, but it can be done
    return "hostile", answer, not answer.complete or 400 <= answer.status < 500 or answer.status == 503 or followed


def look(rng: random.Random, port: int, _known: list[Known]) -> tuple[str, Answer, bool]:
    path = rng.choice(["/health", "/ready", "/metrics", "/v1/metrics", "/v1/models"])
    return "look", post(port, path, None, method="GET"), True


def act(rng: random.Random, port: int, known: list[Known]) -> tuple[str, Answer, bool]:
    share = rng.random()
    if share < 0.20:
        return leave(rng, port, known)
    if share < 0.35:
        return hostile(rng, port, known)
    return look(rng, port, known) if share < 0.38 else good(rng, port, known)
