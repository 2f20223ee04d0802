"""The worker on a tiny model: plans in, tokens out; rows, pages, copies, prompt log-probabilities, sizes, failures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from tiny_models import BLOCK_SIZE, VOCAB, make_reference, resolved_config, save_safetensors

from octavo.cachespec import Latent, Nothing, Paged, Recurrent, SharedWith
from octavo.config.memory import GroupSize, group_sizes, host_blocks, state_bytes
from octavo.errors import ConfigError, ModelFileError, OutOfMemory
from octavo.kernels import registry
from octavo.kernels.registry import Spec
from octavo.kernels.step import PagedCache, RecurrentCache
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.rank import Rank
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, BlockCopy, Extend, Plan, Run
from octavo.worker import kv, profile
from octavo.worker.worker import State, Worker

GREEDY = SamplingParams(temperature=0.0)
PROMPT = [5, 80, 3, 17, 99, 120, 44, 8, 8, 61, 140, 2]


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_reference()


@pytest.fixture(scope="module")
def files(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(reference, tmp_path_factory.mktemp("tiny"))


BACKENDS = [choice.name for choice in registry.report(Spec("cpu", "float32")) if "not compiled" not in choice.reason]


EACH_BACKEND = [pytest.param(name, marks=pytest.mark.long if name == "triton" else ()) for name in BACKENDS]
"""Interpreted kernels take long; test_device_worker.py runs them in any case."""


@pytest.fixture(scope="module", params=EACH_BACKEND)
def worker(files: ModelFiles, request: pytest.FixtureRequest) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", request.param)
        if request.param == "triton":
            patch.setattr(profile, "measure", lambda *_: 0)  # interpreted it takes 20 s
        worker = Worker(resolved_config(), files)
        info = worker.start()
    assert (info.vocab_size, info.max_model_len, info.dtype, info.backend) == (VOCAB, 128, "float32", request.param)
    (group,) = info.groups
    assert group.num_blocks == 8 * 128 // BLOCK_SIZE
    assert info.kv_bytes == group.num_blocks * BLOCK_SIZE * 2 * 2 * 2 * 8 * 4
    assert worker.state is State.READY
    return worker


def admit(
    row: int, ids: list[int], blocks: list[int], params: SamplingParams = GREEDY, computed: int = 0, groups: int = 1
) -> Admit:
    return Admit(row, ids, len(ids), computed, (blocks,) * groups, params, row, [], [])


def greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_decode_over_extended_pages(worker: Worker, reference: Any) -> None:
    result = worker.run(Plan(1, admit=[admit(3, PROMPT, [9, 2])], run=[Run(3, len(PROMPT), True)]))
    found = result.token_ids
    for index in range(9):
        extend = [Extend(3, ((30,),))] if len(PROMPT) + len(found) == 2 * BLOCK_SIZE + 1 else []
        found += worker.run(Plan(index, extend=extend, run=[Run(3, 1, True)])).token_ids
    assert worker.state is State.RUNNING
    assert found == greedy(reference, PROMPT, 10)
    worker.run(Plan(0, release=[3]))


def test_preempted_row_goes_on_elsewhere(worker: Worker, reference: Any) -> None:
    wanted = greedy(reference, PROMPT, 6)
    found = worker.run(Plan(1, admit=[admit(0, PROMPT, [0, 1, 2])], run=[Run(0, len(PROMPT), True)])).token_ids
    found += worker.run(Plan(2, run=[Run(0, 1, True)])).token_ids
    again = Admit(1, PROMPT + found, len(PROMPT), 0, ((7, 6, 5),), GREEDY, 0, [], [])
    found += worker.run(Plan(3, release=[0], admit=[again], run=[Run(1, len(PROMPT) + 2, True)])).token_ids
    for index in range(3):
        found += worker.run(Plan(index, run=[Run(1, 1, True)])).token_ids
    assert found == wanted
    worker.run(Plan(0, release=[1]))


def test_shared_and_copied_pages(worker: Worker, reference: Any) -> None:
    """A second row starts on the first one's full page, and on a copy of its partial page."""
    wanted = greedy(reference, PROMPT, 3)
    first = worker.run(Plan(1, admit=[admit(0, PROMPT, [20, 21])], run=[Run(0, len(PROMPT), True)])).token_ids
    second = admit(1, PROMPT, [20, 22], computed=len(PROMPT) - 1)
    plan = Plan(2, admit=[second], copies=[BlockCopy(21, 22)], run=[Run(0, 1, True), Run(1, 1, True)])
    assert first == wanted[:1]
    assert worker.run(plan).token_ids == [wanted[1], wanted[0]]
    assert worker.run(Plan(3, run=[Run(1, 1, True), Run(0, 1, True)])).token_ids == [wanted[1], wanted[2]]
    worker.run(Plan(4, release=[0, 1]))


