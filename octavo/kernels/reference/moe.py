"""What the operations of a mixture of experts mean, in plain PyTorch; the oracle of other backends.

Sources: the sparsely-gated mixture, Shazeer et al. 2017 (arXiv:1701.06538); its routing as Mixtral (Jiang et al. 2024,
arXiv:2401.04088) and Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388) have it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.kernels.layouts import EachPrepared, Prepared, PreparedExperts

Linear = Callable[[Tensor, Prepared], Tensor]


class ListedExperts(EachPrepared[Prepared]):
    """Those of this backend."""


def route(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See Ops.route."""
    # A stable sort: of equal ones the lowest id first, which topk does not promise.
    shares, ids = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares, ids = shares[:, :k], ids[:, :k]
    return (shares / shares.sum(-1, keepdim=True) if renormalize else shares).contiguous(), ids.int()


def experts(
    x: Tensor,
    routed: tuple[Tensor, Tensor],
    gate_up: PreparedExperts,
    down: PreparedExperts,
    linear: Linear,
    silu_mul: Callable[[Tensor], Tensor],
) -> Tensor:
    """See Ops.experts; one product for each expert that has tokens. Reads the ids on the host."""
    assert isinstance(gate_up, ListedExperts) and isinstance(down, ListedExperts), "these were not prepared here"
    weights, ids = routed
    of_choice = torch.empty(*ids.shape, down.shape[1], dtype=x.dtype, device=x.device)
    for expert in sorted(set(ids.flatten().tolist())):
        tokens, choice = (ids == expert).nonzero(as_tuple=True)
        inner = silu_mul(linear(x[tokens], gate_up.matrices[expert]))
        of_choice[tokens, choice] = linear(inner, down.matrices[expert])
    return (of_choice.float() * weights.unsqueeze(-1)).sum(1).to(x.dtype)
