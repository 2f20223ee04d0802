"""Cases of what happens to logits: the grammar mask, penalties, the draw, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from case import F32, Call, Case, Model, normal, relative
from torch import Tensor

from octavo.kernels.reference import sampling as reference
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.kernels.triton import edits, logprobs, sampling

ROWS = (1, 16, 64, 256)
KINDS = {
    "greedy": (0.0, 0, 1.0),
    "plain": (1.0, 0, 1.0),
    "top-k 50, top-p 0.9": (0.8, 50, 0.9),
    "top-p 0.9": (0.8, 0, 0.9),
}
CHECKED = 8
"""Rows that are compared with the reference, on the CPU."""


def cases(model: Model, rows: tuple[int, ...] = ROWS) -> Iterator[Case]:
    for n in rows:
        for kind in KINDS:
            goal = "under 60 µs" if n == 256 and model.vocab == 128256 else None
            yield Case(
                "sample", model.name, n, 4 * n * model.vocab, _sampler(n, model.vocab, *KINDS[kind]), what=kind,
                tolerance=0.0 if kind == "greedy" else 0.13, goal=goal, priority=0 if goal else 2,
            )  # fmt: skip
        yield _mask(n, model)
        yield _penalize(n, model)
        yield _logprobs(n, model)


def _sampler(rows: int, vocab: int, heat: float, k: int, p: float):  # type: ignore[no-untyped-def]
    def make(device: torch.device) -> Call:
        logits = 4 * normal(rows, vocab, device=device, dtype=F32)
        temperature, top_p = (torch.full((rows,), x, device=device) for x in (heat, p))
        top_k, indices = (torch.full((rows,), x, dtype=torch.int64, device=device) for x in (k, 3))
        seeds = torch.arange(rows, device=device)
        settings = SamplingRows(temperature, top_k, top_p, torch.zeros(rows, device=device), seeds, indices)

        def error() -> float:
            found = sampling.sample(logits, settings)[:CHECKED].cpu()
            few = SamplingRows(*(x[:CHECKED].cpu() for x in settings))
            wanted = reference.sample(logits[:CHECKED].cpu(), few)
            return float((found != wanted).float().mean())

        return Call(lambda: sampling.sample(logits, settings), lambda: _eager(logits, heat, k, p), error)

    return make


def _eager(logits: Tensor, heat: float, k: int, p: float) -> Tensor:
    """As it is commonly written: a sort of every row, a cumulative sum, an exponential race."""
    if heat == 0:
        return logits.argmax(-1)
    scaled = logits / heat
    if k:
        scaled = scaled.masked_fill(scaled < scaled.topk(min(k, logits.shape[1])).values[:, -1:], -torch.inf)
    if p < 1:
        ordered, places = scaled.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= p, -torch.inf)
        scaled = torch.empty_like(scaled).scatter_(-1, places, ordered)
    shares = scaled.softmax(-1)
    return (shares / torch.empty_like(shares).exponential_()).argmax(-1)


def _mask(rows: int, model: Model) -> Case:
    words = -(-model.vocab // 32)

    def make(device: torch.device) -> Call:
        logits = normal(rows, model.vocab, device=device, dtype=F32)
        allowed = torch.randint(-(2**31), 2**31 - 1, (rows, words), dtype=torch.int32, device=device)
        places = torch.arange(rows, device=device)

        def eager() -> object:
            bits = (allowed.unsqueeze(-1) >> torch.arange(32, device=device)) & 1
            return logits.masked_fill_(bits.flatten(1)[:, : model.vocab] == 0, -torch.inf)

        def error() -> float:
            found, wanted = logits.clone(), logits.clone()
            edits.mask(found, places, allowed)
            reference.mask(wanted, places, allowed)
            return float(found.ne(wanted).sum())

        return Call(lambda: edits.mask(logits, places, allowed), eager, error)

    # Half of random tokens are forbidden, and written.
    nbytes = 4 * rows * (words + model.vocab // 2)
    return Case("mask", model.name, rows, nbytes, make, tolerance=0.0, priority=2 if rows < 256 else 1)


def _penalize(rows: int, model: Model) -> Case:
    def make(device: torch.device) -> Call:
        logits = normal(rows, model.vocab, device=device, dtype=F32)
        counts = (torch.rand(rows, model.vocab, device=device) < 0.001).to(torch.int32)
        seen = torch.rand(rows, model.vocab, device=device) < 0.01
        places = torch.arange(rows, device=device)
        settings = [torch.full((rows,), x, device=device) for x in (0.1, 0.2, 1.1)]

        def eager() -> object:
            touched, (presence, frequency, repetition) = (counts > 0) | seen, (x.unsqueeze(1) for x in settings)
            x = torch.where(touched, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
            return logits.copy_(x.sub_(counts * frequency).sub_((counts > 0) * presence))

        def error() -> float:
            found, wanted = logits.clone(), logits.clone()
            edits.penalize(found, PenaltyRows(places, counts, seen, *settings))
            reference.penalize(wanted, PenaltyRows(places, counts, seen, *settings))
            return relative(found, wanted)

        return Call(lambda: edits.penalize(logits, PenaltyRows(places, counts, seen, *settings)), eager, error)

    # Counts and marks are read whole; of the logits the one in a hundred that was seen.
    nbytes = 5 * rows * model.vocab
    return Case("penalize", model.name, rows, nbytes, make, tolerance=1e-6, priority=2 if rows < 256 else 1)


def _logprobs(rows: int, model: Model) -> Case:
    num_top = min(5, model.vocab)

    def make(device: torch.device) -> Call:
        logits, tokens = 4 * normal(rows, model.vocab, device=device, dtype=F32), torch.arange(rows, device=device)

        def error() -> float:
            found, wanted = logprobs.logprobs(logits, tokens, num_top), reference.logprobs(logits, tokens, num_top)
            return max(relative(one, other) for one, other in zip(found[:2], wanted[:2], strict=True))

        return Call(
            lambda: logprobs.logprobs(logits, tokens, num_top),
            lambda: reference.logprobs(logits, tokens, num_top),
            error,
        )

    nbytes = 4 * rows * model.vocab
    return Case("logprobs", model.name, rows, nbytes, make, what="5 likeliest", tolerance=1e-5, priority=2)
