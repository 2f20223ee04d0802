"""The native backend on whole tiny models: the recorded step computes what its operations do one by one, and what the
reference does; a request's logits are the same to the bit alone and among others, in chunks, with more threads."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_llama import VARIANTS, agree, expected, random_ids
from test_mixed_formats import MIXES, write
from test_qwen import VARIANTS as QWEN_VARIANTS
from tiny_models import BLOCK_SIZE, VOCAB, Paged, make_reference, resolved_config, save_gguf, save_safetensors
from torch import Tensor

from octavo.errors import EngineError
from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.kernels.recorded import Runs, Steps
from octavo.kernels.registry import Spec
from octavo.kernels.step import RecurrentCache
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Plan, Run
from octavo.worker.worker import Worker

if not next(choice for choice in registry.report(Spec("cpu", "float32")) if choice.name == "cpu").chosen:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from octavo.kernels.cpu.backend import known_isas
from octavo.kernels.cpu.record import RecordedStep

MAX_TOKENS = 64


def native(dtype: str = "float32", kv: str | None = None, threads: int = 2, isa: str | None = None) -> Ops:
    return registry.choose(Spec("cpu", dtype, kv, threads, isa), "cpu")


class RecordedPaged(Paged):
    """Steps are replayed; logits are those of all positions, and where a row samples also the step's own."""

    recorded: Steps

    def record(self, ops: Ops) -> RecordedPaged:
        floats, ints = torch.zeros(8, 3), torch.zeros(8, 3, dtype=torch.int64)
        found = ops.record(self.model, self.kv, self.batch.permanent(floats, ints), MAX_TOKENS, BLOCK_SIZE)
        assert found is not None
        self.recorded = found
        return self

    def run(self, lengths: dict[int, int]) -> dict[int, Tensor]:
        rows, counts = list(lengths), list(lengths.values())
        samples = [bool(self.batch.num_computed[row] + n == self.batch.num_tokens[row]) for row, n in lengths.items()]
        states = [state for cache in self.kv if isinstance(cache, RecurrentCache) for state in cache.states]
        before = [state.clone() for state in states]
        self.recorded.begin(Runs(rows, counts, samples), whole=True)
        logits = self.model.logits(self.recorded.hidden().clone())
        ends = torch.tensor(counts).cumsum(0)[torch.tensor(samples)] - 1
        for again in (False, True):
            for first in range(0, len(ends), self.recorded.chunk):
                part = ends[first : first + self.recorded.chunk]
                assert torch.equal(self.recorded.logits(first, len(part)), logits[part])
            if not again:
                for state, was in zip(states, before, strict=True):
                    state.copy_(was)
                self.recorded.begin(Runs(rows, counts, samples))
        self.batch.num_computed[rows] += torch.tensor(counts).numpy()
        return dict(zip(lengths, logits.split(counts), strict=True))

    def whole(self, token_ids: list[int], chunks: list[int] | None = None) -> Tensor:
        if chunks is None:
            chunks = [MAX_TOKENS] * (len(token_ids) // MAX_TOKENS) + [len(token_ids) % MAX_TOKENS]
        return super().whole(token_ids, [n for n in chunks if n])


def loaded(files: ModelFiles, ops: Ops, dtype: str = "float32") -> RecordedPaged:
    paged = RecordedPaged.load(files, dtype, ops=ops)
    assert isinstance(paged, RecordedPaged)
    return paged.record(ops)


@pytest.mark.parametrize("variant", [*VARIANTS, *QWEN_VARIANTS])
def test_recorded_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    kind, changes = {**VARIANTS, **QWEN_VARIANTS}[variant]
    reference = make_reference(kind, **changes)
    paged, ids = loaded(save_safetensors(reference, tmp_path), native()), random_ids(77)
    agree(paged.whole(ids), expected(reference, ids))
    agree(paged.whole(ids, [1, 9, 30, 8, 1, 1, 27]), expected(reference, ids))


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_recorded_equals_one_operation_at_a_time(isa: str, dtype: str, tmp_path: Path) -> None:
    """To the bit: what is fused computes the same."""
    models: list[tuple[str, dict[str, Any]]] = [
        ("llama", {"intermediate_size": 64}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("qwen3", {"head_dim": 20}),
    ]
    for i, (kind, changes) in enumerate(models):
        files, ops = save_safetensors(make_reference(kind, **changes), tmp_path / str(i)), native(dtype, isa=isa)
        ids = random_ids(60)
        assert torch.equal(loaded(files, ops, dtype).whole(ids), Paged.load(files, dtype, ops=ops).whole(ids))


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("save", [save_safetensors, save_gguf])
def test_f16_files_are_computed_as_exactly_as_f32_ones(
    isa: str, save: Callable[[Any, Path], ModelFiles], tmp_path: Path
) -> None:
    """But for the rounding of K and V to f16, which takes little."""
    reference = make_reference()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.half())
    path = tmp_path / ("tiny.gguf" if save is save_gguf else "tiny")
    files, ids = save(copy.deepcopy(reference).half(), path), random_ids(77)
    wanted = expected(reference, ids)
    assert read_facts(files).dtype == "float16"
    agree(loaded(files, native("float16", "float32", isa=isa), "float16").whole(ids), wanted)
    found = loaded(files, native("float16", isa=isa), "float16").whole(ids)
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    assert (p.exp() * (p - q)).sum(-1).mean() < 1e-5


def test_norms_of_heads_are_no_pass_of_their_own(tmp_path: Path) -> None:
    found = []
    for kind in ("llama", "qwen3"):
        paged = loaded(save_safetensors(make_reference(kind, head_dim=16), tmp_path / kind), native())
        assert isinstance(paged.recorded, RecordedStep)
        paged.recorded.program.profiling = True
        paged.admit(0, random_ids(5))
        paged.recorded.fused(Runs([0], [5], [True]))
        found.append([name for name, *_ in paged.recorded.program.profile()])
    assert found[0] == found[1] and found[0].count("rope_cache") == 2


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("mix", MIXES)
def test_quantized_files(mix: str, isa: str, tmp_path: Path) -> None:
    """Every layout: recorded and one by one to the bit, and near the reference."""
    path = tmp_path / "mixed.gguf"
    write(path, MIXES[mix], dense=False)
    files, ids, ops = locate(path), [n % 64 for n in random_ids(50)], native(isa=isa)
    found = loaded_short(files, ops).whole(ids)
    assert torch.equal(Paged.load(files, max_model_len=64, ops=ops).whole(ids), found)
    wanted = Paged.load(files, max_model_len=64).whole(ids)
    assert (found - wanted).norm() <= 0.05 * wanted.norm()


def loaded_short(files: ModelFiles, ops: Ops) -> RecordedPaged:
    paged = RecordedPaged.load(files, max_model_len=64, ops=ops)
    assert isinstance(paged, RecordedPaged)
    return paged.record(ops)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize(
    ("dtype", "kv"), [("float32", "float32"), ("float32", "bfloat16"), ("float32", "int8"), ("float16", "float16")]
)
def test_a_request_alone_and_among_others_to_the_bit(isa: str, dtype: str, kv: str, tmp_path: Path) -> None:
    shape = {"num_key_value_heads": 1, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192}
    files = save_gguf(make_reference(**shape), tmp_path / "tiny.gguf")
    paged = loaded(files, native(dtype, kv, isa=isa), dtype)
    rows = {row: random_ids(length, row) for row, length in enumerate([100, 3, 37, 64, 1, 17, 90, 8])}
    alone = {row: paged.whole(ids) for row, ids in rows.items()}
    single = loaded(files, native(dtype, kv, 1, isa), dtype)
    assert torch.equal(single.whole(rows[0]), alone[0])
    assert torch.equal(paged.whole(rows[0], [1] * 100), alone[0])
    assert torch.equal(paged.whole(rows[0], [2, 3, 5, 7, 11, 13, 17, 19, 23]), alone[0])
    paged.batch.release(0)
    for row, ids in rows.items():
        paged.admit(row, ids)
    found: dict[int, list[Tensor]] = {row: [] for row in rows}
    draw, left = random.Random(5), {row: len(ids) for row, ids in rows.items()}
    while any(left.values()):
        going = [row for row in left if left[row] and draw.random() < 0.8]
        lengths = {row: min(left[row], draw.choice([1, 1, 2, 7])) for row in going}
        for row, logits in (paged.run(lengths) if lengths else {}).items():
            found[row].append(logits)
            left[row] -= len(logits)
    for row, logits in alone.items():
        assert torch.equal(torch.cat(found[row]), logits)


# --- the worker


def start(files: ModelFiles, **changes: Any) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", "cpu")
        worker = Worker(resolved_config(**changes), files)
        worker.start()
    return worker


def admit(row: int, ids: Sequence[int], pages: int, params: SamplingParams) -> Admit:
    blocks = list(range(row * pages, (row + 1) * pages))
    return Admit(row, list(ids), len(ids), 0, (blocks,), params, 1000 + row, [], [])


def generated(
    worker: Worker, prompts: dict[int, list[int]], params: SamplingParams, count: int
) -> dict[int, list[int]]:
    pages = 128 // BLOCK_SIZE
    worker.run(Plan(0, admit=[admit(row, ids, pages, params) for row, ids in prompts.items()]))
    found: dict[int, list[int]] = {row: [] for row in prompts}
    for step in range(count):
        runs = [Run(row, 1 if step else len(ids), True) for row, ids in prompts.items()]
        for run, token_id in zip(runs, worker.run(Plan(0, run=runs)).token_ids, strict=True):
            found[run.row].append(token_id)
    worker.run(Plan(0, release=list(prompts)))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


def test_one_call_samples_as_the_parts_do(files: ModelFiles) -> None:
    """With logprobs the step runs in parts and the sampler chooses; without it is one call. Tokens are the same."""
    worker = start(files)
    prompts = {row: random_ids(5, row) for row in range(8)}
    for params in ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8, "top_k": 20}, {"temperature": 1.3}):
        whole = generated(worker, prompts, SamplingParams(**params), 30)
        parts = generated(worker, prompts, SamplingParams(**params, logprobs=0), 30)
        assert whole == parts
        alone = {row: generated(worker, {row: ids}, SamplingParams(**params), 30)[row] for row, ids in prompts.items()}
        assert alone == whole


