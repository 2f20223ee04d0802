"""Layers with a state of fixed size in plain PyTorch: causal depthwise convolution and the gated delta rule.

Invariant: computed in f32, rounded once to the type of what comes in; the state of a row is what it is after the row's
last token of the step, and a run from position 0 on begins with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.step import Step


def short_conv(x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
    """See Ops.short_conv: x [tokens, channels], weight [k, channels], state [slots, k - 1, channels]."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for slot, start, end, is_first in _runs(step):
        before = torch.zeros_like(state[slot]) if is_first else state[slot]
        columns = torch.cat([before, x[start:end].float()])  # [k - 1 + n, channels]
        taps = [columns[tap : tap + end - start] * weight[tap] for tap in range(weight.shape[0])]
        out[start:end] = torch.stack(taps).sum(0)
        state[slot] = columns[end - start :]
    return F.silu(out).to(x.dtype)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
    """See Ops.delta_rule. Token after token, all rows that have one at once."""
    runs = sorted(_runs(step), key=lambda run: run[1] - run[2])  # the longest first: those that go on come first
    slots = torch.tensor([slot for slot, *_ in runs], device=v.device)
    starts = torch.tensor([start for _, start, *_ in runs], device=v.device)
    of_rows = state[slots]  # [rows, v_heads, dk, dv]
    of_rows[torch.tensor([is_first for *_, is_first in runs], device=v.device)] = 0
    group = v.shape[1] // q.shape[1]
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    for place in range(runs[0][2] - runs[0][1] if runs else 0):
        count = sum(end - start > place for _, start, end, _ in runs)
        at, current = starts[:count] + place, of_rows[:count]
        q_at, k_at = (x[at].float().repeat_interleave(group, dim=1).unsqueeze(-1) for x in (q, k))
        current *= g[at].float().exp()[..., None, None]
        predicted = (current * k_at).sum(-2)  # [rows, v_heads, dv]
        current += k_at * ((v[at].float() - predicted) * beta[at].float().unsqueeze(-1)).unsqueeze(-2)
        out[at] = (current * q_at).sum(-2) * q.shape[2] ** -0.5
    state[slots] = of_rows
    return out.to(v.dtype)


def _runs(step: Step) -> Iterator[tuple[int, int, int, bool]]:
    """Of each row of the step: its slot, its first token and the one after its last, whether the sequence begins."""
    starts, contexts = step.query_start.tolist(), step.context_lens.tolist()
    for row, slot in enumerate(step.rows.tolist()):
        start, end = starts[row], starts[row + 1]
        yield slot, start, end, contexts[row] == end - start
