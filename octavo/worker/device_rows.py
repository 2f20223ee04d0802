"""Keeps what the device knows of every row (kernels/rows.py) equal to the batch on the host. Used by
worker/device_queue.py and worker/parts.py.

Only what a plan changes is sent, in one copy: the rows it admits and the pages it appends. What steps themselves change
(last token, tokens computed) changes on the device, by the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.rows import DeviceRows
from octavo.wire.plan import Plan
from octavo.worker.batch import Batch
from octavo.worker.staging import Staging


def make_rows(batch: Batch, sampling_ints: Tensor) -> DeviceRows:
    """`sampling_ints`: the sampler's, on the device, one row more than the batch has."""
    where, (groups, rows, pages) = sampling_ints.device, batch.block_tables.shape
    return DeviceRows(
        last_token=torch.zeros(rows + 1, dtype=torch.int64, device=where),
        num_computed=torch.zeros(rows + 1, dtype=torch.int32, device=where),
        block_tables=torch.zeros((groups, rows + 1, pages), dtype=torch.int32, device=where),
        sampling_ints=sampling_ints,
    )


def send(plan: Plan, batch: Batch, state: DeviceRows, staging: Staging) -> None:
    """After the batch has taken what `plan` admits and extends."""
    _, rows, width = state.block_tables.shape
    places: list[int] = []
    pages: list[int] = []

    def put(row: int, start: int, block_ids: Sequence[Sequence[int]]) -> None:
        for group, ids in enumerate(block_ids):
            first = (group * rows + row) * width + start
            places.extend(range(first, first + len(ids)))
            pages.extend(ids)

    for admit in plan.admit:
        put(admit.row, 0, admit.block_ids)
    ends: dict[int, int] = {}
    for extend in reversed(plan.extend):  # a row may be extended twice
        end = ends.get(extend.row, int(batch.num_blocks[extend.row]))
        ends[extend.row] = start = end - len(extend.block_ids[0])
        put(extend.row, start, extend.block_ids)
    if not places:
        return
    arrays: list[NDArray[Any]] = [np.array(places, np.int64), np.array(pages, np.int32)]
    if plan.admit:
        arrays += [
            np.array([admit.row for admit in plan.admit], np.int64),
            np.array([admit.token_ids[-1] for admit in plan.admit], np.int64),
            np.array([admit.num_computed_tokens for admit in plan.admit], np.int32),
        ]
    at, values, *admitted = staging.upload(arrays)
    state.block_tables.view(-1)[at] = values
    if admitted:
        at, last, computed = admitted
        state.last_token[at] = last
        state.num_computed[at] = computed
