"""Requests with a grammar in the engine loop, with threads as in production: compiled beside other requests, errors
that touch one request alone, what holds while a grammar is compiled, and the matcher's own rules."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fake_model import VOCAB, FakeExecutor, bounded_vocabulary, expected, one_group, tokens_of, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from test_engine_loop import INFO, add, outputs, tokens

from octavo.client.fake import IM_END
from octavo.engine import constraint as constraint_module
from octavo.engine.constraints import Constraints
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.grammar.compiled import allocated
from octavo.grammar.limits import EXPENSIVE
from octavo.grammar.matcher import GrammarError, Matcher, Vocabulary
from octavo.grammar.spec import grammar_of
from octavo.types import SamplingParams, StructuredOutputs
from octavo.wire.local import LocalConnection, LocalTransport
from octavo.wire.messages import Abort, Add, Bye, Draining, Failed, Hello, Ping, Pong

LETTERS = "start: /[a-c]{1,30}/"
WRONG = "start: /[a-z+/"


class House:
    """`make_vocabulary` is called in a compiling thread."""

    def __init__(self, depth: int = 1, make_vocabulary: Callable[[], Vocabulary] = vocabulary) -> None:
        config = SchedulerConfig(
            groups=one_group(),
            max_num_seqs=4,
            max_num_batched_tokens=16,
            max_model_len=64,
            vocab_size=VOCAB,
            max_queued_requests=4,
        )
        self.transport = LocalTransport()
        self.constraints = Constraints(make_vocabulary, self.transport.wake)
        self.scheduler = Scheduler(config, self.constraints)
        self.executor = FakeExecutor(one_group(), 4, 16, depth)
        self.loop = EngineLoop(self.scheduler, self.executor, self.transport, INFO, quiet=None)

    def client(self) -> LocalConnection:
        connection = self.transport.connect()
        connection.send(Hello())
        self.loop.turn(0)
        connection.receive()
        return connection

    def run(self) -> None:
        """Until there is nothing to do."""
        deadline = time.monotonic() + PATIENCE_S
        while self.loop.has_requests or self.loop.turn(0):
            self.loop.turn(1.0)
            assert time.monotonic() < deadline, "does not come to an end"


@pytest.fixture
def house() -> Iterator[House]:
    found = House()
    yield found
    found.loop.close()


def bound(id: int, grammar: str = LETTERS, **fields: object) -> Add:
    params = {"max_tokens": fields.pop("max_tokens", 12), "min_tokens": fields.pop("min_tokens", 0)}
    return Add(id, [id + 1, 2, 3], SamplingParams(**params), id, grammar=grammar, **fields)  # type: ignore[arg-type]


def text(ids: list[int]) -> str:
    """A token is a byte; special ones are no text."""
    return bytes(token for token in ids if token < 256).decode()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_bound_and_free_requests_side_by_side(depth: int) -> None:
    house = House(depth)
    client = house.client()
    grammars = [LETTERS, 'start: "yes" | "no"', "start: /[0-9]{3}-[0-9]{2}/", None, None, LETTERS]
    asked = [bound(i, g) if g else add(i, max_tokens=12) for i, g in enumerate(grammars)]
    for each in asked:
        client.send(each)
    house.run()
    messages = client.receive()
    for each in asked:
        wanted, reason = expected(each, 64)
        assert tokens(messages, each.id) == wanted
        (last,) = [item for item in outputs(messages) if item.id == each.id and item.finish_reason]
        assert (last.finish_reason, last.stop_reason) == (reason, None)
    assert text(tokens(messages, 1)) in ("yes", "no")
    assert re.fullmatch(r"[0-9]{3}-[0-9]{2}", text(tokens(messages, 2)))
    house.loop.close()


def test_a_wrong_grammar_fails_its_request_alone(house: House) -> None:
    client = house.client()
    for each in (bound(0, WRONG), add(1), bound(2), bound(3, "start: missing")):
        client.send(each)
    house.run()
    messages = client.receive()
    failed = {m.id: m for m in messages if isinstance(m, Failed)}
    assert set(failed) == {0, 3}
    assert all(m.code == "invalid_grammar" and m.param == "grammar" for m in failed.values())
    assert "unclosed character class" in failed[0].message
    assert tokens(messages, 1) == expected(add(1), 64)[0]
    assert tokens(messages, 2) == expected(bound(2), 64)[0]


class Gate:
    """Holds up the compiling threads."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> Vocabulary:
        assert self.event.wait(PATIENCE_S)
        return vocabulary()


