"""`octavo serve` with the demo model: what it writes under a constraint matches it, however it is asked for; a hostile
constraint is its own request's trouble alone."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from patience import PATIENCE_S
from random_schemas import schemas
from served import Octavo, wait_until

EXAMPLES = int(os.environ.get("OCTAVO_TEST_EXAMPLES", "20"))
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "format": "email", "maxLength": 40},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "email", "born", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {"tree": {
        "type": "object",
        "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9},
                       "left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
        "required": ["value", "left"], "additionalProperties": False,
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def octavo(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octavo]:
    options = ["--port", "0", "--threads", "1", "--max-model-len", "1024", "--kv-cache-memory", "96MiB"]
    served = Octavo(tmp_path_factory.mktemp("structured"), "serve", str(demo_gguf), *options)
    try:
        yield served.started()
    finally:
        served.close()


def post(octavo: Octavo, path: str, **body: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def complete(octavo: Octavo, **fields: Any) -> list[dict[str, Any]]:
    """The choices."""
    body = {"prompt": "A person, as JSON:", "max_tokens": 160, "temperature": 0, **fields}
    status, data = post(octavo, "/v1/completions", **body)
    assert status == 200, data
    return list(json.loads(data)["choices"])


def streamed(octavo: Octavo, **fields: Any) -> tuple[str, str | None]:
    """(text, finish_reason)"""
    status, data = post(octavo, "/v1/completions", prompt="A person, as JSON:", stream=True, **fields)
    assert status == 200, data
    chunks = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_random_schemas_are_kept(octavo: Octavo, schema: dict[str, Any], seed: int) -> None:
    body = {"prompt": "JSON:", "max_tokens": 60, "temperature": 1.0, "seed": seed, "n": 2, "guided_json": schema}
    status, data = post(octavo, "/v1/completions", **body)
    answer = json.loads(data)
    if status != 200:
        assert status == 400 and answer["error"]["param"] == "guided_json", answer
        return
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for choice in answer["choices"]:
        if choice["finish_reason"] == "stop":
            assert not list(validator.iter_errors(json.loads(choice["text"]))), choice["text"]


def test_a_schema_with_everything(octavo: Octavo) -> None:
    validator = Draft202012Validator(PERSON, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for fields in (
        {},
        {"temperature": 1.2, "seed": 5, "n": 3, "logprobs": 3},
        {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
        {
            "temperature": 2.0,
            "top_p": 0.9,
            "min_p": 0.01,
            "logit_bias": {"5": 3},
            "bad_words": ["Alice"],
            "min_tokens": 3,
        },
        {"best_of": 3, "temperature": 1.0, "seed": 1},
    ):
        for choice in complete(octavo, guided_json=PERSON, max_tokens=400, **fields):
            assert choice["finish_reason"] == "stop", choice
            assert not list(validator.iter_errors(json.loads(choice["text"]))), choice["text"]
            if choice["logprobs"] is not None:
                assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_choice": ["red", "green", "blue"]}, "red|green|blue"),
        ({"guided_regex": r"\d{3}-\w{2,5}\s[^\W\d]"}, r"\d{3}-\w{2,5}\s[^\W\d]"),
        ({"structured_outputs": {"regex": r"(19|20)\d\d-[01]\d"}}, r"(19|20)\d\d-[01]\d"),
        ({"grammar": 'root ::= t ("+" t){1,3}\nt ::= [0-9]{1,2} | "(" root ")"'}, r"[0-9+()]+"),
        ({"guided_grammar": 'start: WORD (" " WORD){2}\nWORD: /[a-z]{2,5}/'}, "[a-z]{2,5}( [a-z]{2,5}){2}"),
    ],
)
def test_regexes_choices_and_grammars(octavo: Octavo, fields: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        for choice in complete(octavo, temperature=1.5, seed=seed, n=2, **fields):
            if choice["finish_reason"] == "stop":
                assert re.fullmatch(pattern, choice["text"]), choice["text"]


def test_recursion(octavo: Octavo) -> None:
    ended = 0
    for seed in range(3):
        (choice,) = complete(octavo, json_schema=TREE, temperature=1.5, seed=seed, max_tokens=150)
        if choice["finish_reason"] == "stop":
            ended += 1
            Draft202012Validator(TREE).validate(json.loads(choice["text"]))
    assert ended


def test_the_stream_is_the_same(octavo: Octavo) -> None:
    fields = {"guided_json": PERSON, "max_tokens": 300, "temperature": 0.8, "seed": 11}
    (whole,) = complete(octavo, **fields)
    assert streamed(octavo, **fields) == (whole["text"], whole["finish_reason"])


def test_stop_strings_cut_it_short(octavo: Octavo) -> None:
    (choice,) = complete(octavo, guided_json=PERSON, stop=['"age"'])
    assert choice["stop_reason"] == '"age"' and choice["text"].startswith("{") and '"age"' not in choice["text"]


def test_hostile_grammars_disturb_nobody(octavo: Octavo) -> None:
    """T-DEEP, T-BADGRAM, T-REDOS: with other streams running."""
    chain = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(5_000)) + 'r5000: "a"\n'
    hostile: list[dict[str, Any]] = [
        {"guided_grammar": chain},
        {"guided_grammar": "start: " + "(" * 60_000},
        {"grammar": "root ::= " + "(" * 60_000},
        {"guided_json": {"$ref": "#"}},
        {"guided_json": '{"items":' * 10_000},
        {"guided_regex": "a{1,1000000000}"},
        {"guided_grammar": "start: start"},
        {"structured_outputs": {"json": {"pattern": "(?!a)"}}},
    ]
    alone = octavo.stream(40).result()
    running = [octavo.stream(40) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda fields: post(octavo, "/v1/completions", prompt="x", **fields), hostile))
    for (status, data), fields in zip(answers, hostile, strict=True):
        error = json.loads(data)["error"]
        assert status == 400 and error["param"] == next(iter(fields)), error
    assert [stream.result() for stream in running] == [alone] * 3
    (choice,) = complete(octavo, guided_choice=["fine"])
    assert choice["text"] == "fine"
    wait_until(lambda: octavo.running() == 0, "no request left")
    children = [c for c in psutil.Process(octavo.child("octavo-server").pid).children() if c.is_running()]
    assert len(children) <= 1
