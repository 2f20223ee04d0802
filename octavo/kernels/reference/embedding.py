"""Row look-ups in plain PyTorch. Called by ReferenceOps."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Prepared


def embedding(token_ids: Tensor, table: Prepared, dtype: torch.dtype) -> Tensor:
    """[tokens] int64, [vocab, hidden] → [tokens, hidden] in `dtype`; of a quantized table only these rows are made."""
    if isinstance(table, Dense):
        return table.data.index_select(0, token_ids).to(dtype)
    assert isinstance(table, (Int8Groups, Float8Groups, Int4Groups))
    return table.take_rows(token_ids).dequantize(dtype)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """[tokens, n], [m] int64 → [m, n]."""
    return x.index_select(0, index)