def test_logits_that_are_not_numbers_are_an_error_and_the_worker_goes_on(tmp_path: Path) -> None:
    reference = make_reference()
    with torch.no_grad():
        reference.model.embed_tokens.weight[7] = torch.nan
    worker = start(save_safetensors(reference, tmp_path))
    params, prompt = SamplingParams(temperature=0.0), random_ids(6)
    with pytest.raises(EngineError, match=r"not finite numbers \(batch rows \[3\]\)"):
        runs = [Run(2, 6, True), Run(3, 1, True)]
        worker.run(Plan(0, admit=[admit(2, [n or 8 for n in prompt], 4, params), admit(3, [7], 4, params)], run=runs))
    worker.run(Plan(0, release=[2, 3]))
    assert VOCAB not in generated(worker, {2: [1, 2, 3]}, params, 5)[2]


def test_ten_thousand_steps_take_no_memory(files: ModelFiles) -> None:
    worker = start(files, max_model_len=128)
    params = SamplingParams(temperature=1.0, top_k=10)
    process, pages = psutil.Process(), 128 // BLOCK_SIZE
    before = 0
    for turn in range(100):
        if turn == 10:
            before = process.memory_info().rss
        rows = [turn % 8, (turn + 3) % 8]
        worker.run(Plan(0, admit=[admit(row, [1, 2, 3], pages, params) for row in rows]))
        worker.run(Plan(0, run=[Run(row, 3, True) for row in rows]))
        decode = Plan(0, run=[Run(row, 1, True) for row in rows])
        for _ in range(110):
            worker.run(decode)
        worker.run(Plan(0, release=rows))
    assert process.memory_info().rss - before < 1 << 20
