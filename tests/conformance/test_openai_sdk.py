"""The official Python client with strict response validation, over every method that is served.

Strict: an answer that lacks a field of OpenAI's published document, or has one of another type, is an error; the
client's types are generated from that document. Requests carry every parameter that the document knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

HELLO: list[Any] = [{"role": "developer", "content": "Be brief.", "name": "name"}, {"role": "user", "content": "hi"}]
SEARCH = {
    "search_context_size": "low",
    "user_location": {"type": "approximate", "approximate": {"city": "Bern", "country": "CH", "timezone": "CET"}},
}
FUNCTION = {"name": "look", "description": "Looks.", "parameters": {"foo": "bar"}}
EVERYTHING: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "frequency_penalty": -2,
    "function_call": "none",
    "functions": [FUNCTION],
    "logit_bias": {"foo": 0},
    "logprobs": True,
    "max_completion_tokens": 8,
    "max_tokens": 0,
    "metadata": {"foo": "string"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "string"},
    "presence_penalty": -2,
    "prompt_cache_key": "key-1234",
    "prompt_cache_retention": "in_memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "identifier-1234",
    "seed": -9007199254740991,
    "service_tier": "auto",
    "stop": "\n",
    "store": True,
    "temperature": 1,
    "tool_choice": "none",
    "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}],
    "top_logprobs": 0,
    "top_p": 1,
    "user": "user-1234",
    "verbosity": "low",
    "web_search_options": SEARCH,
}

SCORED: dict[str, Any] = {
    "best_of": 0,
    "frequency_penalty": -2,
    "logit_bias": {"foo": 0},
    "logprobs": 0,
    "max_tokens": 16,
    "n": 1,
    "presence_penalty": -2,
    "seed": 0,
    "stop": "\n",
    "temperature": 1,
    "top_p": 1,
    "user": "user-1234",
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True) as found:
        yield found


@pytest.mark.parametrize("fields", [{}, EVERYTHING, {**EVERYTHING, "max_completion_tokens": 0}], ids=len)
def test_chat(client: OpenAI, model: str, fields: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, **fields)
    choice = answer.choices[0]
    assert choice.message.content is not None and choice.finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.system_fingerprint
    assert (choice.logprobs is not None) == bool(fields)


@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=len)
def test_chat_streamed(client: OpenAI, model: str, fields: dict[str, Any]) -> None:
    options: Any = {"include_usage": True, "include_obfuscation": True}
    stream = client.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options=options, **fields)
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens > 0
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in [*chunks, last]}) == 1


def test_the_streaming_helper_arrives_at_the_plain_answer(client: OpenAI, model: str) -> None:
    plain = client.chat.completions.create(model=model, messages=HELLO, temperature=0, seed=1)
    with client.chat.completions.stream(model=model, messages=HELLO, temperature=0, seed=1) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_completions(client: OpenAI, model: str) -> None:
    assert client.completions.create(model=model, prompt="This is a test.").choices[0].text
    scored = client.completions.create(model=model, prompt="This is a test.", **SCORED).choices[0]
    assert scored.logprobs is not None and scored.logprobs.tokens
    echoed = client.completions.create(model=model, prompt="This is a test.", echo=True, max_tokens=1)
    assert echoed.choices[0].text.startswith("This is a test.")


def test_completions_streamed(url: str, model: str) -> None:
    # Not strictly: the document has no null finish_reason, which all but the last chunk have, OpenAI's own too.
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.completions.create(model=model, prompt="This", max_tokens=4, stream=True, temperature=0))
        whole = client.completions.create(model=model, prompt="This", max_tokens=4, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "length"]


RESPONSE: dict[str, Any] = {
    "include": ["file_search_call.results", "reasoning.encrypted_content"],
    "instructions": "instructions",
    "max_output_tokens": 16,
    "max_tool_calls": 0,
    "metadata": {"foo": "string"},
    "parallel_tool_calls": True,
    "prompt_cache_key": "key-1234",
    "prompt_cache_retention": "in_memory",
    "reasoning": {"effort": "low", "summary": "auto"},
    "safety_identifier": "identifier-1234",
    "service_tier": "auto",
    "store": True,
    "temperature": 1,
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "tool_choice": "none",
    "tools": [{"type": "function", **FUNCTION, "strict": True}],
    "top_logprobs": 0,
    "top_p": 1,
    "truncation": "auto",
    "user": "user-1234",
}


@pytest.mark.parametrize("fields", [{}, RESPONSE], ids=len)
def test_responses(client: OpenAI, model: str, fields: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": model, "input": "string", "temperature": 0, **fields}
    answer = client.responses.create(**asked)
    assert answer.output_text and answer.status in ("completed", "incomplete") and answer.usage is not None
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    items = list(client.responses.input_items.list(answer.id))
    assert items and client.responses.create(**asked, previous_response_id=answer.id).previous_response_id == answer.id
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


@pytest.mark.parametrize("fields", [{}, RESPONSE], ids=len)
def test_responses_streamed(client: OpenAI, model: str, fields: dict[str, Any]) -> None:
    options: Any = {"include_obfuscation": False}
    asked: dict[str, Any] = {"model": model, "input": "string", "temperature": 0, **fields}
    events = list(client.responses.create(**asked, stream=True, stream_options=options))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete") and last.response.output_text == text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_embeddings(client: OpenAI, model: str, url: str) -> None:
    texts = ["The quick brown fox", "jumped over the lazy dog"]
    vectors = client.embeddings.create(model=model, input=texts, encoding_format="float", user="user-1234")
    assert [entry.index for entry in vectors.data] == [0, 1] and vectors.usage.total_tokens > 0
    assert (
        len(
            client.embeddings.create(model=model, input=texts[0], encoding_format="float", dimensions=4)
            .data[0]
            .embedding
        )
        == 4
    )
    # By default the client asks for base64, which its own strict validation does not know.
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as loose:
        packed = loose.embeddings.create(model=model, input=texts)
    for one, other in zip(vectors.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


def test_models(client: OpenAI, model: str) -> None:
    assert [found.id for found in client.models.list()] == [model]
    found = client.models.retrieve(model)
    assert found.object == "model" and found.created > 1_700_000_000 and found.owned_by


def test_raw_and_streaming_responses(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=2)
    assert raw.headers["x-request-id"] == raw.request_id and raw.parse().choices
    with client.completions.with_streaming_response.create(model=model, prompt="a", max_tokens=2) as response:
        assert response.parse().choices


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (openai.BadRequestError, {"temperature": 3e9}),
        (openai.BadRequestError, {"stream_options": {"include_usage": True}}),
        (openai.BadRequestError, {"top_logprobs": 21, "logprobs": True, "stream": True}),
        (openai.BadRequestError, {"modalities": ["text", "audio"]}),
        (openai.NotFoundError, {"model": "no-such-model"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value.__name__,
)
def test_failures_have_the_class_of_their_status(
    client: OpenAI, model: str, kind: type[openai.APIStatusError], fields: dict[str, Any]
) -> None:
    with pytest.raises(kind) as failure:
        client.chat.completions.create(**{"model": model, "messages": HELLO, **fields})
    error = failure.value
    assert error.request_id and error.param == next(iter(fields)) and isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
