"""Every limit of a request has an error that names its field; every default is filled in."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.client import prepare as prepare_module
from octavo.client.base import Prompt
from octavo.client.fake import IM_END, VOCAB_SIZE, write_byte_tokenizer
from octavo.client.prepare import (
    CHAT_TEMPERATURE,
    CONVERSATION_MIN_P,
    Seeds,
    derived_seed,
    for_terminal,
    sequences,
)
from octavo.errors import ContextLengthExceeded, RequestError
from octavo.modelfiles.files import locate
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams
from octavo.wire.messages import Add


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_text("{}")
    write_byte_tokenizer(folder)
    return Tokenizer.load(locate(Path(folder)))


class Prepare:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(
        self,
        ids: list[int] | None = None,
        *,
        defaults: SamplingParams | None = None,
        max_model_len: int = 100,
        default_max_tokens: int | None = None,
        **fields: Any,
    ) -> list[Add]:
        return sequences(
            Prompt(token_ids=[1, 2, 3] if ids is None else ids),
            SamplingParams(**fields),
            tokenizer=self.tokenizer,
            defaults=defaults or SamplingParams(),
            max_model_len=max_model_len,
            default_max_tokens=default_max_tokens,
            base_seed=77,
        )


@pytest.fixture
def prepare(tokenizer: Tokenizer) -> Prepare:
    return Prepare(tokenizer)


BAD = [
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", -0.1),
    ("temperature", 101.0),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_p", math.nan),
    ("top_k", -2),
    ("min_p", -1.0),
    ("min_p", math.nan),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -math.inf),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", math.nan),
    ("seed", 2**63),
    ("n", 0),
    ("n", 129),
    ("best_of", 129),
    ("max_tokens", -1),
    ("min_tokens", -1),
    ("stop", ["x"] * 17),
    ("stop", [7]),
    ("stop", "x" * 1_001),
    ("stop", ["a", "x" * 1_001]),
    ("stop_token_ids", [VOCAB_SIZE]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [1] * 1025),
    ("logit_bias", {VOCAB_SIZE: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: 100.5}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {1: math.inf}),
    ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ("bad_words", [""]),
    ("bad_words", ["x" * 100]),
    ("bad_words", ["x"] * 1025),
    ("bad_words", ["x" * 1_001]),
    ("bad_words", ["x" * 60] * 600),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [1] * (VOCAB_SIZE + 1)),
    ("allowed_token_ids", [VOCAB_SIZE]),
    ("logprobs", 21),
    ("logprobs", -1),
    ("prompt_logprobs", 21),
    ("priority", 2**31),
    ("cache_salt", "x" * 257),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_name(prepare: Prepare, field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        prepare(**{field: value})
    assert caught.value.param == field
    assert caught.value.status == 400
    assert field in caught.value.message


def test_values_that_contradict_each_other(prepare: Prepare) -> None:
    with pytest.raises(RequestError, match="best_of") as caught:
        prepare(n=3, best_of=2)
    assert caught.value.param == "best_of"
    with pytest.raises(RequestError) as caught:
        prepare(min_tokens=5, max_tokens=4)
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize("ids", [[], [-1], [1, VOCAB_SIZE], [2**40]])
def test_prompts_that_cannot_be(prepare: Prepare, ids: list[int]) -> None:
    with pytest.raises(RequestError) as caught:
        prepare(ids)
    assert caught.value.param == "prompt"


def test_the_context(prepare: Prepare) -> None:
    for length, max_tokens in ((11, 0), (10, 1), (10, None), (500, 5)):
        with pytest.raises(ContextLengthExceeded) as caught:
            prepare([1] * length, max_model_len=10, max_tokens=max_tokens)
        assert str(length) in caught.value.message and "10" in caught.value.message
        assert caught.value.code == "context_length_exceeded"
    assert prepare([1] * 10, max_model_len=10, max_tokens=0)[0].params.max_tokens == 0
    assert prepare([1] * 9, max_model_len=10, max_tokens=50)[0].params.max_tokens == 1
    assert prepare([1] * 4, max_model_len=10)[0].params.max_tokens == 6
    assert prepare([1] * 4, max_model_len=10, default_max_tokens=3)[0].params.max_tokens == 3
    assert prepare([1] * 4, max_model_len=10, default_max_tokens=30, min_tokens=9)[0].params.min_tokens == 6


def test_defaults_come_from_the_model_then_are_neutral(prepare: Prepare) -> None:
    (add,) = prepare()
    p = add.params
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty) == (1.0, 1.0, 0, 0.0, 1.0)
    model = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1, stop_token_ids=[9])
    (add,) = prepare(defaults=model, temperature=0.0, top_k=10**30)
    p = add.params
    assert (p.temperature, p.top_p, p.top_k, p.repetition_penalty) == (0.0, 0.95, VOCAB_SIZE, 1.1)
    assert add.stop_ids == [9, IM_END]


@pytest.mark.parametrize(
    "stated,model,min_p",
    [
        ({}, {}, CONVERSATION_MIN_P),
        ({"temperature": 1.0}, {}, 0.0),
        ({"top_p": 0.9}, {}, 0.0),
        ({"min_p": 0.3}, {}, 0.3),
        ({}, {"temperature": 0.6}, 0.0),
        ({}, {"min_p": 0.05}, 0.05),
        ({}, {"repetition_penalty": 1.1}, CONVERSATION_MIN_P),
    ],
)
def test_a_conversation_of_which_nobody_says_how_leaves_out_unlikely_tokens(
    tokenizer: Tokenizer, stated: dict[str, float], model: dict[str, float], min_p: float
) -> None:
    def resolved(is_conversation: bool) -> SamplingParams:
        (add,) = sequences(
            Prompt(token_ids=[1], is_conversation=is_conversation),
            SamplingParams(**stated),
            tokenizer=tokenizer,
            defaults=SamplingParams(**model),
            max_model_len=9,
            default_max_tokens=1,
            base_seed=1,
        )
        return add.params

    assert resolved(True).min_p == min_p
    assert resolved(False).min_p == (0.0 if min_p == CONVERSATION_MIN_P else min_p)
    assert resolved(True).temperature == stated.get("temperature", model.get("temperature", 1.0))


@pytest.mark.parametrize(
    "stated,model,temperature,min_p",
    [
        ({}, {}, CHAT_TEMPERATURE, CONVERSATION_MIN_P),
        ({"temperature": 0.0}, {}, 0.0, CONVERSATION_MIN_P),
        ({"top_k": 5}, {}, CHAT_TEMPERATURE, None),
        ({}, {"temperature": 0.6, "top_p": 0.95}, None, None),
        ({}, {"temperature": 0.6}, None, CONVERSATION_MIN_P),
        ({"min_p": 0.0}, {}, CHAT_TEMPERATURE, 0.0),
    ],
)
def test_a_chat_at_the_terminal_has_defaults_of_its_own(
    stated: dict[str, Any], model: dict[str, Any], temperature: float | None, min_p: float | None
) -> None:
    found = for_terminal(SamplingParams(**stated), SamplingParams(**model))
    assert (found.temperature, found.min_p) == (temperature, min_p)


def test_stop_ids(prepare: Prepare) -> None:
    model = SamplingParams(stop_token_ids=[9])
    assert prepare(stop_token_ids=[5])[0].stop_ids == [5, IM_END]
    assert prepare(defaults=model, stop_token_ids=[5], ignore_eos=True)[0].stop_ids == [5]


def test_bad_words_with_and_without_a_space(prepare: Prepare) -> None:
    (add,) = prepare(bad_words=["ab", " ab", "c"])
    assert add.bad_word_ids == [[97, 98], [32, 97, 98], [99], [32, 99]]


def test_choices_have_seeds_of_their_own(prepare: Prepare) -> None:
    adds = prepare(n=5, seed=3, prompt_logprobs=1)
    seeds = [add.seed for add in adds]
    assert seeds[0] == 3 and len(set(seeds)) == 5 and all(-(2**63) <= s < 2**63 for s in seeds)
    assert seeds == [add.seed for add in prepare(n=5, seed=3)]
    assert [add.params.prompt_logprobs for add in adds] == [1, None, None, None, None]
    assert all(add.params.n == 1 for add in adds)
    assert [prepare(**fields)[0].seed for fields in ({}, {"seed": -1}, {"seed": -(2**63)})] == [77, 77, 77]
    candidates = prepare(n=2, best_of=4)
    assert len(candidates) == 4 and all(add.params.logprobs == 0 for add in candidates)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127))
def test_derived_seeds_fit_64_bits(seed: int, index: int) -> None:
    derived = derived_seed(seed, index)
    assert -(2**63) <= derived < 2**63
    assert (derived == seed) == (index == 0)


def test_seeds_of_requests_without_one() -> None:
    first, again, random, negative = Seeds(5), Seeds(5), Seeds(), Seeds(-1)
    taken = [first.next() for _ in range(1000)]
    assert taken == [again.next() for _ in range(1000)]
    assert len(set(taken)) == 1000 and random.next() not in taken
    assert negative.next() != Seeds(-1).next()


def test_adds_cross_the_wire_unchanged(prepare: Prepare) -> None:
    for add in prepare(n=2, seed=1, stop=["a"], logit_bias={3: 1.5}, bad_words=["ab"], logprobs=3, best_of=3):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(add), type=Add) == add


HUGE = [
    ("stop", "a" * 30_000_000),
    ("stop", ["a"] * 3_000_000),
    ("bad_words", ["hello world " * 2_000_000]),
    ("bad_words", ["a b"] * 3_000_000),
    ("allowed_token_ids", list(range(VOCAB_SIZE)) * 30_000),
    ("stop_token_ids", [1] * 3_000_000),
    ("logit_bias", dict.fromkeys(range(500_000), 1.0)),
]


@pytest.mark.parametrize(("field", "value"), HUGE, ids=[f"{name}-{type(value).__name__}" for name, value in HUGE])
def test_what_is_far_too_large_is_refused_before_it_is_read(prepare: Prepare, field: str, value: object) -> None:
    """T-COST: the field, its size and the limit are named, in no time."""
    began = time.thread_time()
    with pytest.raises(RequestError, match=rf"^{field}: .*\d+ .*(at most|more than) ?\d*") as refused:
        prepare(n=128, **{field: value})
    assert refused.value.param == field
    assert time.thread_time() - began < 0.25  # a few milliseconds, or what it takes to look at 3,000,000 lengths


def test_what_every_choice_sends_is_bounded(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MAX_SENT_IDS", 1_000)
    assert len(prepare(n=4, allowed_token_ids=list(range(250)))) == 4
    for fields in (
        {"allowed_token_ids": list(range(251))},
        {"bad_words": ["abcdefghij" * 3 + str(i) for i in range(9)]},
    ):
        with pytest.raises(RequestError, match=r"for each of 4 choices are .* at most 1000"):
            prepare(n=4, **fields)


def test_the_largest_values_are_prepared_once_for_all_choices(prepare: Prepare) -> None:
    words = ["b" * 29 + str(i % 10) for i in range(1024)]
    adds = prepare(n=128, allowed_token_ids=list(range(VOCAB_SIZE)), bad_words=words[:20], stop=["s" * 1_000] * 16)
    assert len({id(add.params.allowed_token_ids) for add in adds}) <= 2
    assert len({id(add.bad_word_ids) for add in adds}) == 1
