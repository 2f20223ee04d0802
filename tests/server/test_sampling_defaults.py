"""Sampling options of `octavo serve` hold for requests that give none, on every face; what one gives is its own."""

from __future__ import annotations

from typing import Any

import pytest
from server_harness import HELLO, Api, run

from octavo.client.base import Prompt
from octavo.config import ServerConfig
from octavo.config.commands import ServeSampling, plain
from octavo.types import SamplingParams

GIVEN: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.2,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.2,
    "max_tokens": 5,
    "min_tokens": 2,
    "stop": ["stop here"],
    "stop_token_ids": [65],
    "ignore_eos": True,
    "logit_bias": {66: -3.0},
    "bad_words": ["zz"],
    "allowed_token_ids": list(range(32, 127)),
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
}
CONFIG = ServerConfig(sampling=plain(ServeSampling(**GIVEN)))
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "abc"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"model": "fake-model", "messages": HELLO, "max_tokens": 4},
}


def asked(path: str, config: ServerConfig, **fields: Any) -> tuple[SamplingParams, Prompt]:
    """What reaches the engine's client."""
    seen: list[tuple[SamplingParams, Prompt]] = []

    async def test(api: Api) -> None:
        generate = api.engine.generate

        async def watched(prompt: Prompt, params: SamplingParams) -> Any:
            seen.append((params, prompt))
            return await generate(prompt, params)

        api.engine.generate = watched  # type: ignore[method-assign]
        response = await api.post(path, **{**BODIES[path], **fields})
        assert response.status_code == 200, response.text

    run(test, config)
    return seen[0]


def test_all_options_of_serve_are_tried() -> None:
    assert set(GIVEN) == set(SamplingParams.__struct_fields__) - ServeSampling.LEFT_OUT


@pytest.mark.parametrize("path", BODIES)
def test_a_request_that_gives_nothing_gets_the_operators(path: str) -> None:
    params, _ = asked(path, CONFIG)
    expected = {**GIVEN, "max_tokens": 4 if path == "/v1/messages" else 5}  # which messages have to give
    assert {name: getattr(params, name) for name in GIVEN} == expected


@pytest.mark.parametrize("path", BODIES)
def test_what_a_request_gives_is_its_own_also_where_it_is_neutral(path: str) -> None:
    own = {
        "temperature": 1,
        "top_p": 1.0,
        "presence_penalty": 0,
        "min_tokens": 0,
        "top_k": None,
        "logit_bias": {"67": 1},
    }
    params, _ = asked(path, CONFIG, **own)
    assert (params.temperature, params.top_p, params.presence_penalty, params.min_tokens) == (1, 1, 0, 0)
    assert params.top_k == 7 and params.logit_bias == {67: 1.0} and params.frequency_penalty == -0.5


def test_a_conversation_is_marked_as_one() -> None:
    for path in BODIES:
        _, prompt = asked(path, ServerConfig())
        assert prompt.is_conversation == (path != "/v1/completions")
