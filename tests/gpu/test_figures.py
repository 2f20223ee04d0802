"""What the engine check's figures are held against: amounts of work, limits, waits read from a trace. No torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
from engine_table import judged, markdown
from engine_work import DECODE, GAP, NAMED, REQUESTS, Amount, Rates, Scene, decode_limit, goal, requests_limit
from waits import idle_between_launches

LLAMA = NAMED["Llama-3.2-1B"]


def test_weights_and_pages_of_the_models() -> None:
    counted = {name: model.layer_weights + model.head_weights for name, model in NAMED.items()}
    assert counted["Llama-3.2-1B"] == 1_235_746_816  # without norms; the embeddings are tied
    assert counted["Llama-3.1-8B"] == 7_504_658_432  # without norms and the embeddings, of which a step reads a row
    assert counted["Qwen3-0.6B"] == 595_984_384
    assert {name: NAMED[name].kv_bytes for name in ("Llama-3.2-1B", "Llama-3.1-8B")} == {
        "Llama-3.2-1B": 32768,
        "Llama-3.1-8B": 131072,
    }


def test_limits_of_a_decode_step() -> None:
    rates = Rates(copy=1e12, matmul=1e15)
    seconds, bound = decode_limit(LLAMA, 1, 100, rates)
    assert bound == "memory" and seconds == (2 * 1_235_746_816 + 100 * 32768) / 1e12
    assert decode_limit(LLAMA, 4096, 4096, rates)[1] == "matmul"
    # Attention's products grow with the square of the prompt, all others with the prompt.
    few, many = LLAMA.prefill_operations(1024), LLAMA.prefill_operations(8192)
    assert 8 * few < many < 64 * few


def test_limit_of_many_requests_is_that_of_their_steps() -> None:
    rates = Rates(copy=1e12, matmul=1e15)
    lengths = [(7, 4), (5, 2), (9, 4), (3, 1)]
    seconds = sum(LLAMA.prefill_operations(prompt) for prompt, _ in lengths) / rates.matmul
    for step in range(1, 4):
        rows = [prompt + step for prompt, output in lengths if output > step]
        seconds += decode_limit(LLAMA, len(rows), sum(rows), rates)[0]
    assert requests_limit(LLAMA, lengths, rates) == pytest.approx(seconds, rel=1e-12)
    scene = Scene("cpu", Path(), Amount(), rates)
    assert scene.lengths() == scene.lengths() and len(scene.lengths()) == 256


def test_waits_are_told_from_pauses_inside_a_graph() -> None:
    def event(ts: float, dur: float, launch: int) -> dict[str, object]:
        return {"ts": ts, "dur": dur, "args": {"correlation": launch}}

    graph = [event(0, 10, 1), event(12, 10, 1), event(23, 7, 1)]  # 3 µs between its kernels
    copy = [event(35, 1, 2)]  # 5 µs later
    beside = [event(35.5, 4.5, 3)]  # begins before the copy has ended
    after = [event(50, 10, 4)]  # 10 µs later
    assert idle_between_launches([*after, *beside, *graph, *copy]) == pytest.approx((15e-6, 60e-6))
    assert idle_between_launches([*graph, *copy, *beside, *after], skip=0.5) == pytest.approx((10e-6, 25e-6))
    assert idle_between_launches([]) == (0.0, 0.0)


def test_what_is_asked_is_judged_and_shown() -> None:
    def figure(work: str, value: float | None, limit: float | None = None, **more: object) -> dict[str, object]:
        return {"work": work, "model": "Llama-3.2-1B", "unit": "tok/s", "value": value, "limit": limit,
                "bound": "memory", "engine": "octavo", "details": {}, **more}  # fmt: skip

    figures = judged(
        [
            figure(DECODE, 1299.0, 2000.0),
            figure(REQUESTS.format(256), 40000.0),
            figure(GAP.format(8), 0.03, unit="of the step"),
            figure(GAP.format(9), None, unit="of the step"),
            figure("something else", 5.0),
            figure(DECODE, 100.0, engine="transformers"),
        ]
    )
    assert [found["met"] for found in figures] == [False, True, False, None, None, None]
    assert figures[0]["share"] == pytest.approx(0.6495)
    share = goal("decode, 64 streams", "Llama-3.1-8B")
    assert share is not None and share.met(1.0, 0.6) and not share.met(1e9, 0.59)
    facts = {"mode": "gpu", "device": "a GPU", "date": "today", "commit": "c", "versions": {"torch": "2", "x": None}}
    rest = {"rates": None, "tests": None, "failed": [{"part": "p", "failed": "why"}], "left_out": ["part q"]}
    text = markdown({**facts, **rest, "figures": figures})
    assert (
        "| decode, 1 stream | Llama-3.2-1B | 1,299 tok/s | 2,000 tok/s (memory) | 65% | 1,300 tok/s | **no** " in text
    )
    assert "- p: why" in text and "- part q" in text and "Nothing was measured" not in text