def test_others_go_on_while_a_grammar_is_compiled() -> None:
    gate = Gate()
    house = House(make_vocabulary=gate)
    client, leaver = house.client(), house.client()
    client.send(bound(0))
    client.send(bound(1))
    client.send(add(2))
    leaver.send(bound(0))
    for _ in range(20):
        house.loop.turn(0)
    messages = client.receive()
    assert tokens(messages, 2) == expected(add(2), 64)[0] and {item.id for item in outputs(messages)} == {2}
    assert house.loop.has_requests and house.scheduler.num_waiting == 3 and house.scheduler.num_running == 0
    client.send(Abort([1]))
    leaver.send(Bye())
    client.send(Ping())
    began = time.monotonic()
    assert not house.loop.turn(0.2)  # the messages
    assert not house.loop.turn(0.2)  # nothing to compute: it sleeps
    assert time.monotonic() - began >= 0.2
    (pong,) = client.receive()
    assert isinstance(pong, Pong) and pong.stats.num_waiting == 1 and pong.stats.aborts == 2
    threading.Timer(0.05, gate.event.set).start()
    began = time.monotonic()
    while not house.loop.turn(PATIENCE_S):  # until it is woken
        assert time.monotonic() - began < PATIENCE_S
    house.run()
    assert tokens(client.receive(), 0) == expected(bound(0), 64)[0]
    assert leaver.receive() == []
    house.loop.close()


def test_those_that_are_compiled_count_for_the_queue() -> None:
    gate = Gate()
    house = House(make_vocabulary=gate)
    client = house.client()
    for id in range(9):  # four rows, four places in the queue
        client.send(bound(id))
    client.send(bound(3))
    house.loop.turn(0)
    refused = {m.id: m.code for m in client.receive() if isinstance(m, Failed)}
    assert refused == {8: "queue_full", 3: "duplicate_id"}
    client.send(Abort([7, 6]))
    client.send(bound(20))
    client.send(bound(21))
    client.send(bound(22))
    client.send(bound(23))
    house.loop.turn(0)
    assert [m.id for m in client.receive() if isinstance(m, Failed)] == [23]
    gate.event.set()
    house.run()
    assert {item.id for item in outputs(client.receive())} == {0, 1, 2, 4, 5, 20, 21, 22}
    house.loop.close()


def test_draining_waits_for_them() -> None:
    gate = Gate()
    house = House(make_vocabulary=gate)
    client = house.client()
    client.send(bound(0))
    house.loop.turn(0)
    house.loop.drain()
    threading.Timer(0.1, gate.event.set).start()
    house.loop.run(lambda: False)
    messages = client.receive()
    assert isinstance(messages[0], Draining)
    assert tokens(messages, 0) == expected(bound(0), 64)[0]


def test_counts_within_counts_are_the_users_error() -> None:
    """The trial of a grammar looks at its start; this one becomes too much after some tokens (found by the soak)."""
    regex = StructuredOutputs(regex="((a{1,999}){1,999}){1,999}b")
    matcher = vocabulary().matcher(grammar_of(regex))
    [a] = tokens_of(matcher.mask() or b"")
    with pytest.raises(GrammarError, match="too complex") as error:
        for _ in range(200):
            matcher.mask()
            matcher.consume(a)
    assert error.value.is_users and error.value.code == EXPENSIVE


@pytest.mark.parametrize("is_users", [True, False, None])
@pytest.mark.parametrize("method", ["mask", "consume"])
def test_an_error_after_admission_ends_one_request(
    house: House, monkeypatch: pytest.MonkeyPatch, method: str, is_users: bool | None
) -> None:
    """T-GRAMISO. None: not even an error that the matcher knows."""
    genuine = getattr(Matcher, method)
    calls: dict[int, int] = {}

    def failing(matcher: Matcher, *args: int) -> object:
        calls[id(matcher)] = calls.get(id(matcher), 0) + 1
        if matcher._stop_ids == {IM_END} and calls[id(matcher)] == 3:
            raise RuntimeError("a panic") if is_users is None else GrammarError("too complex", is_users=is_users)
        return genuine(matcher, *args)

    asked = [bound(0, "start: /[a-c]{10,30}/", stop_ids=[IM_END]), bound(1), add(2, max_tokens=12)]
    wanted = [expected(each, 64)[0] for each in asked]
    monkeypatch.setattr(Matcher, method, failing)
    client = house.client()
    for each in asked:
        client.send(each)
    house.run()
    messages = client.receive()
    (failed,) = [m for m in messages if isinstance(m, Failed)]
    assert (failed.id, failed.code) == (0, "invalid_grammar" if is_users else "engine_error")
    assert [tokens(messages, id) for id in range(3)] == [wanted[0][:2], wanted[1], wanted[2]]


