"""POST /v1/embeddings over the fake engine, whose pooled states are sums of token ids: forms of input and answer, what
is refused, many inputs; and the arithmetic of client/embedding.py."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest
from server_harness import Api, error_of, run

from octavo.client.embedding import finished, numbers
from octavo.client.fake import HIDDEN_SIZE

PATH = "/v1/embeddings"


def expected(ids: list[int], dimensions: int = HIDDEN_SIZE) -> list[float]:
    sums = [float(sum(ids[i::HIDDEN_SIZE])) for i in range(dimensions)]
    length = math.sqrt(sum(x * x for x in sums))
    return [x / length for x in sums]


def vectors(body: dict[str, Any]) -> list[list[float]]:
    assert [entry["index"] for entry in body["data"]] == list(range(len(body["data"])))
    assert {entry["object"] for entry in body["data"]} == {"embedding"}
    return [entry["embedding"] for entry in body["data"]]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("abc", [[97, 98, 99]]),
        (["abc", "hi"], [[97, 98, 99], [104, 105]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7] * 20], [[5, 6], [7] * 20]),
    ],
)
def test_inputs_of_every_form(given: Any, ids: list[list[int]]) -> None:
    async def test(api: Api) -> None:
        answer = await api.post(PATH, input=given, model="fake-model", user="me", encoding_format="float")
        body = answer.json()
        assert answer.status_code == 200 and body["object"] == "list" and body["model"] == "fake-model"
        tokens = sum(map(len, ids))
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert vectors(body) == [pytest.approx(expected(each), abs=1e-6) for each in ids]

    run(test)


def test_base64_and_fewer_dimensions() -> None:
    async def test(api: Api) -> None:
        for pooling in ("mean", "last"):
            answer = await api.post(PATH, input="abc", encoding_format="base64", dimensions=2, pooling=pooling)
            (text,) = vectors(answer.json())
            assert struct.unpack("<2f", base64.b64decode(text)) == pytest.approx(expected([97, 98, 99], 2), abs=1e-6)

    run(test)


def test_more_inputs_than_the_engine_holds_come_in_waves() -> None:
    async def test(api: Api) -> None:
        answer = await api.post(PATH, input=[[n % 200 + 1, 3] for n in range(60)])
        assert vectors(answer.json()) == [pytest.approx(expected([n % 200 + 1, 3]), abs=1e-6) for n in range(60)]

    run(test, max_num_seqs=4, max_queued_requests=4)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[1], 2]}, "input"),
        ({"input": "a\0b"}, "input"),
        ({"input": [[259]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a" * 3000}, "input"),
        ({"input": 7}, "input"),
        ({"input": "a", "dimensions": HIDDEN_SIZE + 1}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], param: str) -> None:
    async def test(api: Api) -> None:
        error = error_of(await api.post(PATH, **body), 400)
        assert error["param"] == param
        if body.get("input") == "a" * 3000:
            assert error["code"] == "context_length_exceeded"

    run(test)


def test_another_model_is_not_found() -> None:
    async def test(api: Api) -> None:
        assert error_of(await api.post(PATH, input="a", model="other"), 404)["code"] == "model_not_found"

    run(test)


def test_a_zero_vector_stays_one() -> None:
    assert numbers(finished(struct.pack("<3f", 0, 0, 0))) == [0, 0, 0]
    assert numbers(finished(struct.pack("<3f", 3, 4, 12), 2)) == pytest.approx([0.6, 0.8])
