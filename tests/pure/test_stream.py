"""Tokens to text as they come, against the whole text at once: detokenizer, stop strings, one choice's stream."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_text import byte_level, sentencepiece

from octavo.client.stream import ChoiceStream
from octavo.text.detokenizer import Detokenizer
from octavo.text.stops import StopMatcher, StopStrings
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, SamplingParams, TokenLogprobs
from octavo.wire.messages import TokenOutput

BYTES, PIECES = byte_level(), sentencepiece()
TOKENIZERS = st.sampled_from([BYTES, PIECES])


@st.composite
def token_ids(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    text = tokenizer.encode(draw(st.text(alphabet="hello w1😀é日\n", max_size=12)), add_special_tokens=False)
    noise = draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=8))
    return draw(st.permutations([*text, *noise])) if draw(st.booleans()) else [*text, *noise]


@given(st.data(), TOKENIZERS, st.booleans(), st.booleans())
def test_pieces_joined_are_the_whole(data: st.DataObject, tokenizer: Tokenizer, skip: bool, continuation: bool) -> None:
    ids = data.draw(token_ids(tokenizer))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip, continuation=continuation)
    pieces = [detokenizer.push(i) for i in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=skip, continuation=continuation)
    assert "".join(pieces) + detokenizer.flush() == whole


@given(st.lists(st.integers(0, 255), max_size=12))
def test_byte_level_decodes_as_the_library_does(raw: list[int]) -> None:
    from tokenizers import decoders

    from octavo.text.parts import byte_alphabet

    spelled = {byte: char for char, byte in byte_alphabet().items()}
    ids = [BYTES._backend.token_to_id(spelled[b]) for b in raw]
    assert BYTES.decode(ids) == decoders.ByteLevel().decode([spelled[b] for b in raw])


def test_a_code_point_is_never_split() -> None:
    detokenizer = Detokenizer(BYTES)
    ids = BYTES.encode("😀!")
    assert len(ids) > 2
    pieces = [detokenizer.push(i) for i in ids]
    assert [p for p in pieces if p] == ["😀", "!"]


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """(end, start, stop) of the match that is complete first; the longest of those."""
    found = [
        (start + len(stop), start, stop) for stop in stops for start in range(len(text)) if text.startswith(stop, start)
    ]
    return min(found, default=None)


SMALL = st.text(alphabet="ab", min_size=1, max_size=4)


@given(st.text(alphabet="ab", max_size=20), st.lists(SMALL, max_size=3), st.lists(st.integers(0, 20)), st.booleans())
@example("aab", ["aab", "ab"], [1, 2], False)
def test_stops_do_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    matcher = StopMatcher(stops, include_in_output=include)
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    shown = ""
    match = first_stop(text, stops)
    for start, end in pairwise(places):
        shown += matcher.push(text[start:end])
        # Shown text is final, and nothing is held back without need
        assert text.startswith(shown)
        if match is None or end < match[0]:
            rest = text[len(shown) : end]
            assert not rest or any(stop.startswith(rest) for stop in stops)
    if match is None:
        assert matcher.matched is None
        assert shown + matcher.flush() == text
    else:
        assert matcher.matched == match[2]
        assert shown + matcher.flush() == text[: match[0] if include else match[1]]
        assert matcher.push("more") == ""


def test_below_min_tokens_a_stop_may_begin_but_not_end() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("an END, EN", armed=False) == "an END, "
    assert matcher.push("D", armed=True) == ""
    assert matcher.matched == "END"


def test_choices_share_the_tables_of_their_stop_strings() -> None:
    """T-COST: what one choice adds is a number for each stop string."""
    stops = StopStrings(["a" * 1_000, "END", "END", ""])
    assert len(stops.tables) == 2
    tracemalloc.start()
    matchers = [StopMatcher(stops) for _ in range(128)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 256 << 10
    shown = [matcher.push("a" * n + "END") for n, matcher in enumerate(matchers)]
    assert shown == ["a" * n for n in range(128)]  # none moves another's place


def test_hostile_stops_stay_linear() -> None:
    stops = ["a" * n + "b" for n in range(20_000, 20_016)]
    start = time.thread_time()
    matcher = StopMatcher(stops)
    for _ in range(300):
        matcher.push("a" * 100)
    assert matcher.push("c" * 10) != ""
    assert time.thread_time() - start < 5


def run(
    tokenizer: Tokenizer,
    params: SamplingParams,
    ids: list[int],
    *,
    group: int = 1,
    finish: str = "length",
    stop_reason: int | None = None,
) -> tuple[ChoiceStream, list[Delta]]:
    """Push the ids in groups; every token has a log-probability that names it."""
    stream = ChoiceStream(tokenizer, params, 3)
    deltas = []
    for at in range(0, len(ids), group):
        part = ids[at : at + group]
        last = at + group >= len(ids)
        logprobs = [TokenLogprobs(i, -0.5, []) for i in part]
        deltas.append(
            stream.push(
                TokenOutput(
                    1,
                    part,
                    logprobs,
                    finish_reason=finish if last else None,  # type: ignore[arg-type]
                    stop_reason=stop_reason if last else None,
                )
            )
        )
    return stream, deltas


@given(st.data(), TOKENIZERS, st.lists(SMALL | st.sampled_from(["l", "o w", "😀"]), max_size=2), st.integers(1, 4))
def test_streams_do_not_depend_on_the_groups(
    data: st.DataObject, tokenizer: Tokenizer, stops: list[str], group: int
) -> None:
    ids = data.draw(token_ids(tokenizer).filter(bool))
    include = data.draw(st.booleans())
    params = SamplingParams(
        stop=stops,
        logprobs=0,
        skip_special_tokens=data.draw(st.booleans()),
        include_stop_str_in_output=include,
        min_tokens=data.draw(st.integers(0, 3)),
    )
    one, deltas = run(tokenizer, params, ids)
    many, grouped = run(tokenizer, params, ids, group=group)
    assert "".join(d.text for d in deltas) == one.text == many.text == "".join(d.text for d in grouped)
    assert (one.finish_reason, one.stop_reason, one.output_ids) == (
        many.finish_reason,
        many.stop_reason,
        many.output_ids,
    )
    assert [i for d in grouped for i in d.token_ids] == many.output_ids
    assert [p.token_id for p in one.output_logprobs] == one.output_ids
    whole = tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens, continuation=True)
    if not stops:
        assert one.text == whole
    shown = [p.token_id for d in grouped for p in d.logprobs or []]
    assert shown == [p.token_id for d in deltas for p in d.logprobs or []]
    if one.finish_reason == "length":
        joined = b"".join(tokenizer.token_bytes(i) for i in shown)
        assert joined.decode(errors="replace") == one.text
    else:
        assert one.text == (whole[: len(one.text)])
        assert one.stop_reason in stops
        assert one.text.endswith(str(one.stop_reason)) or not include


def test_end_of_sequence() -> None:
    ids = [*BYTES.encode("hello"), 1]
    stream, deltas = run(BYTES, SamplingParams(logprobs=0), ids, finish="stop", stop_reason=1)
    assert (stream.text, stream.finish_reason, stream.stop_reason) == ("hello", "stop", None)
    assert stream.output_ids == ids
    assert [len(d.logprobs or []) for d in deltas] == [1] * (len(ids) - 1) + [0]
    assert not stream.stopped_by_text
    assert deltas[-1].index == 3


def test_a_stop_token_hides_its_text_and_is_the_reason() -> None:
    ids = BYTES.encode("hello world")
    params = SamplingParams(stop_token_ids=[ids[-1]])
    stream, _ = run(BYTES, params, ids, finish="stop", stop_reason=ids[-1])
    assert (stream.text, stream.stop_reason) == ("hello", ids[-1])
    params = SamplingParams(stop_token_ids=[ids[-1]], include_stop_str_in_output=True)
    assert run(BYTES, params, ids, finish="stop", stop_reason=ids[-1])[0].text == "hello world"
    # Special tokens stay hidden even then, unless asked for
    params = SamplingParams(include_stop_str_in_output=True)
    assert run(BYTES, params, [*ids, 1], finish="stop", stop_reason=1)[0].text == "hello world"
    params = SamplingParams(include_stop_str_in_output=True, skip_special_tokens=False)
    assert run(BYTES, params, [*ids, 1], finish="stop", stop_reason=1)[0].text == "hello world</s>"


def test_a_stop_string_cuts_text_and_logprobs() -> None:
    ids = BYTES.encode("hello worldxy12 more")
    stream, deltas = run(BYTES, SamplingParams(stop="y12", logprobs=0), ids)
    assert (stream.text, stream.finish_reason, stream.stop_reason) == ("hello worldx", "stop", "y12")
    assert stream.stopped_by_text
    assert [BYTES.token_text(p.token_id) for d in deltas for p in d.logprobs or []] == ["hello", " world", "x"]
    assert BYTES.token_text(stream.output_ids[-1]) == "12"  # what came after is dropped
    assert stream.push(TokenOutput(1, [7])) == Delta(index=3)


def test_a_stop_string_in_the_last_token_wins_over_length() -> None:
    stream, _ = run(BYTES, SamplingParams(stop=["lo"]), BYTES.encode("hello"))
    assert (stream.text, stream.finish_reason, stream.stopped_by_text) == ("hel", "stop", False)


def test_text_held_back_comes_at_the_end() -> None:
    ids = BYTES.encode("hello wo")
    stream, deltas = run(BYTES, SamplingParams(stop=["world"], logprobs=0), ids)
    assert stream.text == "hello wo"
    assert len(deltas[-1].text) > 1
    assert [p.token_id for d in deltas for p in d.logprobs or []] == ids
    cut = BYTES.encode("😀")[:-1]
    stream, _ = run(BYTES, SamplingParams(), cut)
    assert stream.text == "�"


@pytest.mark.parametrize("min_tokens", [0, 2, 3])
def test_min_tokens(min_tokens: int) -> None:
    ids = BYTES.encode("xyxyxy")
    stream, _ = run(BYTES, SamplingParams(stop=["y"], min_tokens=min_tokens), ids)
    assert stream.text == {0: "x", 2: "xyx", 3: "xyx"}[min_tokens]


def test_abort_ends_a_stream() -> None:
    stream, _ = run(BYTES, SamplingParams(), BYTES.encode("hello"), finish="abort")
    assert (stream.finish_reason, stream.text) == ("abort", "hello")
    empty = ChoiceStream(BYTES, SamplingParams())
    assert empty.push(TokenOutput(1, [], finish_reason="abort")).finish_reason == "abort"


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_complete_grammar_ends_without_a_stop_token(logprobs: bool) -> None:
    """The engine's end without a stop_reason: the last token is text like the others."""
    stream = ChoiceStream(BYTES, SamplingParams(logprobs=0 if logprobs else None))
    for number, token in enumerate(ids := BYTES.encode("[1]")):
        last = number == len(ids) - 1
        scores = [TokenLogprobs(token, -1.0, [])] if logprobs else None
        stream.push(TokenOutput(1, [token], scores, "stop" if last else None))
    assert (stream.text, stream.finish_reason, stream.stop_reason) == ("[1]", "stop", None)
