"""The whole engine over a tiny model on a device that runs behind the host, under random events: with plans in flight
everybody gets what the synchronous engine on the CPU gives, to the token; also when launches fail."""

from __future__ import annotations

import random
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from crowd import ConstraintsOf, Crowd, reached, seen, shared_prompt
from driver import GRAMMARS
from fake_device import FakeDevice
from fake_model import one_group
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scripted_worker import Blaming
from tiny import write_tiny_model

from octavo.client.fake import VOCAB_SIZE
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.engine.scheduler import SchedulerConfig
from octavo.errors import DeviceLost
from octavo.grammar.matcher import Vocabulary
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.types import SamplingParams, TokenLogprobs
from octavo.wire.messages import Add
from octavo.wire.plan import Plan
from octavo.worker.worker import Worker

ROWS, BUDGET, BLOCK, LENGTH = 5, 24, 4, 48
STOP = 7
"""Random weights say it often enough, where it is made likelier."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return locate(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def resolved(files: ModelFiles, eager: bool) -> ResolvedConfig:
    config = EngineConfig(
        model=str(files.path), device="cpu", dtype="float32", threads=1, kv_cache_memory="1MiB", max_model_len=LENGTH,
        max_num_seqs=ROWS, max_num_batched_tokens=BUDGET, block_size=BLOCK,
    )  # fmt: skip
    found = resolve(config, detect(), read_facts(files), "tiny")
    given = msgspec.structs.replace(found.options, enforce_eager=eager)  # refused to those who give it for a CPU
    return msgspec.structs.replace(found, options=given)


class Engines:
    """Workers are made once: a row that is released is as new."""

    def __init__(self, files: ModelFiles) -> None:
        self.vocabulary = Vocabulary.load(files, VOCAB_SIZE)
        self.cpu = self._started(files, None, eager=True)
        self.devices = [FakeDevice(), FakeDevice()]
        self.workers = [self._started(files, device, eager=bool(at)) for at, device in enumerate(self.devices)]

    @staticmethod
    def _started(files: ModelFiles, device: FakeDevice | None, *, eager: bool) -> Worker:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OCTAVO_BACKEND", "reference")
            worker = Worker(resolved(files, eager), files, device)
            worker.start()
        return worker

    def crowd(self, worker: Worker, pick: random.Random, sizes: SchedulerConfig, depth: int) -> Crowd:
        worker.run(Plan(0, release=list(range(ROWS))))
        worker.start = lambda: None  # type: ignore[assignment,method-assign,return-value]  # long ago
        return Crowd(pick, sizes, Blaming(worker, depth, torch.OutOfMemoryError), ConstraintsOf(self.vocabulary))


@pytest.fixture(scope="module")
def engines(files: ModelFiles) -> Engines:
    return Engines(files)


def sizes(pick: random.Random, blocks: int) -> SchedulerConfig:
    return SchedulerConfig(
        groups=one_group(blocks, BLOCK),
        max_num_seqs=pick.randint(1, ROWS),
        max_num_batched_tokens=pick.randint(6, BUDGET),
        max_model_len=LENGTH,
        vocab_size=VOCAB_SIZE,
        max_queued_requests=0,
        prefix_cache=pick.random() < 0.8,
    )


def request(pick: random.Random, id: int, stems: list[list[int]]) -> Add:
    plain = pick.random() < 0.5
    pooling = "last" if pick.random() < 0.05 else None
    params = SamplingParams(
        temperature=pick.choice([0.0, 0.8]),
        top_p=pick.choice([1.0, 0.9]),
        max_tokens=0 if pooling else pick.choice([0, 1, 5, 12, 25]),
        min_tokens=pick.choice([0, 0, 2]),
        logit_bias=None if plain else {STOP: 3.0},
        repetition_penalty=1.0 if plain else pick.choice([1.0, 1.2]),
        logprobs=None if plain else pick.choice([None, 2]),
        prompt_logprobs=None if plain else pick.choice([None, None, None, 1]),
    )
    grammar = None if plain or params.max_tokens == 0 else pick.choice([None, None, pick.choice(GRAMMARS)])
    prompt = shared_prompt(pick, stems, 256, LENGTH - 1)
    return Add(id, prompt, params, id, pick.choice([[], [STOP]]), grammar=grammar, pooling=pooling)


def same_words(one: Crowd, other: Crowd, id: int) -> None:
    """All that a client hears of a request but tokens and times."""
    for field in ("logprobs", "prompt_logprobs"):
        mine, wanted = _entries(one, id, field), _entries(other, id, field)
        assert [entry.token_id for entry in mine] == [entry.token_id for entry in wanted]
        found = [entry.logprob for entry in mine]
        assert found == pytest.approx([entry.logprob for entry in wanted], rel=1e-3, abs=1e-4)
    mine_, wanted_ = (crowd.outputs[id][-1].embedding for crowd in (one, other))
    assert (mine_ is None) == (wanted_ is None)
    if mine_ is not None and wanted_ is not None:
        assert np.frombuffer(mine_, np.float32) == pytest.approx(np.frombuffer(wanted_, np.float32), rel=1e-3, abs=1e-4)


def _entries(crowd: Crowd, id: int, field: str) -> list[TokenLogprobs]:
    return [entry for output in crowd.outputs[id] for entry in getattr(output, field) or () if entry is not None]


@cache
def check(engines: Engines) -> None:
    @settings(max_examples=30, phases=[Phase.generate])
    @given(seed=st.integers(0, 2**32), number=st.sampled_from([0, 0, 1]), depth=st.sampled_from([1, 2, 2]))
    def random_events(seed: int, number: int, depth: int) -> None:
        pick = random.Random(seed)
        device = engines.devices[number]
        device._pick = pick.choice([None, random.Random(seed)])
        stems = [[pick.randrange(256) for _ in range(20)] for _ in range(2)]
        crowd = engines.crowd(engines.workers[number], pick, sizes(pick, pick.randint(12, 60)), depth)
        replays = device.num_replays
        for _ in range(3):
            crowd.events(pick.randint(5, 40), lambda id: request(pick, id, stems))
            if pick.random() < 0.3:
                device.fail_launch(after=pick.randint(0, 30))
        crowd.finish()
        device._fail_in = None
        seen["replays"] += device.num_replays - replays

        alone = engines.crowd(engines.cpu, random.Random(0), sizes(random.Random(1), 120), 1)
        for add in crowd.adds.values():
            alone.add(add)
        alone.finish()
        for id in crowd.adds:
            if crowd.judge(id, alone.tokens(id), alone.ended[id]):
                same_words(crowd, alone, id)

    random_events()


@pytest.mark.long
def test_random_events_on_a_device(engines: Engines) -> None:
    seen.clear()
    check(engines)
    reached({"stop": 5, "length": 20, "aborts in flight": 1, "failed": 1, "preemptions": 8, "hits": 30})
    reached({"replays": 100})


@pytest.mark.parametrize("after", [0, 9, 40])
def test_a_lost_device_ends_the_loop_and_fails_no_request(engines: Engines, files: ModelFiles, after: int) -> None:
    device = FakeDevice()
    worker = engines._started(files, device, eager=False)
    pick = random.Random(after)
    crowd = engines.crowd(worker, pick, sizes(pick, 60), 2)
    stems = [[pick.randrange(256) for _ in range(20)]]
    for id in range(8):
        crowd.add(request(pick, id, stems))
    device.lose(after)
    with pytest.raises(DeviceLost, match="the GPU failed"):
        crowd.finish()
    assert worker.is_lost and "failed" not in crowd.ended.values()
    crowd.executor.shutdown()
