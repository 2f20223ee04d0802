"""Families with caches of their own kinds through the whole engine, where rows are few and blocks scarce: whoever is
batched with others, computed in chunks, found in the prefix cache, preempted, or begun anew by another engine, is told
the tokens that it is told alone, and on the CPU the very same bits of their log-probabilities."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from fake_device import FakeDevice
from test_worker import BACKENDS
from tiny_models import BLOCK_SIZE, VOCAB, make_reference, resolved_config, save_safetensors

from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.modelfiles.files import ModelFiles
from octavo.types import SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, TokenOutput
from octavo.wire.plan import GroupInfo, Plan
from octavo.worker.worker import Worker

ROWS, BUDGET, LENGTH = 4, 40, 96
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3": {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 11, "query_pre_attn_scalar": 16},
    "qwen2_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
    },
    "qwen3_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True,
    },
    "qwen3_5": {
        "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 16, "initializer_range": 0.15,
    },
}  # fmt: skip


@pytest.fixture(params=FAMILIES, scope="module")
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(
        make_reference(request.param, **FAMILIES[request.param]), tmp_path_factory.mktemp(request.param)
    )


@dataclass
class Told:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached: int = 0


class Engine:
    """`groups`: as the worker has them, but of so many blocks; None: as many as it has."""

    def __init__(self, worker: Worker, blocks: int | None, prefix_cache: bool, depth: int = 1) -> None:
        info = worker.info
        groups = tuple(
            group if blocks is None else GroupInfo(min(blocks, group.num_blocks), group.block_size, group.window)
            for group in info.groups
        )
        config = SchedulerConfig(
            groups, ROWS if blocks else 1, BUDGET, LENGTH, VOCAB, prefix_cache=prefix_cache,
            num_checkpoints=min(info.num_checkpoints, 5), checkpoint_interval=2 * BLOCK_SIZE,
        )  # fmt: skip
        worker.run(Plan(0, release=tuple(range(ROWS))))
        self.scheduler, self.worker, self.depth = Scheduler(config), worker, depth
        self.plans: deque[Plan] = deque()
        self.told: dict[int, Told] = {}

    def add(self, add: Add) -> None:
        self.told[add.id] = Told()
        assert not self.scheduler.add(b"c", add, 0.0)

    def step(self) -> bool:
        while len(self.plans) < self.depth and (plan := self.scheduler.schedule(0.0)) is not None:
            self.worker.launch(plan)
            self.plans.append(plan)
        if not self.plans:
            return False
        for _, reply in self.scheduler.update(self.plans.popleft(), self.worker.collect(), 0.0):
            assert isinstance(reply, TokenOutput), reply
            told = self.told[reply.id]
            told.tokens += reply.token_ids
            told.logprobs += reply.logprobs or []
            told.cached = reply.metrics.cached_tokens if reply.metrics else told.cached
        return True

    def preempt(self, pick: random.Random) -> None:
        if running := self.scheduler._planner.running:
            self.scheduler._planner.preempt(pick.choice(running))

    def finish(self) -> None:
        while self.step():
            self.scheduler.check()
        assert not self.scheduler.has_requests and self.scheduler.tables.num_held == 0


class Started(Worker):
    """Knows what it found out."""

    def start(self) -> Any:
        self.info = super().start()
        return self.info


def alone(worker: Any, add: Add) -> Told:
    engine = Engine(worker, None, prefix_cache=False)
    engine.add(add)
    engine.finish()
    return engine.told[add.id]


def requests(pick: random.Random, count: int) -> Iterator[Add]:
    stems = [[pick.randrange(3, VOCAB) for _ in range(60)] for _ in range(2)]
    for id in range(count):
        prompt = [*pick.choice(stems)[: pick.randint(1, 60)], *(pick.randrange(3, VOCAB) for _ in range(id % 4))]
        params = SamplingParams(temperature=pick.choice([0.0, 0.9]), max_tokens=pick.choice([1, 6, 20]), logprobs=1)
        yield Add(id, prompt, params, seed=id)


def resumed(pick: random.Random, add: Add, whole: Told) -> Add:
    """As another engine is sent it after this one has ended."""
    known = pick.randint(1, len(whole.tokens) - 1)
    return msgspec.structs.replace(add, id=add.id + 1000, output_ids=whole.tokens[:known])


@pytest.mark.parametrize(
    ("backend", "dtype", "depth"),
    [
        pytest.param("reference", "float32", 1, marks=pytest.mark.long),
        ("cpu", "float32", 1),
        ("cpu", "bfloat16", 1),
        pytest.param("device", "float32", 2, marks=pytest.mark.long),
    ],
)
def test_company_does_not_matter(
    files: ModelFiles, backend: str, dtype: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "cpu" and "cpu" not in BACKENDS:
        pytest.skip("the native kernels are not built")
    monkeypatch.setenv("OCTAVO_BACKEND", "cpu" if backend == "cpu" else "reference")
    resolved = resolved_config(dtype, LENGTH, max_num_seqs=ROWS, max_num_batched_tokens=BUDGET)
    worker: Any = Started(resolved, files, FakeDevice() if backend == "device" else None)
    worker.start()
    seen: Counter[str] = Counter()
    for seed in range(2):
        pick = random.Random(seed)
        adds = list(requests(pick, 12))
        wanted = {add.id: alone(worker, add) for add in adds}
        engine = Engine(worker, pick.randint(15, 24), prefix_cache=True, depth=depth)
        again = [resumed(pick, add, wanted[add.id]) for add in adds if len(wanted[add.id].tokens) > 1]
        for add in pick.sample([*adds, *again], len(adds) + len(again)):
            engine.add(add)
            for _ in range(pick.randint(0, 4)):
                engine.step()
            if pick.random() < 0.3:
                engine.preempt(pick)
        engine.finish()
        for add in (*adds, *again):
            told, whole = engine.told[add.id], wanted[add.id % 1000]
            known = len(add.output_ids)
            assert told.tokens == whole.tokens[known:]
            if backend == "cpu":
                assert told.logprobs == whole.logprobs[known:], "other bits than alone"
            seen["cached"] += told.cached
        seen["preempted"] += engine.scheduler.counters.preemptions
    worker.shutdown()
    assert seen["cached"] > 60 and seen["preempted"] > 3, seen
