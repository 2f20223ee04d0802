"""What waits for a client that does not read: merged, bounded by what it weighs, in order, nothing lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.types import Metrics, TokenLogprobs, TopLogprob
from octavo.wire.backlog import FRAME_BYTES, MERGED_BYTES, Backlog
from octavo.wire.messages import (
    Draining,
    EngineInfo,
    Failed,
    Outputs,
    Pong,
    Stats,
    ToClient,
    TokenOutput,
    Welcome,
)

INFO = EngineInfo(
    instance="one", pid=1, model="m", model_path="p", max_model_len=64, max_num_seqs=4, block_size=4, num_blocks=64,
    vocab_size=9, device="none", dtype="none", backend="fake", max_queued_requests=8,
)  # fmt: skip


def logprobs(token: int, top: int = 2) -> TokenLogprobs:
    return TokenLogprobs(token, -1.0, [TopLogprob(token + i, -1.0) for i in range(top)])


def taken(backlog: Backlog) -> list[ToClient]:
    found = []
    while (message := backlog.take()) is not None:
        found.append(message)
    assert backlog.size == 0
    return found


def test_outputs_of_a_sequence_become_one() -> None:
    backlog = Backlog()
    backlog.add(Outputs([TokenOutput(1, [5], [logprobs(5)], metrics=Metrics(queue_ms=1.0)), TokenOutput(2, [50])]))
    backlog.add(Outputs([TokenOutput(1, [6], [logprobs(6)])]))
    last = TokenOutput(1, [7], [logprobs(7)], "stop", 7, Metrics(queue_ms=2.0), embedding=b"e")
    backlog.add(Outputs([last, TokenOutput(2, [51])]))
    [outputs] = taken(backlog)
    assert isinstance(outputs, Outputs)
    assert outputs.items == [
        TokenOutput(1, [5, 6, 7], [logprobs(i) for i in (5, 6, 7)], "stop", 7, Metrics(queue_ms=2.0), embedding=b"e"),
        TokenOutput(2, [50, 51]),
    ]


def test_a_long_stall_comes_out_in_messages_of_bounded_weight() -> None:
    backlog = Backlog()
    for step in range(20_000):
        backlog.add(Outputs([TokenOutput(id, [step]) for id in (1, 2, 3)]))
    messages = taken(backlog)
    tokens: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for message in messages:
        assert isinstance(message, Outputs)
        assert sum(40 * len(item.token_ids) for item in message.items) <= FRAME_BYTES
        for item in message.items:
            assert 40 * len(item.token_ids) <= MERGED_BYTES
            tokens[item.id] += item.token_ids
    assert tokens == {id: list(range(20_000)) for id in (1, 2, 3)}
    assert len(messages) < 100


def test_a_failure_comes_after_what_its_sequence_said_before() -> None:
    backlog = Backlog()
    backlog.add(Outputs([TokenOutput(1, [5]), TokenOutput(2, [6])]))
    backlog.add(Failed(1, "engine_error", "no"))
    backlog.add(Outputs([TokenOutput(2, [7])]))
    assert taken(backlog) == [Outputs([TokenOutput(1, [5]), TokenOutput(2, [6, 7])]), Failed(1, "engine_error", "no")]


def test_of_pongs_the_last_is_kept_and_words_go_first() -> None:
    backlog = Backlog()
    for steps in range(1000):
        backlog.add(Outputs([TokenOutput(1, [steps])]))
        backlog.add(Pong("one", Stats(steps=steps)))
    backlog.add(Draining())
    assert taken(backlog)[:2] == [Draining(), Pong("one", Stats(steps=999))]


def test_a_new_session_begins_with_nothing() -> None:
    backlog = Backlog()
    backlog.add(Outputs([TokenOutput(1, [5])]))
    backlog.add(Draining())
    welcome = Welcome(1, INFO)
    backlog.add(welcome)
    backlog.add(Outputs([TokenOutput(1, [6])]))
    assert taken(backlog) == [welcome, Outputs([TokenOutput(1, [6])])]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_goes_in_comes_out_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    backlog = Backlog()
    said: dict[int, list[object]] = {}
    heard: dict[int, list[object]] = {}

    def hear(message: ToClient | None) -> None:
        if isinstance(message, Outputs):
            for item in message.items:
                heard.setdefault(item.id, []).extend(item.token_ids)
        elif isinstance(message, Failed):
            heard.setdefault(message.id, []).append(message.code)

    for step in range(rng.randint(1, 60)):
        if rng.random() < 0.3:
            hear(backlog.take())
            continue
        id, tokens = rng.randrange(4), [step] * rng.choice([0, 1, 3, 500])
        if rng.random() < 0.1:
            backlog.add(Failed(id, f"code {step}", ""))
            said.setdefault(id, []).append(f"code {step}")
        else:
            backlog.add(Outputs([TokenOutput(id, list(tokens), [logprobs(i, 1) for i in tokens])]))
            said.setdefault(id, []).extend(tokens)
        assert backlog.size > 0
    for message in taken(backlog):
        hear(message)
    assert {id: what for id, what in heard.items() if what} == {id: what for id, what in said.items() if what}
