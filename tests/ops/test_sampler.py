"""The sampler's rows: every field has its effect, on its own row only, and survives release and re-admission."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from octavo.errors import EngineError
from octavo.kernels.reference import sampling
from octavo.types import SamplingParams
from octavo.wire.plan import Admit
from octavo.worker.sampler import Sampler

VOCAB = 70
ROWS = 8


class SamplingOps:
    """The operations a sampler calls."""

    mask = staticmethod(sampling.mask)
    penalize = staticmethod(sampling.penalize)
    sample = staticmethod(sampling.sample)
    logprobs = staticmethod(sampling.logprobs)


def make_sampler(rows: int = ROWS) -> Sampler:
    return Sampler(SamplingOps(), rows, VOCAB, "cpu")  # type: ignore[arg-type]


def admit(
    row: int,
    params: SamplingParams,
    *,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    seed: int = 0,
    stop_ids: list[int] | None = None,
    bad: list[list[int]] | None = None,
) -> Admit:
    prompt = [1, 2, 3] if prompt is None else prompt
    return Admit(row, prompt + (output or []), len(prompt), 0, (), params, seed, stop_ids or [], bad or [])


def greedy(**fields: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **fields)  # type: ignore[arg-type]


def ranked(*ids: int) -> Tensor:
    """Logits of one row in which `ids` are best, in that order, half a unit apart."""
    logits = torch.full((1, VOCAB), -5.0)
    for place, token_id in enumerate(ids):
        logits[0, token_id] = 5.0 - place / 2
    return logits


def run(sampler: Sampler, row: int, logits: Tensor) -> int:
    (token_id,), _ = sampler.sample([row], logits.clone())
    return token_id


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampler = make_sampler()
    sampler.admit(admit(3, greedy()))
    logits = torch.zeros((1, VOCAB))
    logits[0, [9, 40]] = 2.0
    assert run(sampler, 3, logits) == 9


def test_logit_bias_and_single_bad_words() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, greedy(logit_bias={7: 100.0, 8: -3.0})))
    sampler.admit(admit(1, greedy(), bad=[[5], [6]]))
    sampler.admit(admit(2, greedy()))
    ids, _ = sampler.sample([2, 0, 1], ranked(5, 6, 4).repeat(3, 1))
    assert ids == [5, 7, 4]


def test_min_tokens_masks_stop_ids_until_enough() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, greedy(min_tokens=2), stop_ids=[5, 6]))
    assert [run(sampler, 0, ranked(5, 6, 4)) for _ in range(4)] == [4, 4, 5, 5]
    sampler.release(0)
    sampler.admit(admit(0, greedy(min_tokens=2), stop_ids=[5, 6], output=[4]))
    assert [run(sampler, 0, ranked(5, 6, 4)) for _ in range(2)] == [4, 5]


def test_allowed_token_ids() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, SamplingParams(temperature=5.0, allowed_token_ids=[60, 61]), seed=3))
    got = {run(sampler, 0, ranked(1, 2, 3)) for _ in range(60)}
    assert got == {60, 61}


def test_allowed_but_masked_everywhere_still_gives_an_allowed_token() -> None:
    sampler = make_sampler()
    params = SamplingParams(temperature=1.0, allowed_token_ids=[5], min_tokens=3)
    sampler.admit(admit(0, params, stop_ids=[5]))
    assert run(sampler, 0, ranked(1)) == 5


def mask_of(*tokens: int) -> bytes:
    """As the engine sends them."""
    words = [0] * (-(-VOCAB // 32))
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return b"".join(word.to_bytes(4, "little") for word in words)


def test_a_mask_goes_before_everything_else() -> None:
    """What it leaves out is not taken, whatever else is wished; where the others leave nothing, it alone counts."""
    sampler = make_sampler()
    for row, params, stops, bad in (
        (0, greedy(), [], []),
        (1, greedy(logit_bias={9: 100.0, 33: 5.0}), [], []),
        (2, greedy(allowed_token_ids=[9, 40]), [], []),
        (3, greedy(allowed_token_ids=[8, 9], logit_bias={33: 100.0}), [], []),
        (4, greedy(), [], [[33], [40], [69]]),
        (5, greedy(min_tokens=5), [69, 33], []),
        (6, greedy(repetition_penalty=1.5, presence_penalty=2.0), [], [[40]]),
    ):
        sampler.admit(admit(row, params, stop_ids=stops, bad=bad))
    logits = ranked(9, 69, 40, 33).repeat(7, 1)
    found, _ = sampler.sample(list(range(7)), logits, [mask_of(33, 40, 69)] * 7)
    assert found == [69, 33, 40, 69, 69, 40, 69]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_masks_are_for_their_own_rows(temperature: float) -> None:
    sampler = make_sampler()
    allowed = [None, {5}, {66, 69}, None]
    for row in range(4):
        sampler.admit(admit(row, SamplingParams(temperature=temperature, logprobs=1), seed=row, bad=[[7]]))
    for _ in range(20):
        masks = [None if tokens is None else mask_of(*tokens) for tokens in allowed]
        logits = ranked(1, 2, 3).repeat(4, 1)
        plain = logits.clone()
        found, logprobs = sampler.sample([0, 1, 2, 3], logits, masks)
        assert found[1] == 5 and found[2] in (66, 69)
        for token, entry, row in zip(found, logprobs, plain, strict=True):
            assert entry is not None
            assert entry.logprob == pytest.approx(float(row.log_softmax(-1)[token]), abs=1e-5)  # before the mask


def test_a_mask_of_nothing_is_an_error_of_the_row() -> None:
    sampler = make_sampler()
    for row in range(2):
        sampler.admit(admit(row, SamplingParams(temperature=1.0, allowed_token_ids=[3])))
    with pytest.raises(EngineError, match=r"rows \[1\]"):
        sampler.sample([0, 1], ranked(3).repeat(2, 1), [None, mask_of()])


def test_longer_bad_words_mask_the_last_token_only_after_the_first_ones() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, greedy(), bad=[[10, 11], [20, 21, 22]], prompt=[10]))
    assert run(sampler, 0, ranked(11, 10)) == 11  # the prompt does not count
    assert run(sampler, 0, ranked(10)) == 10
    assert run(sampler, 0, ranked(11, 20)) == 20
    assert run(sampler, 0, ranked(22, 21)) == 22  # 20 before it, but not 20, 21
    assert run(sampler, 0, ranked(20)) == 20
    assert run(sampler, 0, ranked(21)) == 21
    assert run(sampler, 0, ranked(22, 7)) == 7
    sampler.admit(admit(1, greedy(), bad=[[1, 2, 3, 4, 5]], output=[1, 2, 3, 4]))  # widens the history of row 0
    assert run(sampler, 1, ranked(5, 6)) == 6
    assert run(sampler, 0, ranked(10)) == 10
    assert run(sampler, 0, ranked(11, 8)) == 8


def test_penalties_count_prompt_and_output() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, greedy(presence_penalty=0.6), prompt=[5]))
    sampler.admit(admit(1, greedy(frequency_penalty=0.3)))
    sampler.admit(admit(2, greedy(repetition_penalty=1.2), prompt=[5]))
    sampler.admit(admit(3, greedy()))
    steps = [sampler.sample([3, 0, 2, 1], ranked(5, 6).repeat(4, 1))[0] for _ in range(4)]
    assert [s[0] for s in steps] == [5, 5, 5, 5]
    assert [s[1] for s in steps] == [5, 6, 5, 5]  # once each, then level again
    assert [s[2] for s in steps] == [6, 5, 5, 5]  # 5 was in the prompt
    assert [s[3] for s in steps] == [5, 5, 6, 5]  # 0.6 after two


def test_penalty_tables_are_reused_clean() -> None:
    sampler = make_sampler()
    for _ in range(3):
        for row in range(3):
            sampler.admit(admit(row, greedy(presence_penalty=2.0)))
        assert sampler.sample([0, 1, 2], ranked(5, 6).repeat(3, 1))[0] == [5, 5, 5]
        for row in (1, 0, 2):
            sampler.release(row)
    assert sampler._penalties.tables[0].shape[0] <= 4


def test_logprobs_are_those_of_the_raw_logits_and_finite() -> None:
    sampler = make_sampler()
    sampler.admit(admit(0, greedy(logprobs=2, logit_bias={9: 100.0})))
    sampler.admit(admit(1, greedy()))
    sampler.admit(admit(2, greedy(logprobs=0)))
    raw = torch.randn((3, VOCAB), generator=torch.Generator().manual_seed(0))
    raw[0, 11] = -torch.inf
    ids, logprobs = sampler.sample([1, 0, 2], raw[[1, 0, 2]])
    table = raw.log_softmax(-1)
    assert ids[1] == 9 and logprobs[0] is None
    assert logprobs[1] is not None and logprobs[2] is not None
    assert logprobs[1].token_id == 9 and math.isclose(logprobs[1].logprob, float(table[0, 9]), abs_tol=1e-5)
    best = table[0].topk(2)
    assert [t.token_id for t in logprobs[1].top] == best.indices.tolist()
    assert [t.logprob for t in logprobs[1].top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert logprobs[2].top == [] and logprobs[2].token_id == ids[2]
    (entry,) = sampler.prompt_logprobs(raw[:1], [11], 3)
    assert entry.logprob == -9999.0 and len(entry.top) == 3


def test_logits_that_are_not_numbers_are_an_error_that_names_the_rows() -> None:
    sampler = make_sampler()
    sampler.admit(admit(4, greedy()))
    sampler.admit(admit(5, SamplingParams(temperature=1.0)))
    for bad in (math.nan, math.inf):
        logits = ranked(1).repeat(2, 1)
        logits[1, 60] = bad
        with pytest.raises(EngineError, match=r"not finite.*\[5\]"):
            sampler.sample([4, 5], logits)
    with pytest.raises(EngineError):
        sampler.sample([4], torch.full((1, VOCAB), -torch.inf))


def random_request(rng: random.Random) -> dict[str, object]:
    return {
        "params": SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.5]),
            top_k=rng.choice([0, 5, 1]),
            top_p=rng.choice([1.0, 0.8]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.2]),
            repetition_penalty=rng.choice([1.0, 1.1]),
            min_tokens=rng.choice([0, 4]),
            logit_bias=rng.choice([None, {3: 1.5, 4: -1.5}]),
            allowed_token_ids=rng.choice([None, list(range(0, VOCAB, 2))]),
            logprobs=rng.choice([None, 2]),
        ),
        "seed": rng.randrange(-(2**63), 2**63),
        "stop_ids": [2, 8],
        "bad": rng.choice([[], [[1], [4, 6], [2, 8, 10]]]),
        "prompt": [rng.randrange(VOCAB) for _ in range(3)],
    }


def test_a_row_gives_the_same_tokens_alone_batched_and_preempted() -> None:
    """60 requests of mixed settings: alone on row 0, against shuffled batches with random release and re-admission."""
    rng = random.Random(5)
    steps = 8
    requests = [random_request(rng) for _ in range(60)]
    logits = torch.randn((60, steps, VOCAB), generator=torch.Generator().manual_seed(2)) * 2
    alone: list[list[int]] = []
    for number, request in enumerate(requests):
        sampler = make_sampler()
        sampler.admit(admit(0, **request))  # type: ignore[arg-type]
        alone.append([run(sampler, 0, logits[number, i : i + 1]) for i in range(steps)])

    sampler = make_sampler()
    outputs: dict[int, list[int]] = {number: [] for number in range(60)}
    waiting, placed, free = list(range(60)), {}, list(range(ROWS))
    while waiting or placed:
        while waiting and free:
            number = waiting.pop(rng.randrange(len(waiting)))
            placed[number] = free.pop(rng.randrange(len(free)))
            sampler.admit(admit(placed[number], output=outputs[number], **requests[number]))  # type: ignore[arg-type]
        chosen = rng.sample(sorted(placed), rng.randint(1, len(placed)))
        step_logits = torch.stack([logits[number, len(outputs[number])] for number in chosen])
        ids, _ = sampler.sample([placed[number] for number in chosen], step_logits)
        for number, token_id in zip(chosen, ids, strict=True):
            outputs[number].append(token_id)
        for number in list(placed):
            finished = len(outputs[number]) == steps
            if finished or rng.random() < 0.1:
                sampler.release(placed[number])
                free.append(placed.pop(number))
                if not finished:
                    waiting.append(number)
    assert [outputs[number] for number in range(60)] == alone


def test_no_rows_no_work() -> None:
    assert make_sampler().sample([], torch.empty((0, VOCAB))) == ([], [])
