"""LLMEngine with the demo model: one answer alone, batched, streamed, from the cache, by seed, after recompute."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLMEngine, Message, SamplingParams, StructuredOutputs
from octavo.config import EngineConfig
from octavo.errors import RequestError

PROMPTS = ["The capital of France is", "2 + 2 =", "Once upon a time, there was a little"]


@pytest.fixture(scope="module")
def engine(demo_gguf: Path) -> Iterator[LLMEngine]:
    config = EngineConfig(
        model=str(demo_gguf), dtype="float32", max_model_len=512, max_num_seqs=8, kv_cache_memory="64MiB", threads=1
    )
    with LLMEngine(config) as found:
        yield found


def test_greedy_alone_batched_and_streamed(engine: LLMEngine) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=8)
    together = engine.generate(PROMPTS, greedy)
    assert "Paris" in together[0].text
    alone = [engine.generate(p, greedy)[0] for p in PROMPTS]
    assert [o.token_ids for o in alone] == [o.token_ids for o in together]
    streamed = engine.stream(PROMPTS[0], greedy)
    assert "".join(delta.text for delta in streamed) == together[0].text
    ids = together[0].prompt_token_ids
    assert engine.generate([ids], greedy)[0].token_ids == together[0].token_ids
    assert together[0].metrics.completion_tokens == 8 and together[0].metrics.tokens_per_second > 0


def test_seeds_make_sampling_repeatable_in_any_company(engine: LLMEngine) -> None:
    sampled = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=8, seed=7, n=2)
    (alone,) = engine.generate(PROMPTS[2], sampled)
    mixed = engine.generate([PROMPTS[0], PROMPTS[2], PROMPTS[1]], [SamplingParams(max_tokens=8), sampled, sampled])
    assert [o.token_ids for o in mixed[1].outputs] == [o.token_ids for o in alone.outputs]
    assert alone.outputs[0].token_ids != alone.outputs[1].token_ids


def test_fields_have_their_effect_on_the_model(engine: LLMEngine) -> None:
    base = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=1)
    (output,) = engine.generate(PROMPTS[0], base)
    first = output.token_ids[0]
    (choice,) = output.outputs
    assert choice.logprobs is not None and choice.logprobs[0].top[0].token_id == first
    assert all(entry.logprob == entry.top[0].logprob for entry in choice.logprobs)
    assert sum(math.exp(t.logprob) for t in choice.logprobs[0].top) <= 1
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    (banned,) = engine.generate(PROMPTS[0], base, logit_bias={first: -100.0})
    assert banned.token_ids[0] == choice.logprobs[0].top[1].token_id
    (allowed,) = engine.generate(PROMPTS[0], temperature=1.0, max_tokens=6, allowed_token_ids=[30, 31, 32])
    assert set(allowed.token_ids) <= {30, 31, 32}
    (stopped,) = engine.generate(PROMPTS[0], base, stop="Paris", max_tokens=8)
    assert stopped.finish_reason == "stop" and "Paris" not in stopped.text


def test_chat_answers_and_ends(engine: LLMEngine) -> None:
    messages = [Message("user", "What is the capital of France? Answer in one word.")]
    (output,) = engine.chat(messages, temperature=0, max_tokens=24)
    assert "Paris" in output.text and "<|im_end|>" not in output.text
    text = engine.apply_chat_template(messages, add_generation_prompt=True)
    (again,) = engine.generate(text, temperature=0, max_tokens=24)
    assert again.prompt_token_ids == output.prompt_token_ids and again.token_ids == output.token_ids
    assert again.metrics.cached_tokens > 0


@pytest.mark.long
def test_preemption_changes_no_token(engine: LLMEngine, demo_gguf: Path) -> None:
    """Pages for about two of four sequences: they take turns and are recomputed."""
    params = [SamplingParams(temperature=t, max_tokens=24, seed=3, ignore_eos=True) for t in (0.0, 0.8, 0.0, 1.0)]
    prompts = [*PROMPTS, "My favourite colour is"]
    wanted = [o.token_ids for o in engine.generate(prompts, params)]
    page = 2 * 30 * 16 * 3 * 64 * 4  # K and V, layers, tokens, heads, size of a head, bytes
    config = EngineConfig(
        model=str(demo_gguf),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=4,
        kv_cache_memory=f"{5 * page}b",
        threads=1,
    )
    with LLMEngine(config) as small:
        assert small.info.num_blocks <= 5
        assert [o.token_ids for o in small.generate(prompts, params)] == wanted
        assert small._engine._loop._scheduler.counters.preemptions > 0


@pytest.mark.long
def test_structured_outputs_with_every_other_field(engine: LLMEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    ask = [Message("user", "Tell me about Ann, who is 44 years old.")]
    bound = SamplingParams(structured_outputs=StructuredOutputs(json=schema), max_tokens=160, seed=3)
    settings: list[dict[str, object]] = [
        {"temperature": 0},
        {"temperature": 1.5, "n": 3, "logprobs": 2, "top_p": 0.9},
        {"temperature": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0, "min_tokens": 50, "ignore_eos": True},
        {"temperature": 0, "bad_words": ["{", "name", "age", '"'], "logit_bias": {0: 100.0, 2: 100.0}},
        {"temperature": 1.0, "allowed_token_ids": [5, 6, 7], "prompt_logprobs": 0},
        {"temperature": 0, "best_of": 3, "min_p": 0.1},
    ]
    for fields in settings:
        (output,) = engine.chat(ask, bound, **fields)
        assert len(output.outputs) == fields.get("n", 1)
        for choice in output.outputs:
            assert choice.finish_reason == "stop", fields
            found = json.loads(choice.text)
            assert set(found) == {"name", "age"} and len(found["name"]) <= 12 and 1 <= found["age"] <= 99
    streamed = engine.stream_chat(ask, bound, temperature=0)
    assert "".join(d.text for d in streamed) == engine.chat(ask, bound, temperature=0)[0].text


def test_kinds_of_structured_outputs_side_by_side(engine: LLMEngine) -> None:
    kinds = [
        StructuredOutputs(choice=["red", "green", "reddish"]),
        StructuredOutputs(regex=r"\d{3}-[A-F]{2}"),
        StructuredOutputs(json_object=True, whitespace_pattern=" ?"),
        StructuredOutputs(grammar='root ::= ("yes" | "no") "!"'),
        None,
    ]
    asked = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=40, structured_outputs=kind) for i, kind in enumerate(kinds)
    ]
    together = engine.generate(["Answer:"] * 5, asked)
    assert together[0].text in ("red", "green", "reddish")
    assert re.fullmatch(r"[0-9]{3}-[A-F]{2}", together[1].text)
    assert together[2].text.startswith("{") and together[3].text in ("yes!", "no!")
    for each, params in zip(together, asked, strict=True):
        assert engine.generate("Answer:", params)[0].token_ids == each.token_ids
    for wrong in (StructuredOutputs(regex="("), StructuredOutputs(), StructuredOutputs(json={"type": "no"})):
        with pytest.raises(RequestError):
            engine.generate("Answer:", structured_outputs=wrong)


def test_embeddings(engine: LLMEngine) -> None:
    texts = ["A cat sits on the mat.", "A dog lies on the rug.", "Stock markets fell sharply."]
    vectors = engine.embed(texts)
    assert [len(v) for v in vectors] == [engine.info.hidden_size] * 3
    assert all(math.isclose(math.fsum(x * x for x in v), 1.0, rel_tol=1e-5) for v in vectors)

    def likeness(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    assert likeness(engine.embed(texts[0])[0], vectors[0]) > 1 - 1e-5
    long = engine.tokenizer.encode("All of it in chunks. " * 60)
    short = engine.embed(long, pooling="last", dimensions=16)[0]
    assert len(short) == 16 and likeness(short, engine.embed([long], pooling="last", dimensions=16)[0]) > 1 - 1e-5
    for fields in ({"dimensions": 10**6}, {"dimensions": 0}, {"pooling": "cls"}):
        with pytest.raises(RequestError):
            engine.embed(texts, **fields)
    with pytest.raises(RequestError):
        engine.embed(list(range(1, 600)))
