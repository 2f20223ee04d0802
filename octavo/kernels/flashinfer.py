"""Attention by FlashInfer (Ye et al. 2025, arXiv:2501.01005). Its page table is ours: the step's CSR arrays go in as
they are, pages in its layout NHD. Chosen by kernels/attention.py.

A step is planned once for all layers that ask the same (window, soft cap, scale); layers that ask otherwise get a
wrapper and a plan of their own. A step of single new tokens goes to its decode kernels, any other to its prefill
kernels, which take single tokens among them too. Planning is host work over row pointers, which the worker leaves with
the step; where they are on the device alone they are read back, once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.step import Step

WORKSPACE = 256 << 20
"""Bytes for the parts of split contexts, shared by all wrappers: they run one after the other."""
DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)


def supports(dtype: str, kv_dtype: str, head_dim: int | None) -> str | None:
    """None, or the reason why not."""
    if dtype not in DTYPES:
        return f"has no {dtype}, only {' and '.join(DTYPES)}"
    if kv_dtype not in (dtype, "fp8"):
        return f"has no KV cache of {kv_dtype} beside {dtype}"
    if head_dim not in (None, *HEAD_DIMS):
        return f"has heads of {', '.join(map(str, HEAD_DIMS))}, not of {head_dim}"
    return None


@dataclass(frozen=True)
class _Problem:
    """What a plan is made for, beside the step."""

    group: int
    decode: bool
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    scale: float
    window: int | None
    soft_cap: float | None


class FlashInferAttention:
    """See Ops.attention. Not thread-safe; one stream."""

    def __init__(self, device: torch.device | str, workspace: int = WORKSPACE) -> None:
        self._workspace = torch.zeros(workspace, dtype=torch.uint8, device=device)
        self._wrappers: dict[_Problem, Any] = {}
        self._steps: dict[int, Step] = {}
        self._host: Sequence[Tensor] = ()
        self._planned: set[_Problem] = set()

    def __call__(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        out = torch.empty_like(q)
        if q.shape[0]:
            problem = _Problem(
                step.group, step.max_query_len == 1, q.shape[1], kv.shape[3], q.shape[2], q.dtype, kv.dtype, scale,
                window, soft_cap,
            )  # fmt: skip
            self._plan(problem, step).run(q, (kv[0], kv[1]), out=out)
        return out.flatten(1)

    def _plan(self, problem: _Problem, step: Step) -> Any:
        if self._steps.get(step.group) is not step:
            self._steps[step.group] = step
            self._planned = {planned for planned in self._planned if planned.group != step.group}
            self._host = _host_tables(step)  # of all groups: they differ in the blocks alone
        if problem not in self._wrappers:
            self._wrappers[problem] = self._wrapper(problem)
        wrapper = self._wrappers[problem]
        if problem in self._planned:
            return wrapper
        query_start, page_start, last_page_len = self._host
        table = (page_start, step.page_ids, last_page_len)
        sizes = (problem.heads, problem.kv_heads, problem.head_dim, step.block_size)
        options: dict[str, Any] = {
            "q_data_type": problem.dtype,
            "kv_data_type": problem.kv_dtype,
            "sm_scale": problem.scale,
            "window_left": -1 if problem.window is None else problem.window - 1,  # keys before the query's own
            "logits_soft_cap": problem.soft_cap or 0.0,
        }
        if problem.decode:
            wrapper.plan(*table, *sizes, **options)
        else:
            wrapper.plan(query_start, *table, *sizes, causal=True, **options)
        self._planned.add(problem)
        return wrapper

    def _wrapper(self, problem: _Problem) -> Any:
        import flashinfer

        if problem.decode:
            # Its plain decode kernels know few group sizes and compute each head by itself: larger groups fill a tile.
            grouped = problem.heads // problem.kv_heads > 2
            return flashinfer.BatchDecodeWithPagedKVCacheWrapper(self._workspace, "NHD", use_tensor_cores=grouped)
        return flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")


def _host_tables(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """query_start, page_start and the tokens in each row's last page, int32 on the host."""
    rows = step.num_rows
    if step.on_host is None:
        together = torch.cat((step.query_start, step.context_lens, step.page_start)).cpu()
        query_start, context_lens = together[: rows + 1], together[rows + 1 : 2 * rows + 1]
        page_start = together[2 * rows + 1 :]
    else:
        query_start, context_lens, page_start = step.on_host
    return query_start, page_start, (context_lens - 1) % step.block_size + 1
