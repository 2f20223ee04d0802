"""Cases of attention over pages: decode and prefill, ours, PyTorch's and FlashInfer's; and of the step around it that
is made on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from case import BF16, Call, Case, Model, normal, relative
from rows import flashinfer
from torch import Tensor

from octavo.kernels.flashinfer import FlashInferAttention, supports
from octavo.kernels.reference import rows as of_rows
from octavo.kernels.reference.attention import PlannedAttention
from octavo.kernels.rows import DeviceRows
from octavo.kernels.step import Step
from octavo.kernels.triton import rows as triton_rows
from octavo.kernels.triton.attention import attention

BLOCK = 16
DECODE = ((1, 512), (1, 4096), (1, 32768), (16, 4096), (64, 512), (64, 4096), (256, 4096), (64, 32768))
PREFILL = ((512, 512), (2048, 32768), (8192, 8192))
"""(new tokens, context)."""


def cases(
    model: Model, decode: tuple[tuple[int, int], ...] = DECODE, prefill: tuple[tuple[int, int], ...] = PREFILL
) -> Iterator[Case]:
    width, kv_width = model.heads * model.head_dim, model.kv_heads * model.head_dim
    for rows, context in decode:
        for kv, size in ((BF16, 2), (torch.float8_e4m3fn, 1)):
            goal = (
                "85% of copy bandwidth, no slower than FlashInfer" if (rows, context, size) == (64, 4096, 2) else None
            )
            yield Case(
                "decode_attention", model.name, rows, 2 * size * rows * context * kv_width + 4 * rows * width,
                _maker(model, rows, 1, context, kv), 4 * rows * context * width, context,
                "fp8 pages" if size == 1 else "bf16 pages", tolerance=2e-2, goal=goal,
                priority=0 if goal else 1 if size == 2 else 2,
            )  # fmt: skip
    for rows in sorted({rows for rows, _ in decode}):
        # Beside its inputs and results, the pages' numbers where positions lie.
        yield Case("decode_step", model.name, rows, 64 * rows, _step_maker(rows), tolerance=0.0, priority=2)
        yield Case("decode_done", model.name, rows, 52 * rows, _done_maker(rows), tolerance=0.0, priority=2)
    for new, context in prefill:
        pairs = new * context - new * (new - 1) // 2
        goal = "60% of the matmul rate" if (new, context) == (8192, 8192) else None
        yield Case(
            "prefill_attention", model.name, new, 4 * context * kv_width + 4 * new * width,
            _maker(model, 1, new, context, BF16), 4 * pairs * width, context, tolerance=2e-2, goal=goal,
            priority=0 if goal else 1, bound="matmul",
        )  # fmt: skip


@cache
def _planned(device: torch.device) -> FlashInferAttention:
    return FlashInferAttention(device)


@cache
def _step(rows: int, new: int, context: int, device: torch.device) -> Step:
    """Rows of one length, on pages in random order. One for all sets of arguments: its plans are made once."""
    pages = -(-context // BLOCK)
    int32 = {"dtype": torch.int32, "device": device}
    return Step(
        torch.zeros(rows * new, dtype=torch.int64, device=device),
        torch.arange(context - new, context, device=device).repeat(rows),
        torch.zeros(rows * new, dtype=torch.int64, device=device),
        torch.arange(0, rows * new + 1, new, **int32),
        torch.full((rows,), context, **int32),
        torch.arange(0, rows * pages + 1, pages, **int32),
        torch.randperm(rows * pages, device=device).to(torch.int32),
        torch.zeros(rows, dtype=torch.int64, device=device),
        BLOCK, new, context, torch.arange(rows, **int32),
    )  # fmt: skip


def launched(model: Model, new: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> Case:
    """Of a size or type beside the check's, to be compiled alone: a row of `new` tokens."""
    what = f"{str(dtype)[6:]} over {str(kv_dtype)[6:]}"
    return Case("attention", model.name, 1, 0, _maker(model, 1, new, 4096, kv_dtype, dtype), context=4096, what=what)


