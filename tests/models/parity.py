"""What every family of models is tried for, against Transformers."""

from __future__ import annotations

from typing import Any

from test_llama import agree, expected, random_ids
from test_worker import admit, greedy
from tiny_models import BLOCK_SIZE, Paged, resolved_config

from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Plan, Run
from octavo.worker.worker import Worker


def whole_and_in_chunks(paged: Paged, reference: Any) -> None:
    """Logits of a sequence of 77 tokens."""
    ids = random_ids(77)
    wanted = expected(reference, ids)
    agree(paged.whole(ids), wanted)
    agree(paged.whole(ids, [1, 9, 30, 8, 1, 1, 27]), wanted)


def greedy_side_by_side(files: ModelFiles, reference: Any, count: int, groups: int = 1) -> None:
    """Two prompts through the worker, one in chunks beside the other's decodes, then `count` tokens of both. On the CPU
    one recorded call a step. `groups`: paged cache groups of the model."""
    worker = Worker(resolved_config(), files)
    worker.start()
    prompts, pages = [random_ids(30, 1), random_ids(17, 2)], 64 // BLOCK_SIZE
    first = admit(0, prompts[0], list(range(pages)), groups=groups)
    found = [worker.run(Plan(0, admit=[first], run=[Run(0, len(prompts[0]), True)])).token_ids, []]
    second = admit(1, prompts[1], list(range(pages, 2 * pages)), groups=groups)
    found[0] += worker.run(Plan(1, admit=[second], run=[Run(0, 1, True), Run(1, 9, False)])).token_ids
    for n in (8, *[1] * count):
        tokens = worker.run(Plan(2, run=[Run(0, 1, True), Run(1, n, True)])).token_ids
        found[0].append(tokens[0])
        found[1].append(tokens[1])
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == greedy(reference, prompt, len(tokens))
