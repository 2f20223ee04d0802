"""The fields that say what the output must match: each understood, all named in errors, never two at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_harness import Api, run

from octavo.client.base import Prompt
from octavo.types import SamplingParams

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}
UNDERSTOOD: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_object", "schema": PERSON}},
    {"response_format": SCHEMA_FORMAT},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": True, "strict": None}}},
    {"structured_outputs": {"json": PERSON}},
    {"structured_outputs": {"json": json.dumps(PERSON), "regex": None}},
    {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
    {"structured_outputs": {"regex": r"\d+"}},
    {"structured_outputs": {"choice": ["a", "b"]}},
    {"structured_outputs": {"grammar": 'root ::= "a"'}},
    {"guided_json": PERSON, "guided_decoding_backend": "outlines", "guided_whitespace_pattern": "[ ]?"},
    {"guided_json": json.dumps(PERSON)},
    {"guided_regex": "[a-z]{3}"},
    {"guided_choice": ["yes", "no"]},
    {"guided_grammar": 'start: "a" | "b"'},
    {"grammar": 'root ::= [0-9]+ ("," [0-9]+)*'},
    {"json_schema": PERSON},
    {"json_schema": {}},
]
TEXT: list[dict[str, Any]] = [
    {}, {"response_format": {"type": "text"}}, {"response_format": None, "grammar": None, "structured_outputs": None},
    {"guided_decoding_backend": "xgrammar"},
]  # fmt: skip
TOGETHER: dict[str, Any] = {
    "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 3, "stop": ["x"], "presence_penalty": 0.5,
    "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"5": 1}, "temperature": 0.7,
}  # fmt: skip


def grammars(api: Api) -> list[str | None]:
    """Of the prompts that reach the engine from now on."""
    seen: list[str | None] = []
    generate = api.engine.generate

    async def spy(prompt: Prompt, params: SamplingParams) -> Any:
        seen.append(prompt.grammar)
        return await generate(prompt, params)

    api.engine.generate = spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("fields", UNDERSTOOD, ids=[json.dumps(f)[:50] for f in UNDERSTOOD])
def test_understood_on_every_route_with_everything(fields: dict[str, Any]) -> None:
    async def test(api: Api) -> None:
        seen = grammars(api)
        for response in (
            await api.chat(max_tokens=3, **fields),
            await api.chat(max_tokens=3, **fields, **TOGETHER),
            await api.chat(max_tokens=3, stream=True, **fields),
            await api.complete(max_tokens=3, **fields),
            await api.complete(max_tokens=3, stream=True, echo=True, **{**fields, "prompt": ["a", [1, 2]]}),
        ):
            assert response.status_code == 200, response.text
        assert len(seen) == 6 and len(set(seen)) == 1
        assert seen[0] is not None and "start:" in seen[0]

    run(test)


@pytest.mark.parametrize("fields", TEXT)
def test_text_has_no_grammar(fields: dict[str, Any]) -> None:
    async def test(api: Api) -> None:
        seen = grammars(api)
        assert (await api.chat(max_tokens=3, **fields)).status_code == 200
        assert (await api.complete(max_tokens=3, **fields)).status_code == 200
        assert seen == [None, None]

    run(test)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "yaml"}}, "response_format.type", "json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}, "response_format", "type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "response_format.json_schema", ""),
    ({"response_format": {"type": 3}}, "response_format.type", ""),
    ({"response_format": "json"}, "response_format", ""),
    ({"response_format": {}}, "response_format.type", "required"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "regex and choice"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs", "regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", ""),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs", "structural_tag"),
    ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs", "uniqueItems"),
    ({"guided_json": {"$ref": "#/$defs/none"}}, "guided_json", r"\$ref"),
    ({"guided_json": "{"}, "guided_json", "JSON"),
    ({"guided_regex": "a{3,1}"}, "guided_regex", "bounds"),
    ({"guided_regex": 3}, "guided_regex", ""),
    ({"guided_choice": [1]}, "guided_choice", ""),
    ({"guided_choice": [""]}, "guided_choice", "empty"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
    ({"guided_grammar": 'root ::= "a'}, "guided_grammar", "closed"),
    ({"grammar": ""}, "grammar", "empty"),
    ({"grammar": "root ::= root"}, "grammar", "end"),
    ({"json_schema": {"type": "object", "required": ["a"], "properties": {"a": False}}}, "json_schema", ""),
    ({"json_schema": False}, "json_schema", ""),
    ({"grammar": 'root ::= "a"', "guided_choice": ["a"]}, "grammar", "one of them"),
    ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), WRONG, ids=[json.dumps(f[0])[:50] for f in WRONG])
def test_wrong_ones_are_named(fields: dict[str, Any], param: str, words: str) -> None:
    """T-BADGRAM."""

    async def test(api: Api) -> None:
        for stream in (False, True):
            for response in (await api.chat(stream=stream, **fields), await api.complete(stream=stream, **fields)):
                assert response.status_code == 400, response.text
                error = response.json()["error"]
                assert error["type"] == "invalid_request_error"
                assert error["param"].startswith(param), error
                assert words.replace("\\", "") in error["message"], error
        await api.settled()

    run(test)


def test_strict_closes_objects() -> None:
    """OpenAI wants `additionalProperties: false` there; without `strict` an open object stays open."""
    is_open = {"type": "object", "properties": {"a": {"type": "integer"}}}

    async def test(api: Api) -> None:
        seen = grammars(api)
        for strict in (True, False, None):
            fields = {"type": "json_schema", "json_schema": {"name": "p", "strict": strict, "schema": is_open}}
            assert (await api.chat(max_tokens=3, response_format=fields)).status_code == 200
        assert ['"additionalProperties": false' in (grammar or "") for grammar in seen] == [True, False, False]

    run(test)


def test_a_large_schema_leaves_the_loop_alone() -> None:
    """It is written as a grammar in a thread."""
    schema = {"type": "object", "properties": {f"property_{i}": {"type": "integer"} for i in range(2_000)}}

    async def test(api: Api) -> None:
        assert (await api.complete(max_tokens=1, guided_json=schema)).status_code == 200

    run(test)