def test_ends_with_and_without_a_stop_token(house: House) -> None:
    client = house.client()
    asked = [
        bound(0, 'start: "ab"'),  # nothing can follow: no further step
        bound(1, 'start: "ab"', min_tokens=9),
        bound(2, 'start: "a"*', stop_ids=[IM_END], max_tokens=40),
        bound(3, 'start: ""'),
        bound(4, 'start: "ab" | "ab" "c"', stop_ids=[IM_END], min_tokens=12),
        bound(5, 'start: "ab"', output_ids=list(b"ab")),
        bound(6, 'start: "ab"', output_ids=list(b"a")),
        bound(7, 'start: "ab"', output_ids=list(b"b")),
    ]
    for each in asked:
        client.send(each)
        house.run()
    messages = client.receive()
    found = {id: tokens(messages, id) for id in range(8)}
    ends = {item.id: (item.finish_reason, item.stop_reason) for item in outputs(messages) if item.finish_reason}
    assert [text(found[id]) for id in (0, 1, 3, 5, 6)] == ["ab", "ab", "", "", "b"]
    assert {ends[id] for id in (0, 1, 3, 5, 6)} == {("stop", None)}
    assert found[2] == expected(asked[2], 64)[0] and set(text(found[2])) <= {"a"}
    assert text(found[4]) == "abc" and ends[4] == ("stop", None)  # no end before min_tokens while something may follow
    (failed,) = [m for m in messages if isinstance(m, Failed)]
    assert (failed.id, failed.code) == (7, "engine_error")


# --- masks that take long (T-PACE)

SLOW = "start: /[a-c]{10,30}/"


def burning(monkeypatch: pytest.MonkeyPatch, seconds: float, every: int = 1) -> None:
    """Each `every`th mask of a request with a stop id takes so much processor time, without the interpreter lock."""
    genuine, count = Matcher.mask, itertools.count()

    def mask(matcher: Matcher) -> bytes | None:
        if matcher._stop_ids == {IM_END} and next(count) % every == 0:
            began = time.thread_time()
            while time.thread_time() - began < seconds:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000)
        return genuine(matcher)

    monkeypatch.setattr(Matcher, "mask", mask)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_slow_grammar_holds_up_nobody_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, depth: int, every: int
) -> None:
    """Its masks come late, in steps that do not wait; the tokens are those that would have come in time."""
    burning(monkeypatch, 0.03, every)
    house = House(depth)
    client = house.client()
    asked = [bound(0, SLOW, stop_ids=[IM_END]), bound(1), add(2, max_tokens=40), add(3, max_tokens=40)]
    for each in asked:
        client.send(each)
    seen: dict[int, int] = {}
    while house.scheduler.num_waiting or not house.scheduler.num_running:  # compiled
        house.loop.turn(1.0)
        client.receive()
    for id in (4, 5):
        client.send(add(id, max_tokens=40))
    deadline = time.monotonic() + 60
    messages = []
    while house.loop.has_requests:
        house.loop.turn(1.0)
        for item in outputs(found := client.receive()):
            if item.id in (4, 5) and item.finish_reason:
                seen[item.id] = len(tokens(messages, 0))
        messages += found
        assert time.monotonic() < deadline
    house.loop.close()
    assert tokens(messages, 4) == expected(add(4, max_tokens=40), 64)[0]
    wanted, reason = expected(asked[0], 64)
    assert tokens(messages, 0) == wanted[-len(tokens(messages, 0)) :]
    assert [i.finish_reason for i in outputs(messages) if i.id == 0 and i.finish_reason] == [reason]
    if every == 1:
        assert seen[4] < 10 and seen[5] < 10  # 40 steps of others before ten of its own


