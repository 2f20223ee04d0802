"""One request from its messages: deltas per choice, one end each, aborts, best_of, resumption, metrics."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from octavo.client.base import Prompt
from octavo.client.choices import RequestState
from octavo.client.fake import IM_END, write_byte_tokenizer
from octavo.client.prepare import sequences
from octavo.errors import ApiError, EngineError
from octavo.modelfiles.files import locate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, Metrics, SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, TokenOutput


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_text("{}")
    write_byte_tokenizer(folder)
    return Tokenizer.load(locate(Path(folder)))


class State(RequestState):
    """A request as the ledger sees it; hears of itself."""

    def __init__(self, prompt: Prompt, params: SamplingParams, adds: list[Add], tokenizer: Tokenizer) -> None:
        super().__init__(prompt, params, adds, tokenizer, self)
        self.sequences = {add.id: sequence for add, sequence in zip(adds, self.unfinished(), strict=True)}
        self.heard: list[Delta] = []
        self.ends: list[ApiError | None] = []
        self.aborts: list[int] = []

    def on_delta(self, _index: int, delta: Delta) -> None:
        self.heard.append(delta)

    def on_end(self, _index: int, error: ApiError | None) -> None:
        self.ends.append(error)

    def on_message(self, message: TokenOutput) -> list[Delta]:
        """What is heard because of it."""
        if self.sequences[message.id].take(message):
            self.aborts.append(message.id)
        heard, self.heard = self.heard, []
        return heard


def make_state(tokenizer: Tokenizer, **fields: object) -> State:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    prompt = Prompt(token_ids=[1, 2, 3], text="abc")
    adds = sequences(
        prompt,
        params,
        tokenizer=tokenizer,
        defaults=SamplingParams(),
        max_model_len=1000,
        default_max_tokens=None,
        base_seed=0,
    )
    return State(prompt, params, adds, tokenizer)


def tokens(id: int, text: str, end: bool = False, logprob: float | None = None, **fields: object) -> TokenOutput:
    ids = list(text.encode()) + ([IM_END] if end else [])
    logprobs = None if logprob is None else [TokenLogprobs(i, logprob, []) for i in ids]
    reason = "stop" if end else None
    return TokenOutput(id, ids, logprobs, reason, IM_END if end else None, **fields)  # type: ignore[arg-type]


def test_choices_are_kept_apart_and_end_once(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=3)
    texts = {0: "héllo wörld", 1: "", 2: "🦊" * 5}
    pieces = [(i, byte) for i, text in texts.items() for byte in text.encode()]
    random.Random(0).shuffle(pieces)
    queues = {i: list(text.encode()) for i, text in texts.items()}
    deltas: list[Delta] = []
    for i, _ in pieces:
        deltas += state.on_message(TokenOutput(i, [queues[i].pop(0)]))
    assert not state.done
    for i in (2, 0, 1):
        deltas += state.on_message(TokenOutput(i, [IM_END], None, "stop", IM_END))
    assert state.done and state.aborts == [] and state.ends == [None]
    for i, text in texts.items():
        own = [d for d in deltas if d.index == i]
        assert "".join(d.text for d in own) == text
        assert [d.finish_reason for d in own if d.finish_reason] == ["stop"] and own[-1].finish_reason
        assert state.output().outputs[i].text == text
        assert state.output().outputs[i].token_ids == [*text.encode(), IM_END]
    assert state.output().text == texts[0] and state.output().prompt == "abc"
    assert state.output().outputs[0].logprobs is None


def test_a_stop_string_ends_its_choice_and_asks_for_one_abort(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=2, stop=["END"])
    deltas = state.on_message(tokens(0, "some texE", metrics=Metrics(prefill_ms=5, time_to_first_token_ms=7)))
    assert deltas[0].text == "some tex"
    (delta,) = state.on_message(tokens(0, "ND and more"))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("", "stop", "END")
    assert state.aborts == [0]
    assert state.on_message(tokens(0, "late", end=True)) == []
    assert state.aborts == [0]
    assert [sequence.add.id for sequence in state.unfinished()] == [1]
    state.on_message(tokens(1, "x", end=True))
    assert state.done and state.aborts == [0] and state.ends == [None]
    assert state.output().outputs[0].text == "some tex"
    assert state.metrics.prefill_ms == 5 and state.metrics.time_to_first_token_ms == 7
    assert state.metrics.completion_tokens == 9 + 2 + 2 and state.metrics.tokens_per_second > 0


def test_resume_holds_all_tokens_so_far(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=2, seed=9)
    state.on_message(tokens(0, "ab"))
    state.on_message(tokens(0, "c"))
    first, second = [sequence.add for sequence in state.unfinished()]
    assert first.output_ids == list(b"abc") and second.output_ids == []
    assert first.prompt_ids == [1, 2, 3] and first.seed == 9 != second.seed
    state.on_message(tokens(0, "d"))
    assert state.unfinished()[0].add.output_ids == list(b"abcd")


def test_best_of_shows_nothing_before_the_end_then_the_best(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=2, best_of=3)
    assert state.on_message(tokens(0, "bad", end=True, logprob=-3.0)) == []
    assert state.on_message(tokens(1, "a longer good one", logprob=-1.0)) == []
    assert state.on_message(tokens(2, "best", end=True, logprob=-0.5)) == []
    deltas = state.on_message(tokens(1, "", end=True, logprob=-1.0))
    assert [(d.index, d.text, d.finish_reason, d.logprobs) for d in deltas] == [
        (0, "best", "stop", None),
        (1, "a longer good one", "stop", None),
    ]
    output = state.output()
    assert [o.text for o in output.outputs] == ["best", "a longer good one"]
    assert [o.index for o in output.outputs] == [0, 1]
    assert output.metrics.completion_tokens == 4 + 18 + 5


def test_logprobs_of_outputs_cover_all_tokens(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, logprobs=0)
    state.on_message(tokens(0, "hey", end=True, logprob=-0.5))
    (choice,) = state.output().outputs
    assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids) == 4
    assert choice.cumulative_logprob == pytest.approx(-2.0)


def test_metrics_are_merged(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=2)
    common = {"prompt_tokens": 3, "cached_tokens": 2}
    a = Metrics(queue_ms=1, prefill_ms=10, decode_ms=100, decode_iterations=4, tokens_per_second=40, **common)
    b = Metrics(queue_ms=2, prefill_ms=12, decode_ms=90, decode_iterations=3, tokens_per_second=30, **common)
    state.on_message(tokens(0, "abcd", end=True, metrics=a))
    state.on_message(tokens(1, "abc", end=True, metrics=b))
    assert state.metrics == Metrics(
        completion_tokens=9,
        queue_ms=1,
        prefill_ms=12,
        decode_ms=100,
        decode_iterations=4,
        tokens_per_second=70,
        **common,
    )


def test_one_failure_ends_the_request(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, n=3)
    state.on_message(tokens(1, "x", end=True))
    error = EngineError("broken")
    state.failed(error)
    state.failed(EngineError("again"))
    assert state.ends == [error]
    assert state.done and state.unfinished() == []
    assert state.on_message(tokens(2, "x", end=True)) == []
    assert [o.finish_reason for o in state.output().outputs] == ["abort", "stop", "abort"]


def test_prompt_logprobs_are_kept(tokenizer: Tokenizer) -> None:
    state = make_state(tokenizer, prompt_logprobs=0, max_tokens=0)
    entries = [None, TokenLogprobs(2, -1.0, []), TokenLogprobs(3, -2.0, [])]
    (delta,) = state.on_message(TokenOutput(0, [], None, "length", prompt_logprobs=entries))
    assert delta.finish_reason == "length" and state.output().prompt_logprobs == entries