def test_copies_read_before_they_write(worker: Worker, reference: Any) -> None:
    """Two full pages are exchanged; the row that is admitted on them in the other order must not notice."""
    ids = [*PROMPT, *PROMPT][: 2 * BLOCK_SIZE + 1]
    wanted = worker.run(Plan(1, admit=[admit(0, ids, [40, 41, 42])], run=[Run(0, len(ids), True)])).token_ids
    plan = Plan(
        2,
        release=[0],
        admit=[admit(1, ids, [41, 40, 43], computed=2 * BLOCK_SIZE)],
        copies=[BlockCopy(40, 41), BlockCopy(41, 40)],
        run=[Run(1, len(ids) - 2 * BLOCK_SIZE, True)],
    )
    assert worker.run(plan).token_ids == wanted
    worker.run(Plan(3, release=[1]))


def test_prompt_logprobs(worker: Worker, reference: Any) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=3, logprobs=2)
    other = admit(2, PROMPT[:5], [10])
    plan = Plan(1, admit=[other, admit(0, PROMPT, [0, 1], params)], run=[Run(2, 5, True), Run(0, 7, False)])
    found = worker.run(plan).prompt_logprobs
    assert list(found) == [0]
    entries = found[0]
    result = worker.run(Plan(2, run=[Run(0, len(PROMPT) - 7, True)]))
    entries += result.prompt_logprobs[0]
    with torch.no_grad():
        wanted = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    assert [entry.token_id for entry in entries] == PROMPT[1:]
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(wanted[position, PROMPT[position + 1]]), abs=1e-4)
        assert [top.token_id for top in entry.top] == wanted[position].topk(3).indices.tolist()
    assert result.logprobs[0] is not None
    assert result.logprobs[0][0].token_id == result.token_ids[0]
    worker.run(Plan(3, release=[0, 2]))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run(0, 13, True), "beyond the tokens"),
        (Run(0, 3, True), "samples only where"),
        (Run(0, 0, False), "at least one token"),
        (Run(4, 1, True), "beyond the tokens"),
    ],
)
def test_broken_promises_raise_and_the_worker_goes_on(worker: Worker, run: Run, message: str, reference: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=message):
        worker.run(Plan(1, admit=[admit(0, PROMPT, [0, 1])], run=[run]))
    result = worker.run(Plan(2, release=[0, 4], admit=[admit(0, PROMPT, [0, 1])], run=[Run(0, 12, True)]))
    assert result.token_ids == greedy(reference, PROMPT, 1)
    worker.run(Plan(3, release=[0]))


def test_too_few_pages_and_taken_rows(worker: Worker) -> None:
    with pytest.raises((AssertionError, RuntimeError), match="too few pages"):
        worker.run(Plan(1, admit=[admit(0, PROMPT, [0])], run=[Run(0, 12, True)]))
    with pytest.raises(AssertionError, match="row 0 is taken"):
        worker.run(Plan(2, admit=[admit(0, PROMPT, [0])]))
    worker.run(Plan(3, release=[0]))


def test_shutdown_is_idempotent_and_final(files: ModelFiles) -> None:
    worker = Worker(resolved_config(), files)
    worker.start()
    worker.shutdown()
    worker.shutdown()
    assert worker.state is State.DRAINING
    with pytest.raises(AssertionError, match="draining"):
        worker.run(Plan(1))


def test_a_part_of_a_model_is_refused(files: ModelFiles) -> None:
    worker = Worker(resolved_config(), files, rank=Rank(1, 2, "cpu"))
    with pytest.raises(ConfigError, match="2 ranks: a worker computes a whole model"):
        worker.start()
    assert worker.state is State.FAILED


def test_failed_load(tmp_path: Path, files: ModelFiles) -> None:
    (tmp_path / "config.json").write_bytes((files.path / "config.json").read_bytes())
    worker = Worker(resolved_config(), ModelFiles("empty", tmp_path))
    with pytest.raises(ModelFileError):
        worker.start()
    assert worker.state is State.FAILED


def num_blocks(weights: int = 0, workspace: int = 0, **changes: Any) -> int:
    (found,) = host_blocks(resolved_config(**changes), [GroupSize(PAGE)], weights, workspace)
    return found


PAGE = BLOCK_SIZE * 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_kv_sizes(files: ModelFiles, backend: str) -> None:
    ops = registry.choose(Spec("cpu", "float32"), backend)
    assert kv.sizes(read_facts(files), resolved_config(), ops) == (GroupSize(PAGE),)
    assert group_sizes(resolved_config(), read_facts(files)) == (GroupSize(PAGE),)
    pages = [cache.blocks for cache in kv.allocate(read_facts(files), resolved_config(), ops, [5])]
    assert [page.shape[:2] for page in pages] == [(2, 5), (2, 5)] and sum(page.nbytes for page in pages) == 5 * PAGE
    assert num_blocks(kv_cache_memory=40 * PAGE + 5) == 40
    assert num_blocks(memory_budget=4 * 50 * PAGE) == 50
    # The least is one whole sequence, the most what all rows can hold.
    assert num_blocks(memory_budget=20 * PAGE) == 16
    assert num_blocks(max_num_seqs=2) == 32


