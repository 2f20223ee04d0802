"""SmolLM2-135M from its GGUF file. Reference kernels in f32: greedy text token for token that of Transformers on the
dequantized weights. Native kernels, which round activations to eight bits: nearly its distributions. Both: the same
text whether a prompt runs alone, in a batch or in chunks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Paged, resolved_config
from torch import Tensor

from octavo.kernels import registry
from octavo.modelfiles.files import ModelFiles, locate
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Plan, Run
from octavo.worker.worker import Worker

NUM_OUTPUT = 64
PROMPTS = [
    "The capital of France is", "2 + 2 =", "Once upon a time there was a", "def fibonacci(n):", "Water boils at",
    "The three primary colours are", "To make bread you need", "In 1969, Neil Armstrong", "The opposite of hot is",
    "A haiku about autumn:", "Photosynthesis is the process by which", "My favourite food is", "import numpy as np\n",
    "Dear Sir or Madam,", "The largest planet in the solar system", "Q: What is a prime number?\nA:", "Roses are red,",
    "SELECT name FROM users WHERE", "La capitale de l'Espagne est", "It was a dark and stormy night;",
]  # fmt: skip
BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def files(demo_gguf: Path) -> ModelFiles:
    return locate(demo_gguf)


@pytest.fixture(scope="module")
def prompts(files: ModelFiles) -> list[list[int]]:
    tokenizer = Tokenizer.load(files)
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


NATIVE = any(choice.chosen and choice.name == "cpu" for choice in registry.report(registry.Spec("cpu", "bfloat16")))
EXACT = [("reference", "float32"), *([("cpu", "float32")] if NATIVE else [])]
AS_SERVED = [("cpu", "bfloat16")] if NATIVE else []
FAST = pytest.mark.parametrize("worker", [*EXACT[1:], *AS_SERVED] or EXACT, ids="-".join, indirect=True)
"""The reference takes half a minute for what tiny models show of it as well."""


@pytest.fixture(scope="module", params=[*EXACT, *AS_SERVED], ids="-".join)
def worker(files: ModelFiles, request: pytest.FixtureRequest) -> Worker:
    backend, dtype = request.param
    resolved = resolved_config(
        dtype,
        max_model_len=128,
        max_num_seqs=20,
        max_num_batched_tokens=512,
        block_size=BLOCK_SIZE,
        memory_budget=4 << 30,
        threads=2 if backend == "cpu" else 1,  # waits of two threads are long on a busy machine
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", backend)
        worker = Worker(resolved, files)
        worker.start()
    return worker


def generate(worker: Worker, prompts: list[list[int]], budget: int) -> list[list[int]]:
    """Greedy, all rows at once, prompts in chunks of at most `budget` tokens that start in different steps."""
    pages = -(-128 // BLOCK_SIZE)
    params = SamplingParams(temperature=0.0)
    admits = [
        Admit(row, ids, len(ids), 0, (list(range(row * pages, (row + 1) * pages)),), params, 0, [], [])
        for row, ids in enumerate(prompts)
    ]
    worker.run(Plan(0, admit=admits))
    left = [len(ids) for ids in prompts]
    outputs: list[list[int]] = [[] for _ in prompts]
    while any(len(output) < NUM_OUTPUT for output in outputs):
        runs = [
            Run(row, min(n, budget), n <= budget)
            for row, (n, output) in enumerate(zip(left, outputs, strict=True))
            if len(output) < NUM_OUTPUT
        ]
        result = worker.run(Plan(0, run=runs))
        for run in runs:
            left[run.row] -= run.num_tokens
        for run, token_id in zip([run for run in runs if run.samples], result.token_ids, strict=True):
            outputs[run.row].append(token_id)
            left[run.row] = 1
    worker.run(Plan(0, release=list(range(len(prompts)))))
    return outputs


@pytest.fixture(scope="module")
def batched(worker: Worker, prompts: list[list[int]]) -> list[list[int]]:
    return generate(worker, prompts, 512)


@pytest.fixture(scope="module")
def transformers_model(files: ModelFiles) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(
            files.path.parent, gguf_file=files.path.name, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module")
def logits_of(transformers_model: Any) -> Callable[[tuple[int, ...]], Tensor]:
    @cache
    def logits(ids: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            found: Tensor = transformers_model(torch.tensor([ids])).logits[0]
        return found

    return logits


@pytest.mark.long
def test_batched_text_is_that_of_transformers(
    logits_of: Callable[[tuple[int, ...]], Tensor],
    prompts: list[list[int]],
    batched: list[list[int]],
    request: pytest.FixtureRequest,
) -> None:
    """One forward over prompt + output: each token must be the most likely after those before it. That holds for all
    positions exactly when greedy generation gives these tokens."""
    as_served = request.node.callspec.params["worker"] in AS_SERVED
    for ids, output in zip(prompts, batched, strict=True):
        logits = logits_of((*ids, *output))[len(ids) - 1 : -1]
        if as_served:  # what it chose is never far from the best
            chosen = logits.gather(1, torch.tensor(output).unsqueeze(1)).squeeze(1)
            assert (logits.amax(-1) - chosen).max() < 0.6
            assert (logits.argmax(-1) == torch.tensor(output)).float().mean() > 0.9
        else:
            assert logits.argmax(-1).tolist() == output


def test_embeddings_and_scores_are_those_of_transformers(
    transformers_model: Any, worker: Worker, prompts: list[list[int]], request: pytest.FixtureRequest
) -> None:
    """In f32 exactly; where activations are rounded to eight bits, nearly."""
    as_served = request.node.callspec.params["worker"] in AS_SERVED
    pages, rows, kinds = 128 // BLOCK_SIZE, range(12), ("mean", "last", None)
    admits = [
        Admit(row, ids, len(ids), 0, (list(range(row * pages, (row + 1) * pages)),),
              SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=None if row % 3 < 2 else 0), 0, [], [],
              pooling=kinds[row % 3])
        for row, ids in zip(rows, prompts, strict=False)
    ]  # fmt: skip
    result = worker.run(Plan(0, admit=admits, run=[Run(row, len(prompts[row]), False) for row in rows]))
    worker.run(Plan(1, release=list(rows)))
    for row in rows:
        with torch.no_grad():
            wanted = transformers_model(torch.tensor([prompts[row]]), output_hidden_states=True)
        if row % 3 < 2:
            hidden = wanted.hidden_states[-1][0]
            pooled = hidden.mean(0) if row % 3 == 0 else hidden[-1]
            found = torch.frombuffer(bytearray(result.embeddings[row]), dtype=torch.float32)
            assert torch.cosine_similarity(found, pooled, dim=0) > (0.99 if as_served else 1 - 1e-5)
        else:
            scores = wanted.logits[0].log_softmax(-1)
            for i, entry in enumerate(result.prompt_logprobs[row]):
                limit = 0.8 if as_served else 1e-3
                assert abs(entry.logprob - float(scores[i, prompts[row][i + 1]])) < limit


@pytest.mark.long
@FAST
def test_chunked_text_is_the_same(worker: Worker, prompts: list[list[int]], batched: list[list[int]]) -> None:
    assert generate(worker, prompts[::2], 3) == batched[::2]


@pytest.mark.long
@FAST
def test_prompts_alone_give_the_same(worker: Worker, prompts: list[list[int]], batched: list[list[int]]) -> None:
    for index in (0, 7, 15):
        assert generate(worker, prompts[index : index + 1], 512) == batched[index : index + 1]


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
@pytest.mark.parametrize(("dtype", "kv", "limit"), [("float32", None, 0.01), ("bfloat16", "int8", 0.012)])
def test_native_distributions_are_near_the_reference(
    files: ModelFiles, dtype: str, kv: str | None, limit: float
) -> None:
    """Mean KL divergence over the tokens of a text, and how often the most likely token is the same.
    (benchmarks/quality.py measures this over more text and beside others.)"""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    ids = Tokenizer.load(files).encode(text)[:200]
    wanted = Paged.load(files, max_model_len=256).whole(ids).log_softmax(-1)
    ops = registry.choose(registry.Spec("cpu", dtype, kv, 2), "cpu")
    found = Paged.load(files, dtype, max_model_len=256, ops=ops).whole(ids).log_softmax(-1)
    assert (wanted.exp() * (wanted - found)).sum(-1).mean() < limit
    assert (wanted.argmax(-1) == found.argmax(-1)).float().mean() > 0.9
