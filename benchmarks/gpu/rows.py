"""Cases of the kernels that work row by row: norms, rotary embedding with the write of pages, SiLU·mul, look-ups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from case import F32, Call, Case, Model, normal, relative
from torch import Tensor

from octavo.kernels.ops import HeadNorms
from octavo.kernels.reference import activation as reference_activation
from octavo.kernels.reference import norm as reference_norm
from octavo.kernels.reference import rope as reference_rope
from octavo.kernels.triton import activation, embedding, norm, rope

EPS = 1e-5
ROWS = (1, 16, 64, 256, 8192)
"""The last is a prefill step: below it a launch takes longer than its bytes."""
GOAL = "85% of copy bandwidth, 5 x eager"


def flashinfer() -> Any:
    """The module, or None where it is not installed."""
    try:
        import flashinfer as module
    except ImportError:
        return None
    return module


def cases(model: Model, rows: tuple[int, ...] = ROWS) -> Iterator[Case]:
    for n in rows:
        goal, first = (GOAL, 0) if n == max(rows) else (None, 2 if n in (16, 64) else 1)
        yield _rms_norm(model, n, goal, first)
        yield _add_rms_norm(model, n, goal, first)
        yield _silu_mul(model, n, goal, first)
        yield _rope(model, n, goal, first)
        yield _gather(model, n, 2 if n != max(rows) else 1)


def _rms_norm(model: Model, rows: int, goal: str | None, priority: int) -> Case:
    width = model.hidden

    def make(device: torch.device) -> Call:
        x, weight = normal(rows, width, device=device), normal(width, device=device)
        peer = flashinfer()
        return Call(
            lambda: norm.rms_norm(x, weight, EPS),
            lambda: reference_norm.rms_norm(x, weight, EPS),
            lambda: relative(norm.rms_norm(x, weight, EPS), reference_norm.rms_norm(x.float(), weight, EPS)),
            peer and (lambda: peer.rmsnorm(x, weight, EPS)),
        )

    return Case("rms_norm", model.name, rows, 4 * rows * width + 2 * width, make, goal=goal, priority=priority)


def _add_rms_norm(model: Model, rows: int, goal: str | None, priority: int) -> Case:
    width = model.hidden

    def make(device: torch.device) -> Call:
        x, weight = normal(rows, width, device=device), normal(width, device=device)
        residual = normal(rows, width, device=device, dtype=F32)

        def error() -> float:
            exact, total = reference_norm.add_rms_norm(x.float(), residual.clone(), weight, EPS)
            found, kept = norm.add_rms_norm(x, residual.clone(), weight, EPS)
            return max(relative(found, exact), relative(kept, total))

        return Call(
            lambda: norm.add_rms_norm(x, residual, weight, EPS),
            lambda: reference_norm.add_rms_norm(x, residual, weight, EPS),
            error,
        )

    nbytes = 12 * rows * width + 2 * width
    return Case("add_rms_norm", model.name, rows, nbytes, make, goal=goal, priority=priority)


def _silu_mul(model: Model, rows: int, goal: str | None, priority: int) -> Case:
    width = model.inner

    def make(device: torch.device) -> Call:
        x, peer = normal(rows, 2 * width, device=device), flashinfer()
        return Call(
            lambda: activation.silu_mul(x),
            lambda: reference_activation.silu_mul(x),
            lambda: relative(activation.silu_mul(x), reference_activation.silu_mul(x.float())),
            peer and (lambda: peer.silu_and_mul(x)),
        )

    return Case("silu_mul", model.name, rows, 6 * rows * width, make, goal=goal, priority=priority)


def _rope(model: Model, rows: int, goal: str | None, priority: int) -> Case:
    heads, kv_heads, dim, block = model.heads, model.kv_heads, model.head_dim, 16
    blocks = -(-rows // block) + 1

    def make(device: torch.device) -> Call:
        fused = normal(rows, heads + 2 * kv_heads, dim, device=device)
        q, k, v = fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
        table = torch.rand(max(rows, 64), dim, device=device)
        kv = normal(2, blocks, block, kv_heads, dim, device=device)
        positions = torch.arange(rows, device=device)
        slots = torch.randperm(blocks * block, device=device)[:rows].contiguous()
        norms = None
        if model.head_norms:
            norms = HeadNorms(normal(dim, device=device, dtype=F32), normal(dim, device=device, dtype=F32), EPS)

        def turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            cos, sin = reference_rope.gather_cos_sin(table, positions)
            if norms:
                q, k = reference_norm.rms_norm(q, norms.q, EPS), reference_norm.rms_norm(k, norms.k, EPS)
            return reference_rope.rotate(q, cos, sin), reference_rope.rotate(k, cos, sin)

        def eager() -> object:
            q_turned, k_turned = turned(q, k)
            reference_rope.write_pages(k_turned, v, kv, slots)
            return q_turned.contiguous()

        def error() -> float:
            found = rope.rope_cache(q, k, v, table, kv, positions, slots, norms)
            pages, exact = kv.view(2, -1, kv_heads, dim)[:, slots], turned(q.float(), k.float())
            return max(relative(found, exact[0]), relative(pages[0], exact[1]), relative(pages[1], v))

        return Call(lambda: rope.rope_cache(q, k, v, table, kv, positions, slots, norms), eager, error)

    nbytes = 4 * rows * (heads + 2 * kv_heads) * dim + rows * (4 * dim + 16)
    return Case("rope_cache", model.name, rows, nbytes, make, goal=goal, priority=priority)


def _gather(model: Model, rows: int, priority: int) -> Case:
    width = model.hidden

    def make(device: torch.device) -> Call:
        table = normal(max(2 * rows, 4096), width, device=device)
        index = torch.randint(0, table.shape[0], (rows,), device=device)
        return Call(
            lambda: embedding.gather_rows(table, index),
            lambda: table.index_select(0, index),
            lambda: relative(embedding.gather_rows(table, index), table[index]),
        )

    return Case("gather_rows", model.name, rows, 4 * rows * width + 8 * rows, make, priority=priority, tolerance=0.0)