def _maker(  # type: ignore[no-untyped-def]
    model: Model, rows: int, new: int, context: int, kv_dtype: torch.dtype, dtype: torch.dtype = BF16
):
    scale = model.head_dim**-0.5

    def make(device: torch.device) -> Call:
        step = _step(rows, new, context, device)
        q = normal(rows * new, model.heads, model.head_dim, device=device, dtype=dtype)
        pages = normal(2, len(step.page_ids), BLOCK, model.kv_heads, model.head_dim, device=device).to(kv_dtype)
        eager, peer = PlannedAttention(), None
        kind = "bfloat16" if kv_dtype == BF16 else "fp8"
        if device.type == "cuda" and flashinfer() is not None and supports("bfloat16", kind, model.head_dim) is None:
            planned = _planned(device)
            peer = lambda: planned(q, pages, step, scale)  # noqa: E731
        return Call(
            lambda: attention(q, pages, step, scale),
            lambda: eager(q, pages, step, scale),
            lambda: _error(attention(q, pages, step, scale), q, pages, step, scale),
            peer,
        )

    return make


def _error(found: Tensor, q: Tensor, pages: Tensor, step: Step, scale: float) -> float:
    """Of the last new tokens, 64 at most, of the first and the last row, by f32."""
    worst, group = 0.0, q.shape[1] // pages.shape[3]
    for row in {0, step.num_rows - 1}:
        start, end = int(step.query_start[row]), int(step.query_start[row + 1])
        own = step.page_ids[int(step.page_start[row]) : int(step.page_start[row + 1])].long()
        raw = pages.view(torch.uint8) if pages.dtype.itemsize == 1 else pages
        k, v = (x[own].view(pages.dtype).flatten(0, 1)[: step.max_context_len].float() for x in raw)
        first = max(start, end - 64)
        for head in range(q.shape[1]):
            scores = q[first:end, head].float() @ k[:, head // group].T * scale
            hidden = torch.arange(len(k), device=q.device) > step.positions[first:end, None]
            exact = scores.masked_fill_(hidden, -torch.inf).softmax(-1) @ v[:, head // group]
            worst = max(worst, relative(found.view(q.shape)[first:end, head], exact))
    return worst


def _state(rows: int, device: torch.device) -> DeviceRows:
    int32 = {"dtype": torch.int32, "device": device}
    return DeviceRows(
        torch.arange(rows + 1, device=device), torch.arange(rows + 1, **int32),
        torch.arange((rows + 1) * 2048, **int32).view(1, rows + 1, 2048),
        torch.zeros((rows + 1, 3), dtype=torch.int64, device=device),
    )  # fmt: skip


def _step_maker(rows: int):  # type: ignore[no-untyped-def]
    def make(device: torch.device) -> Call:
        state, chosen = _state(rows, device), torch.arange(rows, dtype=torch.int32, device=device)

        def step(module: Any) -> Step:
            found: Step = module.decode_step(chosen, state, BLOCK, 4096)
            return found

        def error() -> float:
            found, wanted = step(triton_rows), step(of_rows)
            names = ("token_ids", "positions", "slots", "query_start", "context_lens", "logits_index")
            return float(sum(getattr(found, name).ne(getattr(wanted, name)).sum() for name in names))

        return Call(lambda: step(triton_rows), lambda: step(of_rows), error)

    return make


def _done_maker(rows: int):  # type: ignore[no-untyped-def]
    def make(device: torch.device) -> Call:
        state, other = _state(rows, device), _state(rows, device)
        chosen, tokens = torch.arange(rows, dtype=torch.int32, device=device), torch.arange(rows, device=device) + 7

        def error() -> float:
            ours, wanted = _state(rows, device), _state(rows, device)
            triton_rows.decode_done(chosen, tokens, ours)
            of_rows.decode_done(chosen, tokens, wanted)
            pairs = [(ours.last_token, wanted.last_token), (ours.num_computed, wanted.num_computed)]
            return float(sum(one.ne(two).sum() for one, two in [*pairs, (ours.sampling_ints, wanted.sampling_ints)]))

        return Call(
            lambda: triton_rows.decode_done(chosen, tokens, state),
            lambda: of_rows.decode_done(chosen, tokens, other),
            error,
        )

    return make