def test_each_layer_is_given_what_it_keeps() -> None:
    """States for every row and for the padding; blocks of its group; the cache of an earlier layer; nothing."""
    specs = (Recurrent(((2, 3), (4,))), Paged(2, 8, 8), Paged(2, 8, 8, 16), SharedWith(1), Nothing())
    facts: Any = SimpleNamespace(cache_specs=specs, architecture="tiny")
    ops, resolved = registry.choose(Spec("cpu", "float32"), "reference"), resolved_config()
    assert [size.window for size in kv.sizes(facts, resolved, ops)] == [None, 16]
    first, second, third, shared, nothing = kv.allocate(facts, resolved, ops, [5, 3], kv.states(facts, resolved, ops))
    assert isinstance(first, RecurrentCache) and [tuple(s.shape) for s in first.states] == [(9, 2, 3), (9, 4)]
    checkpoints = 4 * 8 * 40  # four for each of the eight rows
    assert sum(state.nbytes for state in first.states) + checkpoints == state_bytes(resolved, facts)
    assert isinstance(second, PagedCache) and (second.group, second.blocks.shape[1]) == (0, 5) and shared is second
    assert isinstance(third, PagedCache) and (third.group, third.blocks.shape[1]) == (1, 3) and nothing is None
    for unserved in (Latent(8, 4), Paged(2, 8, 4)):
        facts.cache_specs = (unserved,)
        with pytest.raises(ModelFileError, match="not served yet"):
            kv.sizes(facts, resolved, ops)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_pages_are_as_large_as_was_decided_before_anything_loads(
    files: ModelFiles, backend: str, dtype: str, kv_dtype: str
) -> None:
    if backend == "triton" and kv_dtype == "int8":
        pytest.skip("int8 pages are for the CPU")
    kind = dtype if kv_dtype == "auto" else kv_dtype
    resolved = msgspec.structs.replace(resolved_config(), dtype=dtype, kv_cache_dtype=kind)
    try:
        ops = registry.choose(Spec("cpu", dtype, kind), backend)
    except ConfigError as error:
        pytest.skip(error.message)
    facts = read_facts(files)
    assert kv.sizes(facts, resolved, ops) == group_sizes(resolved, facts)


def test_too_little_memory_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfMemory, match=r"holds 120 tokens.*max_model_len 128.*raise --kv-cache-memory or lower"):
        num_blocks(kv_cache_memory=15 * PAGE)
    with pytest.raises(OutOfMemory, match="lower --max-model-len"):
        num_blocks(3 * PAGE, 2 * PAGE, memory_budget=20 * PAGE)
    with pytest.raises(OutOfMemory, match="lower --kv-cache-memory"):
        num_blocks(memory_budget=20 * PAGE, kv_cache_memory=40 * PAGE)


def test_backends_are_chosen_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {choice.name: choice for choice in registry.report(Spec("cpu", "bfloat16"))}
    assert list(names) == ["cpu", "reference", "triton"]
    chosen = [choice.chosen for choice in names.values()]
    assert chosen == ([True, False, False] if "cpu" in BACKENDS else [False, True, False])
    on_gpu = registry.report(Spec("cuda:0", "bfloat16"))
    assert all("cuda:0" in choice.reason and not choice.chosen for choice in on_gpu[:2])
    assert "GPU" in on_gpu[2].reason and not on_gpu[2].chosen
    in_f32 = registry.choose(Spec("cpu", "float16"), "reference")
    assert in_f32.activations == torch.float32 and "computed as float32" in in_f32.notes[0]
    with pytest.raises(ConfigError, match="OCTAVO_BACKEND=fast: no such backend; there are cpu, reference, triton"):
        registry.choose(Spec("cpu", "bfloat16"), "fast")
    with pytest.raises(ConfigError, match=r"KV cache int8.*reference: has no KV cache of int8"):
        registry.choose(Spec("cpu", "bfloat16", "int8"), "reference")
    assert registry.choose(Spec("cpu", "float32"), "reference").name == "reference"
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    (native, *_) = registry.report(Spec("cpu", "bfloat16"))
    why = "the native kernels were not built at installation; they need a C++ compiler and Python's headers"
    assert native.reason == why
    assert registry.choose(Spec("cpu", "float32")).notes == [f"not the cpu kernels: {why}"]