def test_over_its_budget_a_request_ends_alone(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    monkeypatch.setattr(constraint_module, "BUDGET_S", 0.1)
    burning(monkeypatch, 0.04)
    client = house.client()
    asked = [bound(0, SLOW, stop_ids=[IM_END]), bound(1), add(2, max_tokens=12)]
    for each in asked:
        client.send(each)
    house.run()
    messages = client.receive()
    (failed,) = [m for m in messages if isinstance(m, Failed)]
    assert (failed.id, failed.code, failed.param) == (0, EXPENSIVE, "grammar")
    assert "of processor time" in failed.message
    assert 0 < len(tokens(messages, 0)) < 6
    for each in asked[1:]:
        assert tokens(messages, each.id) == expected(each, 64)[0]


def test_the_end_of_a_slow_one(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    """Complete, out of room, or aborted while its mask is computed."""
    burning(monkeypatch, 0.02)
    client = house.client()
    ends = {0: bound(0, 'start: "abcd"', stop_ids=[IM_END]), 1: bound(1, SLOW, stop_ids=[IM_END], max_tokens=5)}
    for each in (*ends.values(), bound(2, SLOW, stop_ids=[IM_END]), bound(3, 'start: "ab"+', stop_ids=[IM_END])):
        client.send(each)
    house.loop.turn(1.0)
    while not house.scheduler.num_running:
        house.loop.turn(1.0)
    client.send(Abort([2]))
    house.run()
    messages = client.receive()
    assert text(tokens(messages, 0)) == "abcd"
    found = {item.id: item.finish_reason for item in outputs(messages) if item.finish_reason}
    assert found[0] == "stop" and found[1] == "length" and 2 not in found and 3 in found
    assert tokens(messages, 1) == expected(ends[1], 64)[0]
    house.scheduler.check()


@pytest.mark.parametrize(
    "gbnf",
    [
        "root ::= s\ns ::= s s s | s s | [a-z ]",
        'root ::= s\ns ::= s s s s | [a-z] | ""',
        "root ::= s\ns ::= a | b\na ::= s s | [a-z]\nb ::= s a | a s",
    ],
)
def test_an_ambiguous_grammar_is_the_users_error(gbnf: str) -> None:
    """llguidance calls it an internal one."""
    matcher = vocabulary().matcher(grammar_of(StructuredOutputs(grammar=gbnf)))
    with pytest.raises(GrammarError) as error:
        for _ in range(400):
            mask = matcher.mask()
            matcher.consume(tokens_of(mask or b"")[-1])
    assert error.value.is_users and error.value.code == EXPENSIVE


# --- the matcher


def test_stop_ids_are_allowed_where_the_grammar_may_end() -> None:
    a = ord("a")
    matcher = vocabulary().matcher('start: "a"+', [IM_END, 900])
    assert tokens_of(matcher.mask() or b"") == [a]
    matcher.consume(a)
    assert tokens_of(matcher.mask() or b"") == sorted([a, IM_END, 900])
    matcher.consume(900)  # where min_tokens lets it not end the request: the grammar can go no further
    assert matcher.is_finished
    with pytest.raises(GrammarError):
        vocabulary().matcher('start: "a"+', [IM_END]).consume(IM_END)


def test_a_stop_id_that_the_grammar_needs_is_a_token_like_others() -> None:
    a, b = b"ab"
    matcher = vocabulary().matcher('start: "a" "b"', [a])
    matcher.consume(a)
    assert tokens_of(matcher.mask() or b"") == [b] and not matcher.is_finished


def test_special_tokens_are_no_text() -> None:
    anything = vocabulary().matcher("start: /(?s:.*)/").mask()
    assert anything is not None and not {256, 257, 258} & set(tokens_of(anything))
    assert tokens_of(vocabulary().matcher("start: <|im_start|>").mask() or b"") == [256]
    spelled = vocabulary().matcher('start: "<|im_start|>"')
    assert tokens_of(spelled.mask() or b"") == [ord("<")]


def test_what_is_kept_of_many_grammars_is_bounded_by_bytes() -> None:
    """T-CACHE: two hundred distinct grammars and schemas, each followed for some tokens; a few would be 20 MiB."""
    before_any = allocated()
    if before_any is None:
        pytest.skip("nobody says what this process has allocated")
    small = bounded_vocabulary(8 << 20)
    grown = []
    for i in range(200):
        name = chr(0x4E00 + i)
        if i % 2:
            schema = {"properties": {f"{name}{j}": {"type": "string", "maxLength": 40 + j} for j in range(8)}}
            grammar = grammar_of(StructuredOutputs(json={"type": "object", **schema}))
        else:
            grammar = grammar_of(StructuredOutputs(grammar=f'root ::= [ab] (("{name}"{{20}}){{20}}){{8}}'))
        matcher = small.matcher(grammar)
        for _ in range(12):
            mask = matcher.mask()
            if mask is None:
                break
            matcher.consume((allowed := tokens_of(mask))[len(allowed) // 2])
        grown.append((allocated() or 0) - before_any)
    assert small.grammars.evictions > 20
    assert small.grammars.num_bytes < 16 << 20
    assert max(grown[100:]) < max(grown[:100]) + (8 << 20), grown[::20]
    assert max(grown) < 64 << 20


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([r"[a-c]{2,9}", r"(foo|fo+d)(,[0-9]+)*;", r"(.|\n){3,8}!", r"é?[^x]{1,3}"]))
def test_what_is_walked_through_matches(data: st.DataObject, pattern: str) -> None:
    """Any walk along the masks, every stop taken, is a text of the grammar."""
    matcher = vocabulary().matcher(f"start: /{pattern}/", [IM_END])
    found: list[int] = []
    for _ in range(40):
        if matcher.is_finished:
            break
        mask = matcher.mask()
        assert mask is not None
        token = data.draw(st.sampled_from(tokens_of(mask)))
        if token == IM_END:
            break
        matcher.consume(token)
        found.append(token)
    else:
        return
    assert re.fullmatch(pattern, text(found))
