"""Embeddings of tiny models against Transformers' hidden states: both poolings, in chunks, among other requests, again
after a preemption; and scores of a prompt in the same steps."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tiny_models import BLOCK_SIZE, VOCAB, make_reference, resolved_config, save_safetensors

from octavo.kernels import registry
from octavo.kernels.registry import Spec
from octavo.modelfiles.files import ModelFiles
from octavo.types import Pooling, SamplingParams
from octavo.wire.plan import Admit, Extend, Plan, Run
from octavo.worker import profile
from octavo.worker.worker import Worker

IDS = [(7 * i * i + 3 * i + 5) % VOCAB for i in range(45)]
BACKENDS = [choice.name for choice in registry.report(Spec("cpu", "float32")) if "not compiled" not in choice.reason]
MARKS = {"triton": pytest.mark.long}  # interpreted
CHUNKED = [
    pytest.param(name, chunks, marks=MARKS.get(name, ()))
    for name in BACKENDS
    for chunks in ([45], [1, 30, 13, 1], [8, 8, 8, 8, 8, 5])
    if name != "triton" or len(chunks) == 4  # interpreted, which takes ten seconds
]


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_reference()


@pytest.fixture(scope="module")
def files(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(reference, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS])
def worker(files: ModelFiles, request: pytest.FixtureRequest) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", request.param)
        if request.param == "triton":
            patch.setattr(profile, "measure", lambda *_: 0)  # interpreted it takes 20 s
        worker = Worker(resolved_config(max_num_batched_tokens=72), files)
        worker.start()
    return worker


def wanted(reference: Any, ids: list[int], pooling: Pooling) -> np.ndarray:
    with torch.no_grad():
        hidden = reference.model(torch.tensor([ids])).last_hidden_state[0]  # after the final norm
    return (hidden.mean(0) if pooling == "mean" else hidden[-1]).numpy()


def admit(row: int, ids: list[int], pages: list[int], pooling: Pooling | None, **params: Any) -> Admit:
    found = SamplingParams(temperature=0.0, **({"max_tokens": 0} if pooling else {}), **params)
    return Admit(row, ids, len(ids), 0, (pages,), found, 0, [], [], pooling=pooling)


def vector(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(("worker", "chunks"), CHUNKED, indirect=["worker"])
def test_in_chunks_among_others(worker: Worker, reference: Any, pooling: Pooling, chunks: list[int]) -> None:
    others = [IDS[:9], IDS[3:20]]
    plan = Plan(
        0,
        admit=[
            admit(2, others[0], [30, 31], "last" if pooling == "mean" else "mean"),
            admit(0, IDS, [9, 3, 5, 7, 1, 11], pooling),
            admit(5, others[1], [20, 21, 22], None, prompt_logprobs=1),
        ],
        run=[Run(2, 9, False), Run(0, chunks[0], False), Run(5, 17, True)],
    )
    result = worker.run(plan)
    assert set(result.embeddings) == ({2} if len(chunks) > 1 else {0, 2})
    other = wanted(reference, others[0], "last" if pooling == "mean" else "mean")
    np.testing.assert_allclose(vector(result.embeddings[2]), other, atol=1e-4)
    with torch.no_grad():
        logits = reference(torch.tensor([others[1]])).logits[0]
    assert result.token_ids == [int(logits[-1].argmax())]
    scores = logits.log_softmax(-1)
    for i, entry in enumerate(result.prompt_logprobs[5]):
        assert entry.logprob == pytest.approx(float(scores[i, others[1][i + 1]]), abs=1e-4)
    for count in chunks[1:]:
        assert not result.embeddings.get(0)
        result = worker.run(Plan(1, run=[Run(5, 1, True), Run(0, count, False)]))
    np.testing.assert_allclose(vector(result.embeddings[0]), wanted(reference, IDS, pooling), atol=1e-4)
    worker.run(Plan(2, release=[0, 2, 5]))


def test_what_was_computed_before_a_preemption_does_not_count(worker: Worker, reference: Any) -> None:
    worker.run(Plan(0, admit=[admit(0, IDS, [0, 1, 2], "mean")], run=[Run(0, 20, False)]))
    again = Plan(1, release=[0], admit=[admit(0, IDS, [4, 5, 6, 7], "mean")], run=[Run(0, 32, False)])
    assert not worker.run(again).embeddings
    result = worker.run(Plan(2, extend=[Extend(0, ((8, 9),))], run=[Run(0, 13, False)]))
    np.testing.assert_allclose(vector(result.embeddings[0]), wanted(reference, IDS, "mean"), atol=1e-4)
    worker.run(Plan(3, release=[0]))


def test_the_last_token_after_a_cached_prefix(worker: Worker, reference: Any) -> None:
    first = admit(1, IDS[: 2 * BLOCK_SIZE], [12, 13], "last")
    worker.run(Plan(0, admit=[first], run=[Run(1, 2 * BLOCK_SIZE, False)]))
    whole = admit(0, IDS, [12, 13, 14, 15, 16, 17], "last")
    cached = msgspec.structs.replace(whole, num_computed_tokens=2 * BLOCK_SIZE)
    result = worker.run(Plan(1, release=[1], admit=[cached], run=[Run(0, len(IDS) - 2 * BLOCK_SIZE, False)]))
    np.testing.assert_allclose(vector(result.embeddings[0]), wanted(reference, IDS, "last"), atol=1e-4)
    worker.run(Plan(2, release=[0]))
