"""Tokens never hang on drafts: right, wrong and partly right ones give those of a worker that is proposed nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from fake_device import FakeDevice
from test_device_worker import started
from tiny_models import BLOCK_SIZE, VOCAB, make_reference, save_safetensors

from octavo.modelfiles.files import ModelFiles
from octavo.types import SamplingParams, TokenLogprobs
from octavo.wire.plan import Admit, Masks, Plan, Run
from octavo.worker.worker import Worker

PROMPTS = ((5, 80, 3, 17, 99, 120, 44, 8, 8), (7, 9, 30), (1,) * 9, (150, 2, 77, 12, 5), (61,), (8, 140, 2, 2))
SETTINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=20),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingParams(temperature=0.7, logprobs=3, logit_bias={3: 2.0, 40: -5.0}),
    SamplingParams(temperature=0.0, min_tokens=9, repetition_penalty=1.2),
    SamplingParams(temperature=1.0, allowed_token_ids=[4, 5, 6, 7, 8, 9], min_p=0.01),
)
STOPS = tuple(range(0, VOCAB, 2))
BAD = ((4, 5), (6, 6, 7), (9,))
TOKENS = 14
PER_ROW = 4
Propose = Callable[[list[int]], tuple[int, ...]]
"""Of the tokens that will come, what is proposed."""


def wrong(tokens: list[int]) -> tuple[int, ...]:
    return tuple((token + 1) % VOCAB for token in tokens[:3])


def partly(tokens: list[int]) -> tuple[int, ...]:
    return (*tokens[:2], *wrong(tokens[2:3]), *tokens[3:4])


PROPOSALS: dict[str, Propose] = {
    "right": lambda tokens: tuple(tokens[:3]),
    "wrong": wrong,
    "partly": partly,
    "all": tuple,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["reference", "cpu", "device"])
def worker(files: ModelFiles, request: pytest.FixtureRequest) -> Worker:
    if request.param == "device":
        return started(files, FakeDevice(pick=random.Random(5)), max_num_batched_tokens=128)
    return started(files, None, backend=request.param, max_num_batched_tokens=128)


def mask_of(allowed: list[int]) -> bytes:
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little").tobytes()


MASKS = [mask_of([row, *range(row, VOCAB, 3)]) if row % 2 else None for row in range(len(PROMPTS))]


def generate(
    worker: Worker, propose: Callable[[int, list[int]], tuple[int, ...]], masked: bool = False
) -> tuple[list[list[int]], list[list[TokenLogprobs]], int]:
    """TOKENS of each row, their log-probabilities, and how many steps that took. `propose(row, tokens so far)`."""
    rows = range(len(PROMPTS))
    admits = [
        Admit(row, prompt, len(prompt), 0, (tuple(range(row * PER_ROW, (row + 1) * PER_ROW)),), SETTINGS[row], 11 * row,
              STOPS if row == 4 else (), BAD if row == 2 else (), masked)
        for row, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    found, logprobs = [list[int]() for _ in rows], [list[TokenLogprobs]() for _ in rows]
    steps = 0
    while any(len(tokens) < TOKENS for tokens in found):
        runs = []
        for row, prompt in enumerate(PROMPTS):
            if len(found[row]) < TOKENS:
                room = PER_ROW * BLOCK_SIZE - len(prompt) - len(found[row])
                draft = propose(row, found[row])[: min(room, TOKENS - 1 - len(found[row]))]
                runs.append(Run(row, 1 if steps else len(prompt), True, draft))
        masks = None
        if masked:
            places = [MASKS[run.row] for run in runs for _ in range(len(run.draft) + 1)]
            masks = Masks(steps, tuple(places))
        result = worker.run(Plan(steps, admit=tuple([] if steps else admits), run=tuple(runs), masked=masked), masks)
        for run, tokens, entries in zip(runs, result.tokens, result.logprobs, strict=True):
            assert 1 <= len(tokens) <= len(run.draft) + 1 and tokens[:-1] == run.draft[: len(tokens) - 1]
            found[run.row] += tokens
            logprobs[run.row] += entries or ()
        steps += 1
    worker.run(Plan(steps, release=tuple(rows)))
    return found, logprobs, steps


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_tokens_are_those_without_drafts(worker: Worker, masked: bool) -> None:
    wanted, wanted_logprobs, steps = generate(worker, lambda _row, _found: (), masked)
    assert steps == TOKENS and len({tuple(tokens) for tokens in wanted}) == len(PROMPTS)
    taken = {}
    for name, propose in PROPOSALS.items():
        found, logprobs, taken[name] = generate(
            worker, lambda row, found, propose=propose: propose(wanted[row][len(found) :]), masked
        )
        assert found == wanted, name
        for mine, theirs in zip(logprobs, wanted_logprobs, strict=True):
            assert [entry.token_id for entry in mine] == [entry.token_id for entry in theirs]
            assert [entry.logprob for entry in mine] == pytest.approx([entry.logprob for entry in theirs], abs=1e-4)
    assert taken["all"] == 1 and taken["right"] < taken["partly"] < taken["wrong"] == TOKENS


def test_some_rows_are_proposed_something_and_others_are_not(worker: Worker) -> None:
    wanted, _, _ = generate(worker, lambda _row, _found: ())
    pick = random.Random(1)

    def propose(row: int, found: list[int]) -> tuple[int, ...]:
        coming = wanted[row][len(found) :][: pick.randrange(5)]
        return () if row % 3 == 0 else tuple(t if pick.random() < 0.7 else pick.randrange(VOCAB) for t in coming)

    for _ in range(3):
        assert generate(worker, propose)[0] == wanted


def test_a_draft_needs_blocks_and_a_sample(worker: Worker) -> None:
    admit = Admit(0, PROMPTS[0], 9, 0, (tuple(range(-(-9 // BLOCK_SIZE))),), SETTINGS[0], 0, (), ())
    room = -9 % BLOCK_SIZE
    for run, message in (
        (Run(0, 9, True, (1,) * (room + 1)), "too few"),
        (Run(0, 4, False, (1,)), "does not sample"),
        (Run(0, 9, True, (1,) * 500), "500 proposed behind 9"),
    ):
        with pytest.raises((AssertionError, RuntimeError), match=message):
            worker.run(Plan(0, admit=(admit,), run=(run,)))
        worker.run(Plan(1, release=(0,)))
    assert len(worker.run(Plan(2, admit=(admit,), run=(Run(0, 9, True, (1,) * room),))).tokens) == 1
    worker.run(Plan(3, release=(0,)))
